"""The script that trains a classifier from a demo model, on a few short texts."""

import json

import pandas as pd
import pytest
import torch
import typer
import zoo
from safetensors.torch import load_file
from transformers import AutoTokenizer
from typer.testing import CliRunner

from embspace_lens import EmbeddingLens, demo
from embspace_lens.demo import tune

pytestmark = pytest.mark.skipif(
    "reviews-small-0" not in demo.names(), reason="the demo models are not in this checkout"
)

GOOD, BAD = "A wonderful, superb film about {}.", "An awful, boring film about {}."
TOPICS = ["dogs", "cats", "war", "love", "a house", "the sea", "trains", "music", "Paris", "time"]


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    path = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    rows = [(text.format(topic), label) for topic in TOPICS for text, label in ((GOOD, "pos"), (BAD, "neg"))]
    pd.DataFrame(rows, columns=["text", "label"]).assign(split=["train"] * 14 + ["test"] * 6).to_csv(path, index=False)
    return path


def run(folder, reviews, *options):
    app = typer.Typer()
    app.command()(tune.main)
    arguments = [
        "reviews-small-0",
        str(reviews),
        str(folder),
        "--where",
        "split == 'train'",
        "--held-out",
        "split == 'test'",
    ]
    training_options = [
        "--epochs",
        "6",
        "--batch-size",
        "4",
        "--n-tokens",
        "16",
        "--learning-rate",
        "0.002",
        "--device",
        "cpu",
    ]
    return CliRunner().invoke(app, [*arguments, *training_options, *options])


@pytest.fixture(scope="module")
def tuned(reviews, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "mine"
    result = run(folder, reviews)
    assert result.exit_code == 0, result.output
    return folder


def test_classifier_learns_and_its_card_states_the_accuracy(tuned):
    facts = json.loads((tuned / "difference.json").read_text())
    assert facts["base"] == "reviews-small-0" and facts["labels"] == ["neg", "pos"] and facts["held_out_texts"] == 6
    assert facts["held_out_accuracy"] == 1.0
    assert "Held-out accuracy: 1.000 over 6 texts" in (tuned / "README.md").read_text()
    assert sorted(path.name for path in tuned.iterdir()) == ["README.md", "difference.json", "difference.safetensors"]


def test_difference_contains_the_last_blocks_and_the_head(tuned):
    tensors = load_file(tuned / "difference.safetensors")
    assert {name.split(".")[3] for name in tensors if name.startswith("difference")} == {"2", "3"}
    assert {name for name in tensors if name.startswith("head")} == {"head.linear.weight", "head.linear.bias"}


def test_loaded_classifier_classifies_as_the_trained_one(tuned):
    model, head = demo.load_tuned(tuned)
    texts = [text.format(topic) for topic in TOPICS[-3:] for text in (GOOD, BAD)]
    guesses = []
    for text in texts:
        _, cache = model.run_with_cache(model.to_tokens(text))
        states = cache["blocks.3.hook_resid_post"]
        mask = torch.ones(states.shape[:2], dtype=torch.bool)
        mask[:, 0] = False
        guesses.append(head.labels[int(head(states, mask).argmax())])
    assert guesses == ["pos", "neg"] * 3
    before = EmbeddingLens.from_pretrained("reviews-small-0").weights
    assert torch.equal(EmbeddingLens(model).weights.W_in(1), before.W_in(1))


def test_classifier_is_determined_by_the_seed(tuned, reviews, tmp_path):
    same_seed_folder, other_seed_folder = tmp_path / "again", tmp_path / "other"
    assert (
        run(same_seed_folder, reviews).exit_code == 0 and run(other_seed_folder, reviews, "--seed", "1").exit_code == 0
    )
    first, same_seed, different_seed = (
        load_file(folder / "difference.safetensors") for folder in (tuned, same_seed_folder, other_seed_folder)
    )
    assert all(torch.equal(first[name], same_seed[name]) for name in first) and first.keys() == same_seed.keys()
    assert not torch.equal(first["head.linear.weight"], different_seed["head.linear.weight"])


def test_resumed_run_gives_the_same_classifier(tuned, reviews, tmp_path, monkeypatch):
    folder, steps = tmp_path / "mine", []
    step = torch.optim.AdamW.step

    def interrupt(self, *arguments, **options):
        steps.append(1)
        if len(steps) == 9:
            raise KeyboardInterrupt
        return step(self, *arguments, **options)

    class Clock:
        """A clock on which two minutes pass between two calls."""

        now = 0.0

        @classmethod
        def monotonic(cls):
            cls.now += 120
            return cls.now

    with monkeypatch.context() as m:
        m.setattr(torch.optim.AdamW, "step", interrupt)
        m.setattr(tune, "time", Clock)
        assert run(folder, reviews).exit_code != 0
    assert (folder / "checkpoint.safetensors").exists() and not (folder / "difference.json").exists()
    steps_taken = []
    with monkeypatch.context() as m:
        m.setattr(torch.optim.AdamW, "step", lambda self, *a, **o: steps_taken.append(1) or step(self, *a, **o))
        assert run(folder, reviews).exit_code == 0
    assert len(steps_taken) == 24 - 8, "the steps before the checkpoint are not repeated"
    uninterrupted, resumed = (load_file(f / "difference.safetensors") for f in (tuned, folder))
    assert all(torch.equal(uninterrupted[name], resumed[name]) for name in uninterrupted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n-blocks", "5"], "n_blocks=5 is not an integer from 1 to 4, the number of blocks of reviews-small-0."),
        (["--epochs", "0"], "epochs=0 is not an integer of 1 or more."),
        (["--label", "stars"], "has no column 'stars'"),
        (["--where", "label == 'pos'"], "holds only 'pos'"),
    ],
)
def test_unusable_options_raise_an_error(options, message, reviews, tmp_path):
    result = run(tmp_path / "mine", reviews, *options)
    assert result.exit_code == 1 and message in str(result.exception)
    assert not (tmp_path / "mine" / "difference.json").exists()


