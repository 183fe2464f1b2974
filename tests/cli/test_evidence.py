"""`embspace-lens evidence …`: the tables of the library, and errors."""

import json

import pandas as pd
import pytest
from command_line import TEXTS, check_refusal, read_csv, save_model
from typer.testing import CliRunner

from embspace_lens import EmbeddingLens, evidence
from embspace_lens.cli import app


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def run(monkeypatch, tmp_path, folder):
    """Run a command of the group on the model, in a folder with texts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS))
    lines = [json.dumps({"review": text, "part": i}) for i, text in enumerate(TEXTS)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))

    def invoke(*arguments):
        return CliRunner().invoke(app, ["evidence", *arguments, "--model", folder])

    return invoke


def test_options_of_related_pairs_are_passed_to_the_library(run, folder):
    lens = EmbeddingLens.from_pretrained(folder, score="cosine", vocabulary="ascii")
    options = ["--layer", "1", "--pair", "W_V-W_O", "--pair", "W_in-W_out", "-k", "7", "--seeds", "3"]
    df = read_csv(run("related-pairs", *options, "--score", "cosine", "--vocabulary", "ascii", "--format", "csv"))
    expected = evidence.related_pairs(lens, layer=1, pairs=["W_V-W_O", "W_in-W_out"], k=7, seeds=3)
    pd.testing.assert_frame_equal(df, expected, check_dtype=False, rtol=1e-5)


def test_options_of_recall_are_passed_to_the_library(run, folder):
    lens = EmbeddingLens.from_pretrained(folder)
    options = ["--weight", "W_out", "--target", "final", "-k", "9", "--active", "2", "--seeds", "2", "--layer", "0"]
    df = read_csv(run("recall", "--texts", "texts.txt", *options, "--format", "csv"))
    expected = evidence.hidden_state_recall(
        lens, TEXTS, weight="W_out", target="final", k=9, n_active=2, seeds=2, layer=0
    )
    expected["weight"] = expected["weight"].astype("str")
    pd.testing.assert_frame_equal(df, expected, check_dtype=False, rtol=1e-5)


def test_recall_reads_selected_rows_of_a_table(run):
    options = ["--weight", "W_out", "--target", "final", "-k", "9", "--active", "2", "--seeds", "2", "--layer", "0"]
    rows = ["--texts", "texts.jsonl", "--column", "review", *options, "--format", "csv"]
    n_all, n_where, n_first = (
        read_csv(run("recall", *rows, *more))["n"].iloc[0]
        for more in ([], ["--where", "part == 0"], ["--n-texts", "1"])
    )
    assert n_where == n_first < n_all


def test_options_of_keep_k_are_passed_to_the_library(run, folder):
    lens = EmbeddingLens.from_pretrained(folder)
    options = ["-k", "5", "-k", "50", "--inverse", "pinv", "--n", "8", "--seed", "3"]
    df = read_csv(run("keep-k", *options, "--format", "csv"))
    expected = evidence.keep_k(lens, ks=[5, 50], inverses="pinv", n=8, seed=3)
    pd.testing.assert_frame_equal(df, expected, check_dtype=False, rtol=1e-4)


def test_measurements_are_printed_as_a_table_with_a_hint(run):
    lines = run("related-pairs", "--layer", "0", "-k", "5").stdout.splitlines()
    assert lines[0].split() == ["layer", "pair", "sample", "jaccard", "low", "high", "n"]
    assert len(lines) == 9 and lines[-1].startswith("Next: embspace-lens evidence keep-k --model")
    assert all(len(line) <= 100 for line in lines[:-1])


def test_only_the_named_file_is_written(run, tmp_path):
    assert run("keep-k", "-k", "5", "--n", "5", "--out", "similarity.parquet").exit_code == 0
    assert pd.read_parquet(tmp_path / "similarity.parquet")["k"].tolist() == [5] * 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["similarity.parquet", "texts.jsonl", "texts.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["related-pairs", "--pair", "W_in-Wout"], r"pairs='W_in-Wout' is not one of .*"),
        (["related-pairs", "-k", "100000"], r"k=100000 is not an integer from 1 to \d+, the number of tokens .*"),
        (["recall", "--texts", "nothing.txt"], r"nothing\.txt .*"),
        (["recall", "--texts", "texts.jsonl"], r"texts\.jsonl has no column 'text'.*"),
        (["recall", "--texts", "texts.txt", "--weight", "W_gate"], r".* is not gated: it has no W_gate\."),
        (["keep-k", "--inverse", "none"], r"inverses='none' is not one of 'transpose', 'pinv'.*"),
    ],
)
def test_wrong_texts_and_selections_are_refused(run, arguments, message):
    check_refusal(run(*arguments), message)
