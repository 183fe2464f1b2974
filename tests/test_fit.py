"""From texts to factors in one call: what it is fitted to, and that it can be stopped."""

import bz2
import io
import json
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import zoo
from safetensors.torch import save_file
from typer.testing import CliRunner

from embspace_lens import EmbspaceError, demo
from embspace_lens.cli import app
from embspace_lens.factors import FactorFitter, Factors, demo_factors, fit_factors, top_contexts
from embspace_lens.factors import lime as saliency
from embspace_lens.factors import training as fit
from embspace_lens.factors.pretrained import own_texts
from embspace_lens.forward.states import hidden_states
from embspace_lens.forward.texts import read_texts, texts_of

TEXTS = [" ".join(f"w{2 + (7 * i + 3 * j) % 60}" for j in range(3 + i % 9)) for i in range(60)]
OPTIONS = {"n_factors": 8, "l1": 0.3, "layers": [0, 1], "buffer": 100}
needs_demo = pytest.mark.skipif(
    "reviews-small-0" not in demo.names(), reason="the demo models are not in this checkout"
)


@pytest.fixture(scope="module")
def model(tiny):
    return tiny("gpt2")


@pytest.fixture(scope="module")
def whole(model):
    return fit_factors(model, TEXTS, **OPTIONS)


def test_it_learns_from_every_hidden_state_once_an_epoch(model, monkeypatch):
    seen = []
    update = FactorFitter.update
    monkeypatch.setattr(
        FactorFitter, "update", lambda self, x, weight=None: seen.append((x, weight)) or update(self, x, weight)
    )
    fit_factors(model, TEXTS, **OPTIONS, epochs=2)
    got = torch.cat([x for x, _ in seen])
    own = torch.cat([s for part in hidden_states(model, TEXTS, [0, 1]) for s in part.states.values()])
    assert len(got) == 2 * len(own)
    torch.testing.assert_close(got.sum(dim=0), 2 * own.sum(dim=0), atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(got.sort(dim=0).values[::2], own.sort(dim=0).values, atol=1e-4, rtol=1e-4)
    first = next(iter(hidden_states(model, TEXTS, [0]))).states[0]
    assert not torch.allclose(got[:20], first[:20]), "shuffled"
    monkeypatch.undo()


def test_common_tokens_weigh_less(model, monkeypatch):
    weights = []
    monkeypatch.setattr(FactorFitter, "update", lambda self, x, weight=None: weights.append((x, weight)))
    monkeypatch.setattr(FactorFitter, "flush", lambda self: None)
    texts = ["w5 " * 20] * 10 + ["w9"]
    fit_factors(model, texts, n_factors=4, layers=[-1], l1=0.1)
    ((_, weight),) = weights
    rare = weight.max()
    assert (weight == rare).sum() == 1 and rare == pytest.approx((2 / (201 / zoo.D_VOCAB + 1)) ** -0.5)
    assert weight.min() == pytest.approx((201 / (201 / zoo.D_VOCAB + 1)) ** -0.5)
    weights.clear()
    fit_factors(model, texts, n_factors=4, layers=[-1], l1=0.1, weighting="uniform")
    assert (weights[0][1] == 1).all()


def test_it_is_decided_by_its_seed(model, whole):
    assert torch.equal(fit_factors(model, TEXTS, **OPTIONS).directions, whole.directions)
    assert not torch.equal(fit_factors(model, TEXTS, **OPTIONS, seed=1).directions, whole.directions)
    torch.testing.assert_close(whole.directions.norm(dim=1), torch.ones(8))


@pytest.mark.parametrize("after", [1, 3])
def test_a_fit_that_was_stopped_ends_at_the_same_factors(model, whole, tmp_path, monkeypatch, after):
    folder, flushes = tmp_path / "fit", []
    flush = fit._Fit._flush

    def stops(self):
        flush(self)
        flushes.append(self.number)
        if len(flushes) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(fit, "SECONDS", -1)
    with monkeypatch.context() as m:
        m.setattr(fit._Fit, "_flush", stops)
        with pytest.raises(KeyboardInterrupt):
            fit_factors(model, TEXTS, **OPTIONS, batch_tokens=40, checkpoint=folder)
    held = json.loads((folder / "fit.json").read_text())
    assert held["flushes"] == after and [path.name for path in folder.glob("fitter-*")] == [held["fitter"]]
    again = fit_factors(model, TEXTS, **OPTIONS, batch_tokens=40, checkpoint=folder)
    unbroken = fit_factors(model, TEXTS, **OPTIONS, batch_tokens=40)
    assert torch.equal(again.directions, unbroken.directions)
    changed = zoo.boot(zoo.ZOO["gpt2"]())
    with torch.no_grad():
        changed.blocks[0].mlp.out.weight[0, 0] += 1
    with pytest.raises(EmbspaceError, match=r"holds another fit \(model differ\)"):
        fit_factors(changed, TEXTS, **OPTIONS, batch_tokens=40, checkpoint=folder)
    with pytest.raises(EmbspaceError, match=r"holds another fit \(l1 differ\)"):
        fit_factors(model, TEXTS, **OPTIONS | {"l1": 0.5}, batch_tokens=40, checkpoint=folder)
    (folder / held["fitter"] / "counts.safetensors").write_bytes(b"x") if (folder / held["fitter"]).exists() else None
    for path in folder.glob("fitter-*/counts.safetensors"):
        path.write_bytes(b"x")
    with pytest.raises(EmbspaceError, match="holds no fit that can be read"):
        fit_factors(model, TEXTS, **OPTIONS, batch_tokens=40, checkpoint=folder)


@pytest.mark.parametrize("options", [{}, {"max_vectors": 150}, {"epochs": 2, "buffer": 10_000}])
def test_a_finished_fit_is_not_learnt_from_twice(model, tmp_path, options):
    options = OPTIONS | {"batch_tokens": 40} | options
    unbroken = fit_factors(model, TEXTS, **options)
    for _ in range(3):
        assert torch.equal(fit_factors(model, TEXTS, **options, checkpoint=tmp_path).directions, unbroken.directions)


@pytest.mark.parametrize("step", ["_flush", "flush"])
def test_a_fit_that_was_stopped_while_it_ended(model, tmp_path, monkeypatch, step):
    """With the last states learnt from and saved, before the end was written down."""
    options = OPTIONS | {"batch_tokens": 40}
    unbroken = fit_factors(model, TEXTS, **options)

    class Killed(BaseException):
        pass

    def killed(self):
        raise Killed

    monkeypatch.setattr(fit, "SECONDS", -1)
    with monkeypatch.context() as m:
        end = fit._Fit._flush
        if step == "flush":
            m.setattr(FactorFitter, "flush", killed)
        else:
            m.setattr(fit._Fit, "end", lambda self: (end(self), killed(self)))
        with pytest.raises(Killed):
            fit_factors(model, TEXTS, **options, checkpoint=tmp_path)
    assert torch.equal(fit_factors(model, TEXTS, **options, checkpoint=tmp_path).directions, unbroken.directions)


def test_a_fit_of_other_texts_is_not_gone_on_with(model, tmp_path):
    options = OPTIONS | {"batch_tokens": 40}
    fit_factors(model, TEXTS, **options, checkpoint=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    for other in ([text.replace("w3", "w4") for text in TEXTS], TEXTS[:30], [*TEXTS, "w2 w3"], [*TEXTS, *TEXTS * 20]):
        with pytest.raises(EmbspaceError, match="holds a fit to other texts"):
            fit_factors(model, other, **options, checkpoint=tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ([1], "is not a checkpoint's"),
        ({"options": 3}, "is not a checkpoint's"),
        ({"parts": "x"}, "holds no fit that can be read"),
        ({"fitter": 3}, "holds no fit that can be read"),
        ({"counts": 3}, "counts of 3 tokens"),
    ],
)
def test_a_damaged_checkpoint_is_refused(model, tmp_path, change, sentence):
    fit_factors(model, TEXTS, **OPTIONS, checkpoint=tmp_path)
    facts = json.loads((tmp_path / "fit.json").read_text())
    if "counts" in change:
        save_file({"counts": torch.zeros(3, dtype=torch.int64)}, tmp_path / facts["fitter"] / "counts.safetensors")
    else:
        (tmp_path / "fit.json").write_text(json.dumps(facts | change if isinstance(change, dict) else change))
    with pytest.raises(EmbspaceError, match=sentence):
        fit_factors(model, TEXTS, **OPTIONS, checkpoint=tmp_path)


def test_a_checkpoint_that_cannot_be_written_is_said(model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(EmbspaceError, match="cannot be made a folder"):
        fit_factors(model, TEXTS, **OPTIONS, checkpoint=tmp_path / "file")
    write = Path.write_bytes

    def full(self, data):
        if "counts" in self.name:
            write(self, data[:9])
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(fit, "SECONDS", -1)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(EmbspaceError, match="No space left on device"):
        fit_factors(model, TEXTS, **OPTIONS, checkpoint=tmp_path / "full")
    assert not (tmp_path / "full" / "fit.json").exists()


def test_it_stops_when_enough_was_seen(model, tmp_path):
    fit_factors(model, TEXTS, **OPTIONS, max_vectors=120, batch_tokens=40, checkpoint=tmp_path)
    assert 120 <= json.loads((tmp_path / "fit.json").read_text())["seen"] < 300


class Dataset:
    """As much of a Hugging Face dataset as counts."""

    column_names = ("id", "review")

    def __iter__(self):
        return ({"id": i, "review": text} for i, text in enumerate(TEXTS))

    def __len__(self):
        return len(TEXTS)


def test_texts_as_users_have_them(model, whole, tmp_path):
    pd.DataFrame({"review": TEXTS}).to_parquet(tmp_path / "reviews.parquet")
    (tmp_path / "reviews.txt").write_text("\n\n".join(TEXTS))
    for texts, options in (
        (iter(TEXTS), {}),
        (pd.DataFrame({"review": TEXTS}), {"column": "review"}),
        (Dataset(), {"column": "review"}),
        (tmp_path / "reviews.parquet", {"column": "review"}),
        (str(tmp_path / "reviews.txt"), {}),
    ):
        assert torch.equal(fit_factors(model, texts, **OPTIONS, **options).directions, whole.directions)
    assert list(texts_of(Dataset(), column="review")) == TEXTS and len(texts_of(Dataset(), column="review")) == 60


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"texts": []}, "hold no token"),
        ({"texts": iter(TEXTS), "epochs": 2}, "can be read only once"),
        ({"texts": "nowhere.txt"}, "nowhere.txt is not a file"),
        ({"texts": "one\ntext"}, "texts is one string"),
        ({"texts": Dataset()}, r"no column 'text'; its columns are 'id', 'review'"),
        ({"weighting": "rare"}, "weighting='rare' is neither"),
        ({"epochs": 0}, "epochs=0 is not a positive number"),
        ({"n_factors": 0}, "n_factors"),
        ({"l1": 0}, "l1"),
        ({"layers": [7]}, "layer=7 is out of range"),
        ({"layers": []}, "layers names no layer"),
        ({"texts": None}, "texts=None holds no texts"),
        ({"texts": pd.DataFrame({"review": TEXTS})}, "The table has no column 'text'; its columns are 'review'"),
    ],
)
def test_what_cannot_be_fitted(change, sentence, model):
    arguments = {"texts": TEXTS, **OPTIONS} | change
    with pytest.raises(EmbspaceError, match=sentence):
        fit_factors(model, arguments.pop("texts"), **arguments)


