"""`embspace-lens evidence …`: every command and option, and every mistake as one sentence."""

import io
import json

import pandas as pd
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from embspace_lens import EmbeddingLens, evidence
from embspace_lens.cli import app
from embspace_lens.demo.corpus import train_tokenizer

TEXTS = ["the film was a wonderful film and the actors were good", "a bad film that nobody wants to watch twice"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = train_tokenizer(TEXTS * 20, 300)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=16, n_embd=32, n_layer=2, n_head=4)
    config.architectures = ["GPT2LMHeadModel"]
    GPT2LMHeadModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def run(monkeypatch, tmp_path, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS))
    lines = [json.dumps({"review": text, "part": i}) for i, text in enumerate(TEXTS)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))

    def invoke(*arguments):
        return CliRunner().invoke(app, ["evidence", *arguments, "--model", folder])

    return invoke


def table(result):
    assert result.exit_code == 0, result.output
    return pd.read_csv(io.StringIO(result.stdout))


def test_related_pairs(run, folder):
    lens = EmbeddingLens.from_pretrained(folder, score="cosine", vocabulary="ascii")
    options = ["--layer", "1", "--pair", "W_V-W_O", "--pair", "W_in-W_out", "-k", "7", "--seeds", "3"]
    df = table(run("related-pairs", *options, "--score", "cosine", "--vocabulary", "ascii", "--format", "csv"))
    expected = evidence.related_pairs(lens, layer=1, pairs=["W_V-W_O", "W_in-W_out"], k=7, seeds=3)
    pd.testing.assert_frame_equal(df, expected, check_dtype=False, rtol=1e-5)


def test_recall(run, folder):
    lens = EmbeddingLens.from_pretrained(folder)
    options = ["--weight", "W_out", "--target", "final", "-k", "9", "--active", "2", "--seeds", "2", "--layer", "0"]
    df = table(run("recall", "--texts", "texts.txt", *options, "--format", "csv"))
    expected = evidence.hidden_state_recall(
        lens, TEXTS, weight="W_out", target="final", k=9, n_active=2, seeds=2, layer=0
    )
    expected["weight"] = expected["weight"].astype("str")
    pd.testing.assert_frame_equal(df, expected, check_dtype=False, rtol=1e-5)
    rows = ["--texts", "texts.jsonl", "--column", "review", *options, "--format", "csv"]
    assert table(run("recall", *rows))["n"].tolist() == expected["n"].tolist()
    one = [table(run("recall", *rows, *more))["n"].iloc[0] for more in (["--where", "part == 0"], ["--n-texts", "1"])]
    assert one[0] == one[1] < expected["n"].iloc[0]


def test_keep_k(run, folder):
    lens = EmbeddingLens.from_pretrained(folder)
    df = table(run("keep-k", "-k", "5", "-k", "50", "--inverse", "pinv", "--n", "8", "--seed", "3", "--format", "csv"))
    expected = evidence.keep_k(lens, ks=[5, 50], inverses="pinv", n=8, seed=3)
    pd.testing.assert_frame_equal(df, expected, check_dtype=False, rtol=1e-4)


def test_a_terminal_gets_lines_and_a_hint(run):
    lines = run("related-pairs", "--layer", "0", "-k", "5").stdout.splitlines()
    assert lines[0].split() == ["layer", "pair", "sample", "jaccard", "low", "high", "n"]
    assert len(lines) == 9 and lines[-1].startswith("Next: embspace-lens evidence keep-k --model")
    assert all(len(line) <= 100 for line in lines[:-1])


def test_a_file_is_written_whole(run, tmp_path):
    assert run("keep-k", "-k", "5", "--n", "5", "--out", "kept.parquet").exit_code == 0
    assert pd.read_parquet(tmp_path / "kept.parquet")["k"].tolist() == [5] * 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.parquet", "texts.jsonl", "texts.txt"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["related-pairs", "--pair", "W_in-Wout"], "pairs='W_in-Wout' is not one of"),
        (["related-pairs", "-k", "100000"], "k=100000 is not between 1 and"),
        (["related-pairs", "--layer", "x"], "--layer 'x' selects nothing."),
        (["related-pairs", "--seeds", "1", "-k", "5"], "seeds=1 is not a number of shuffles"),
        (["recall", "--texts", "nothing.txt"], "nothing.txt is not a file."),
        (["recall", "--texts", "texts.jsonl"], "texts.jsonl has no column 'text'"),
        (["recall", "--texts", "texts.txt", "--weight", "W_gate"], "is not gated: it has no W_gate"),
        (["keep-k", "--inverse", "none"], "inverses='none' is not one of 'transpose', 'pinv'"),
    ],
)
def test_mistakes_are_one_sentence(run, arguments, sentence):
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and sentence in result.stderr


def test_help_lists_the_measurements():
    result = CliRunner().invoke(app, ["evidence", "--help"])
    assert all(name in result.stdout for name in ("related-pairs", "recall", "keep-k"))
