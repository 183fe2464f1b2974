"""The script that trains dictionaries of a demo model: resuming, files, figures."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from embspace_lens import EmbspaceError, demo
from embspace_lens.demo import dictionary_evaluation, train_features
from embspace_lens.demo.dictionary_evaluation import Place, SavedDictionary, evaluate, hooked
from embspace_lens.demo.train_features import Dictionaries, FeatureConfig

WORDS = "the film was good bad long short and but very not an actor played his role well plot story ending".split()
CONFIG = FeatureConfig(saes=(0,), transcoders=(0, 1), n_features=24, k=4, batch_size=4)


def tiny_model():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=12, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval()


def token_rows(n=48):
    rows = np.random.default_rng(0).integers(1, 50, size=(n, 13)).astype(np.int32)
    rows[:, 0] = 0
    return rows


def run(folder, **options):
    folder.mkdir(exist_ok=True)
    dictionaries = Dictionaries(tiny_model(), CONFIG)
    train_features.train(token_rows(), dictionaries, folder, **options)
    return dict(dictionaries.named_parameters())


def differing(a, b):
    return [name for name, tensor in a.items() if not torch.equal(tensor, b[name])]


def test_resumed_run_gives_the_same_dictionaries(tmp_path, monkeypatch):
    uninterrupted = run(tmp_path / "uninterrupted")
    assert {name.split(".")[1] for name in uninterrupted} == {"sae-0", "transcoder-0", "transcoder-1"}
    saved = train_features.save_checkpoint

    def interrupt(folder, model, optimizer, step):
        saved(folder, model, optimizer, step)
        if step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_features, "save_checkpoint", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "resumed", checkpoint_seconds=-1.0)
    assert train_features.checkpoint_step(tmp_path / "resumed") == 5
    assert not differing(run(tmp_path / "resumed"), uninterrupted)


@pytest.mark.parametrize(("moment", "step"), [("forward", 3), ("update", 0)])
def test_ctrl_c_writes_a_checkpoint_unless_an_update_is_incomplete(tmp_path, monkeypatch, moment, step):
    method, calls = getattr(train_features.SparseDictionary, moment), []

    def interrupt(self, *args):
        calls.append(self)
        if len(calls) == 11:  # the second of three dictionaries in step 4
            raise KeyboardInterrupt
        return method(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(train_features.SparseDictionary, moment, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "resumed")
    assert train_features.checkpoint_step(tmp_path / "resumed") == step
    assert not differing(run(tmp_path / "resumed"), run(tmp_path / "uninterrupted"))


def test_dictionaries_read_and_rebuild_the_vectors_of_their_hooks():
    model = demo.load("reviews-small-0")
    hf_model = demo.catalog.load_base("reviews-small-0", torch.float32)[0].eval()
    tokens = model.to_tokens("This was the worst movie I have ever seen.")
    cache = model.run_with_cache(tokens)[1]
    for place in FeatureConfig().places:
        taken = {}
        with torch.no_grad(), hooked(hf_model, place, lambda x, y, taken=taken: taken.update(x=x, y=y)):
            hf_model(tokens)
        for hook, value in ((place.hook, taken["x"]), (place.output_hook, taken["y"])):
            torch.testing.assert_close(value, cache[hook], rtol=1e-3, atol=1e-3)


def identity_like(place, error=0.0):
    """An SAE that rebuilds every vector x exactly, by features for each coordinate's positive and negative part."""
    axes = torch.cat([torch.eye(16), -torch.eye(16)])
    zeros = torch.zeros(32)
    tensors = {"W_enc": axes.T, "b_enc": zeros, "W_dec": axes, "b_dec": torch.full((16,), error), "threshold": zeros}
    return SavedDictionary(place, tensors)


def test_exact_dictionary_recovers_the_whole_loss():
    values = evaluate(tiny_model(), {"exact": identity_like(Place("sae", 0))}, token_rows(8))["exact"]
    assert values["fvu"] == 0 and values["l0"] == 16 and values["inactive"] == 0
    assert values["loss_spliced"] == values["loss"]
    assert values["recovered_from_mean"] == values["recovered_from_zero"] == 1
    assert len({values["loss"], values["loss_mean"], values["loss_zero"]}) == 3