@pytest.mark.parametrize("name", ["gpt_neox", "llama", "opt"])
def test_causal_models_of_other_architectures_are_tuned(name, tmp_path):
    base, folder = tmp_path / "base", tmp_path / "mine"
    zoo.ZOO[name]().save_pretrained(base)
    zoo.tokenizer().save_pretrained(base)
    texts = [f"w{i} w{i + 1} w{5 * (i % 2) + 50}" for i in range(20)]
    pd.DataFrame({"text": texts, "label": ["even", "odd"] * 10}).to_csv(tmp_path / "texts.csv", index=False)
    app = typer.Typer()
    app.command()(tune.main)
    options = ["--n-blocks", "1", "--n-tokens", "6", "--epochs", "2", "--batch-size", "5", "--device", "cpu"]
    result = CliRunner().invoke(app, [str(base), str(tmp_path / "texts.csv"), str(folder), *options])
    assert result.exit_code == 0, (result.output, result.exception)
    tensors = load_file(folder / "difference.safetensors")
    changed = [key.removeprefix("difference.") for key in tensors if key.startswith("difference.")]
    assert changed and all(".1." in key for key in changed)
    model, head = demo.load_tuned(folder)
    before, after = EmbeddingLens.from_pretrained(base).weights, EmbeddingLens(model).weights
    assert torch.equal(after.W_out(0), before.W_out(0)) and head.labels == ("even", "odd")
    assert not torch.equal(after.W_V(1), before.W_V(1))


def test_mask_excludes_the_end_of_text_token():
    tokenizer = AutoTokenizer.from_pretrained(demo.MODELS / "tokenizer", local_files_only=True)
    tokens, mask = tune.encode(["A fine film.", ""], tokenizer, 4)
    text_ids = tokenizer("A fine film.", add_special_tokens=False)["input_ids"][:3]
    end_of_text = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert tokens.tolist() == [[end_of_text, *text_ids], [end_of_text] * 4]
    assert mask.tolist() == [[False, True, True, True], [False] * 4]
