"""`embspace-lens relations` and `operations`: every option, and every mistake as one sentence."""

import io
import json
from itertools import pairwise

import pandas as pd
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from embspace_lens import EmbeddingLens, relation_scores, salient_operations
from embspace_lens.cli import app
from embspace_lens.demo.corpus import train_tokenizer

WORDS = [first + second for first in "bcdfglmnprst" for second in ("an", "ot", "ear", "ing")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = train_tokenizer([" ".join(WORDS), "so it was"] * 20, 500)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=16, n_embd=32, n_layer=2, n_head=4)
    config.architectures = ["GPT2LMHeadModel"]
    GPT2LMHeadModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def run(monkeypatch, tmp_path, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "next.json").write_text(json.dumps(list(pairwise(WORDS))))
    (tmp_path / "more.json").write_text(json.dumps({"copying": [[w, w] for w in WORDS], "few": [["so", "it"]]}))

    def invoke(*arguments):
        return CliRunner().invoke(app, [*arguments, "--model", folder])

    return invoke


def pairs():
    return {"next": list(pairwise(WORDS)), "copying": [(w, w) for w in WORDS]}


def table(result):
    assert result.exit_code == 0, result.output
    return pd.read_csv(io.StringIO(result.stdout))


def refused(result, sentence):
    assert result.exit_code == 2 and result.stdout == "", result.output
    assert sentence in result.stderr


def test_all_heads(run, folder):
    lens = EmbeddingLens.from_pretrained(folder, vocabulary="ascii", score="cosine")
    options = ["--layer", "1", "--head", "0-2", "-k", "90", "--shuffles", "150", "--seed", "2", "--no-first-mlp"]
    options += ["--vocabulary", "ascii", "--score", "cosine", "--table", "heads", "--format", "csv"]
    df = table(run("relations", "next.json", *options))
    wanted = dict(layer=1, head=range(3), k=90, n_shuffles=150, seed=2, first_mlp=False)
    expected = relation_scores(lens, {"next": pairs()["next"]}, **wanted)
    pd.testing.assert_frame_equal(df, expected, check_dtype=False, rtol=1e-5)
    other = relation_scores(lens, {"next": pairs()["next"]}, **(wanted | dict(seed=0)))
    assert (other["p_value"] != expected["p_value"]).any()  # the options are seen in the table
    assert len({1, *expected["relation_score"]}) > 2


def test_the_best_heads_of_several_files(run, folder):
    result = run("relations", "more.json", "next.json", "--format", "csv", "--shuffles", "20")
    assert result.stderr == (
        "Fewer than 30 pairs are left of few (0 of 1): no score. The others are not single tokens of tiny.\n"
    )
    df = table(result)
    lens = EmbeddingLens.from_pretrained(folder)
    every = relation_scores(lens, pairs(), n_shuffles=20)
    assert df[["relation", "effect"]].drop_duplicates().shape[0] == len(df) == 4
    for _, row in df.iterrows():
        rows = every[(every["relation"] == row["relation"]) & (every["effect"] == row["effect"])]
        best = rows.loc[rows["relation_score"].idxmax()]
        assert (row["layer"], row["head"]) == (best["layer"], best["head"])
        assert row["relation_score"] == pytest.approx(best["relation_score"], rel=1e-5)


def test_a_table_to_be_read(run):
    result = run("relations", "next.json", "--shuffles", "5")
    assert result.exit_code == 0 and result.stdout.splitlines()[0].split()[:4] == [
        "relation",
        "layer",
        "head",
        "effect",
    ]
    best = table(run("relations", "next.json", "--shuffles", "5", "--format", "csv"))
    clearest = best.sort_values(["p_value", "relation_score"], ascending=[True, False], kind="stable").iloc[0]
    unit = f"--layer {clearest['layer']} --head {clearest['head']} "
    assert f"Next: embspace-lens operations {unit}" in result.stdout
    result = run("operations", "--layer", "0", "--head", "1", "--n", "3", "-k", "2")
    assert result.exit_code == 0 and "→" in result.stdout and "Next: embspace-lens heads --layer 0" in result.stdout


def test_operations(run, folder):
    lens = EmbeddingLens.from_pretrained(folder, vocabulary="ascii", score="centered")
    options = ["--layer", "1", "--head", "2", "--n", "4", "-k", "3", "--lowest", "--no-first-mlp"]
    result = run("operations", *options, "--vocabulary", "ascii", "--score", "centered", "--format", "json")
    assert result.exit_code == 0, result.output
    expected = salient_operations(lens, 1, 2, n=4, k=3, largest=False, first_mlp=False)
    pd.testing.assert_frame_equal(pd.DataFrame(json.loads(result.stdout)), expected, check_dtype=False, rtol=1e-5)


def test_a_file_of_results(run, tmp_path):
    result = run("relations", "next.json", "--shuffles", "5", "--out", "scores.csv", "--table", "heads")
    assert result.exit_code == 0 and result.stdout == "" and "scores.csv: 16 rows" in result.stderr
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 16


def test_mistakes(run, tmp_path):
    refused(run("relations", "absent.json"), "absent.json cannot be read")
    refused(run("relations", "next.json", "next.json"), "holds 'next' a second time")
    refused(run("relations", "next.json", "--table", "worst"), "--table='worst' is not one of 'best', 'heads'.")
    refused(run("relations", "next.json", "--layer", "9"), "is out of range: tiny has 2 layers (0 to 1).")
    refused(run("relations", "next.json", "--shuffles", "0"), "n_shuffles=0 is not a positive number of shuffles.")
    refused(run("operations", "--n", "0"), "n=0 is not between 1 and")
    (tmp_path / "bad.json").write_text('["ab"]')
    refused(run("relations", "bad.json"), "bad.json holds no relation")