def test_controls_and_unexplained_variance_equal_slow_formulas():
    model, rows, place = tiny_model(), token_rows(8), Place("transcoder", 1)
    dictionary = identity_like(place, error=0.3)
    values = evaluate(model, {"one": dictionary}, rows, batch_size=3)["one"]
    taken = {}
    ids = torch.from_numpy(rows).long()

    def loss():
        logits = model(ids[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()

    with torch.no_grad():
        with hooked(model, place, lambda x, y: taken.update(x=x, y=y)):
            assert values["loss"] == pytest.approx(loss(), abs=1e-4)
        x, y = (taken[name][:, 1:].flatten(0, 1).double() for name in "xy")
        fvu = (y - x - 0.3).square().sum() / (y - y.mean(0)).square().sum()
        assert values["fvu"] == pytest.approx(fvu.item(), rel=1e-4)
        mean = y.mean(0).float()
        for name, output in (("mean", lambda x, y: mean.expand_as(y)), ("zero", lambda x, y: 0 * y)):
            with hooked(model, place, output):
                assert values[f"loss_{name}"] == pytest.approx(loss(), abs=1e-4)


@pytest.fixture
def reviews(tmp_path):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size=300)) + "." for _ in range(24)]
    path = tmp_path / "reviews.csv"
    pd.DataFrame({"text": texts, "split": ["train"] * 16 + ["test"] * 8}).to_csv(path, index=False)
    return path


def test_script_writes_measures_and_keeps_a_folder(tmp_path, reviews):
    app, folder = typer.Typer(), tmp_path / "features"
    app.command()(train_features.main)
    options = ["--data", reviews, "--transcoder", "2", "--n-features", "32", "--k", "4", "--batch-size", "8"]
    arguments = [*map(str, [folder, *options, "--held-out", "6"])]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "| transcoder-2 |" in result.output and "| sae-1 |" in result.output
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    layout = {
        f"{name}/{file}" for name in ("sae-1", "transcoder-2") for file in ("cfg.json", "sae_weights.safetensors")
    }
    assert set(files) == {"README.md", "training.json", *layout}
    facts = json.loads(files["training.json"])
    assert facts["tokens_seen"] % (8 * 128) == 0 and set(facts["results"]) == {"sae-1", "transcoder-2"}
    assert facts["held_out_tokens"] == 6 * 128
    cfg = json.loads(files["transcoder-2/cfg.json"])
    assert cfg["architecture"] == "jumprelu_transcoder" and cfg["metadata"]["hook_name_out"] == "blocks.2.hook_mlp_out"
    tensors = load_file(folder / "sae-1" / "sae_weights.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float16} and tensors["W_enc"].shape == (192, 32)

    measured = CliRunner().invoke(app, [*arguments, "--evaluate"], catch_exceptions=False)
    assert train_features.table(facts["results"]).splitlines()[-1] in measured.output
    again = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "is finished" in again.output
    other = CliRunner().invoke(app, [*arguments, "--seed", "1"])
    assert isinstance(other.exception, EmbspaceError) and "other settings" in str(other.exception)
    assert files == {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    (folder / "sae-1" / dictionary_evaluation.WEIGHTS).write_bytes(b"half")
    with pytest.raises(EmbspaceError, match=r"sae_weights\.safetensors"):
        SavedDictionary.load(folder / "sae-1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k=0 is not an integer of 1 or more."),
        ({"k": 600}, "k=600 is not an integer"),
        ({"saes": (4,)}, "sae=4 is not an integer from 0 to 3"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 is not a finite number above 0."),
    ],
)
def test_unusable_configurations_raise_an_error(options, message):
    with pytest.raises(EmbspaceError, match=message):
        Dictionaries(demo.catalog.load_base("reviews-small-0", torch.float32)[0], FeatureConfig(**options))