def test_layers_as_users_write_them(model):
    options = {key: value for key, value in OPTIONS.items() if key != "layers"}
    first = fit_factors(model, TEXTS, **options, layers=0)
    for layers in ([0], np.array([0]), (0, 0), range(1)):
        assert torch.equal(fit_factors(model, TEXTS, **options, layers=layers).directions, first.directions)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.parquet", b"PAR1 and then nothing"),
        ("b.parquet", b""),
        ("a.jsonl", b'{"text": "one"}\n{"te'),
        ("a.csv", b""),
        ("b.csv", b"\xff\xfe\x00text\n"),
        ("c.csv", b'text\n"not closed'),
        ("d.csv.gz", b"not gzip"),
        ("e.jsonl.bz2", bz2.compress(b'{"text": "one"}\n' * 99)[:-20]),
        ("a.txt", b"\xff\xfe\x00\x80"),
    ],
)
def test_damaged_texts_are_refused_in_a_sentence(name, data, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(EmbspaceError, match=re.escape(name) + " cannot be read"):
        read_texts(tmp_path / name)


@pytest.mark.parametrize("where", ["nope > 3", "n >", "n + 1", "n.nope()", "@x > 1"])
def test_a_condition_that_is_none_is_refused_in_a_sentence(where, tmp_path):
    pd.DataFrame({"text": ["a", "b"], "n": [1, 2]}).to_csv(tmp_path / "t.csv")
    assert read_texts(tmp_path / "t.csv", where="n > 1") == ["b"]
    with pytest.raises(EmbspaceError, match="is not a condition on the rows"):
        read_texts(tmp_path / "t.csv", where=where)


def test_epochs_read_kept_states(model, tmp_path, monkeypatch):
    module = import_module("embspace_lens.forward")
    ran, compute = [], module.states_of
    monkeypatch.setattr(module, "states_of", lambda *arguments: ran.append(1) or compute(*arguments))
    kept = fit_factors(model, TEXTS, **OPTIONS | {"epochs": 3}, shards=tmp_path / "kept")
    n = len(list((tmp_path / "kept").iterdir()))
    assert len(ran) == n, "each batch is computed once, in the first epoch"
    assert torch.equal(kept.directions, fit_factors(model, TEXTS, **OPTIONS | {"epochs": 3}).directions)


# -- the command line


def run(*arguments):
    return CliRunner().invoke(app, ["factors", *map(str, arguments)])


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "reviews.csv"
    texts = [
        "A good film, and a good cast.",
        "What a bad film!",
        "All of them were good, and all of it was fun.",
        "I left.",
    ]
    pd.DataFrame({"text": texts, "split": ["a", "a", "a", "b"]}).to_csv(path, index=False)
    return path


@needs_demo
def test_factors_are_fitted_and_read_on_the_command_line(reviews, tmp_path):
    folder = tmp_path / "mine"
    result = run(
        "fit", folder, "--texts", reviews, "--n-factors", 6, "--l1", 1.0, "--layer", "0-1", "--where", "split == 'a'"
    )
    assert result.exit_code == 0, result.output
    made = Factors.load(folder)
    model, texts = demo.load("reviews-small-0"), pd.read_csv(reviews)["text"].tolist()
    expected = fit_factors(model, texts[:3], n_factors=6, l1=1.0, layers=[0, 1])
    assert torch.equal(made.directions, expected.directions) and str(folder) in result.stdout
    result = run(
        "contexts",
        "--factors",
        folder,
        "--texts",
        reviews,
        "--layer",
        1,
        "--n",
        2,
        "--factor",
        "1,3",
        "--format",
        "csv",
    )
    assert result.exit_code == 0, result.output
    df = top_contexts(made, model, texts, layers=[1], n=2)
    df = df[df["factor"].isin([1, 3])].reset_index(drop=True)
    got = pd.read_csv(io.StringIO(result.stdout), keep_default_na=False)
    pd.testing.assert_frame_equal(got, df, check_dtype=False, rtol=1e-3)
    for options in (["--levels"], []):
        result = run(
            "importance", "--factors", folder, "--texts", reviews, "--layer", "0-1", *options, "--format", "json"
        )
        assert result.exit_code == 0 and len(json.loads(result.stdout)) == (6 if options else 12), result.output


@needs_demo
def test_saliency_on_the_command_line(reviews):
    pytest.importorskip("captum", reason="saliency needs captum")
    result = run(
        "saliency", "--texts", reviews, "--layer", 3, "--factor", "0-19", "--n-samples", 30, "--n-texts", 1, "--format", "csv"
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    got = pd.read_csv(io.StringIO(result.stdout), keep_default_na=False)
    model, texts = demo.load("reviews-small-0"), pd.read_csv(reviews)["text"].tolist()[:1]
    places = top_contexts(demo_factors(), model, texts, layers=[3], n=1).query("factor < 20")
    expected = saliency(demo_factors(), model, texts, places, n_samples=30)
    assert len(got) and set(got["layer"]) == {3}
    pd.testing.assert_frame_equal(got, expected, check_dtype=False, rtol=1e-3)


@needs_demo
def test_a_site_on_the_command_line(reviews, tmp_path, monkeypatch):
    pytest.importorskip("jinja2", reason="the site needs jinja2")
    site = tmp_path / "site"
    result = run("explore", site, "--texts", reviews, "--layer", "2-3", "--n", 3)
    assert result.exit_code == 0 and str(site / "index.html") in result.stdout, result.output
    assert '"salient":false' in (site / "index.html").read_text(encoding="utf-8")
    about = (site / "about.html").read_text(encoding="utf-8")
    assert "4, reviews.csv" in about and "hidden states of 2 layers" in about
    asked = []
    monkeypatch.setattr("embspace_lens.factors.pretrained.own_texts", lambda model: asked.append(model) or ["A film."])
    pytest.importorskip("captum", reason="saliency needs captum")
    module = import_module("embspace_lens.site.pages")
    monkeypatch.setattr(module, "SAMPLES", 2)
    result = run("explore", site, "--demo", "--saliency", 1)
    assert '"salient":true' in (site / "index.html").read_text(encoding="utf-8")
    assert result.exit_code == 0 and len(asked) == 1, result.output
    about = (site / "about.html").read_text(encoding="utf-8")
    assert "1, sampled from the model" in about and "of 4 layers" in about
    for arguments, sentence in (
        ([], "Give --texts PATH, or --demo"),
        (["--demo", "--texts", reviews], "Give --texts PATH, or --demo"),
        (["--demo", "--factors", tmp_path], "Leave --factors out"),
        (["--demo", "--model", "reviews-small-1"], "factors='reviews-small-1' is not one of"),
    ):
        result = run("explore", site, *arguments)
        assert result.exit_code == 2 and sentence in result.stderr


@needs_demo
def test_a_model_makes_up_texts():
    model = demo.load("reviews-small-0")
    texts = own_texts(model, n=2, n_tokens=8, seed=3)
    assert 1 <= len(texts) <= 2 and all(1 <= len(model.tokenizer(text).input_ids) <= 12 for text in texts)
    assert texts == own_texts(model, n=2, n_tokens=8, seed=3) != own_texts(model, n=2, n_tokens=8, seed=4)
    state = torch.get_rng_state()
    own_texts(model, n=1, n_tokens=2)
    assert torch.equal(state, torch.get_rng_state()) and not any("<|" in text for text in texts)
    with pytest.raises(EmbspaceError, match="does not write text"):
        own_texts(zoo.boot(zoo.ZOO["bert"]()))


@needs_demo
def test_senses_on_the_command_line(tmp_path):
    rows = [
        (i, w, t)
        for i in range(60)
        for w, t in (("they", "pp"), ("left" if i % 2 else "the", "vb" if i % 2 else "at"), ("left", "nn"))
    ]
    path = tmp_path / "tagged.csv"
    pd.DataFrame(rows, columns=["sentence", "word", "tag"]).to_csv(path, index=False)
    result = run("senses", "--tagged", path, "--word", "left=vb", "--format", "csv")
    assert result.exit_code == 0, result.output
    df = pd.read_csv(io.StringIO(result.stdout))
    assert df["method"].tolist() == ["factor", "logistic", "majority"] and set(df["n"]) == {45}
    assert df["f1"].iloc[1] > 0.9


@needs_demo
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["contexts", "--model", "reviews-small-1"], r"factors='reviews-small-1' is not one of 'reviews-small-0'"),
        (["contexts", "--factors", "nowhere"], "does not exist"),
        (["importance", "--layer", "9"], "layer=9 is out of range"),
        (["contexts", "--factor", "5000"], "factor=5000 is out of range: the dictionary has 1000 factors"),
        (["saliency", "--factor", "0,1000"], "factor=1000 is out of range"),
    ],
)
def test_mistakes_are_sentences(arguments, sentence, reviews):
    result = run(*arguments, "--texts", reviews)
    assert result.exit_code == 2 and sentence.strip("r") in result.stderr and result.stderr.count("\n") == 1


@needs_demo
def test_factors_come_with_the_demo_model():
    factors = demo_factors()
    assert repr(factors) == "Factors(1000 factors, d_model 192, l1 2)"
    x = torch.cat([s for part in hidden_states(demo.load("reviews-small-0"), ["A wonderful film, with a fine cast."], [0, 1, 2, 3]) for s in part.states.values()])  # fmt: skip
    left = (x - factors.decode(factors.encode(x))).square().sum() / (x - x.mean(0)).square().sum()
    assert left < 0.3, "they explain states that they were not fitted to"
