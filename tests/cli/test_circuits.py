"""`embspace-lens relations` and `operations`: the tables of the library, and errors."""

import json
from itertools import pairwise

import pandas as pd
import pytest
from command_line import check_refusal, read_csv, save_model
from typer.testing import CliRunner

from embspace_lens import EmbeddingLens, relation_scores, salient_operations
from embspace_lens.circuits.relations import unread_words
from embspace_lens.cli import app

WORDS = [first + second for first in "bcdfglmnprst" for second in ("an", "ot", "ear", "ing")]
RELATIONS = {"next": list(pairwise(WORDS)), "copying": [(word, word) for word in WORDS]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model in whose vocabulary each of WORDS is one token."""
    texts = [" ".join(WORDS), "so it was"]
    return save_model(tmp_path_factory.mktemp("models") / "tiny", texts, n_tokens=500)


@pytest.fixture
def run(monkeypatch, tmp_path, folder):
    """Run a command on the model, in a folder with relations."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "next.json").write_text(json.dumps(RELATIONS["next"]))
    (tmp_path / "more.json").write_text(json.dumps({"copying": RELATIONS["copying"], "few": [["so", "it"]]}))

    def invoke(*arguments):
        return CliRunner().invoke(app, [*arguments, "--model", folder])

    return invoke


def test_options_of_relations_are_passed_to_the_library(run, folder):
    lens = EmbeddingLens.from_pretrained(folder, vocabulary="ascii", score="cosine")
    options = ["--layer", "1", "--head", "0-2", "-k", "90", "--shuffles", "150", "--seed", "2", "--no-first-mlp"]
    options += ["--vocabulary", "ascii", "--score", "cosine", "--table", "heads", "--format", "csv"]
    df = read_csv(run("relations", "next.json", *options))
    arguments = dict(layer=1, head=range(3), k=90, n_shuffles=150, seed=2, first_mlp=False)
    expected = relation_scores(lens, {"next": RELATIONS["next"]}, **arguments)
    pd.testing.assert_frame_equal(df, expected, check_dtype=False, rtol=1e-5)
    other_seed = relation_scores(lens, {"next": RELATIONS["next"]}, **(arguments | dict(seed=0)))
    assert (other_seed["p_value"] != expected["p_value"]).any()
    assert len({1, *expected["relation_score"]}) > 2


def test_relations_of_several_files_list_the_best_head_of_each(run, folder):
    result = run("relations", "more.json", "next.json", "--format", "csv", "--shuffles", "20")
    warning, *left_out = result.stderr.splitlines()
    assert "Fewer than 30 pairs" in warning and "few" in warning
    lens = EmbeddingLens.from_pretrained(folder)
    relations = RELATIONS | {"few": [("so", "it")]}
    words = {name: unread_words(lens, relations[name]) for name in sorted(relations)}
    expected = [
        f"{name}: {len(w)} words are not single tokens: {', '.join(map(repr, w))}" for name, w in words.items() if w
    ]
    assert left_out == expected
    df = read_csv(result)
    expected = relation_scores(lens, RELATIONS, n_shuffles=20)
    assert df[["relation", "effect"]].drop_duplicates().shape[0] == len(df) == 4
    for _, row in df.iterrows():
        heads = expected[(expected["relation"] == row["relation"]) & (expected["effect"] == row["effect"])]
        best = heads.loc[heads["relation_score"].idxmax()]
        assert (row["layer"], row["head"]) == (best["layer"], best["head"])
        assert row["relation_score"] == pytest.approx(best["relation_score"], rel=1e-5)


@pytest.mark.parametrize("table", ["best", "heads"])
def test_relations_without_a_score_are_named_and_refused(run, tmp_path, table):
    (tmp_path / "two.json").write_text(json.dumps({"few": [["so", "it"]], "none": [["so", "it"]] * 2}))
    result = run("relations", "two.json", "--shuffles", "5", "--table", table, "--out", "table.csv")
    assert result.exit_code == 2 and result.stdout == "" and not (tmp_path / "table.csv").exists()
    assert result.stderr.splitlines()[-1] == (
        "No relation has a score: 'few', 'none' have fewer than 30 pairs of words that are single tokens of this lens. "
        "Give more pairs, or read more tokens."
    )


def test_hint_of_relations_names_the_best_head(run):
    result = run("relations", "next.json", "--shuffles", "5")
    assert result.exit_code == 0
    assert result.stdout.split()[:4] == ["relation", "layer", "head", "effect"]
    best = read_csv(run("relations", "next.json", "--shuffles", "5", "--format", "csv"))
    best_row = best.sort_values(["p_value", "relation_score"], ascending=[True, False], kind="stable").iloc[0]
    assert f"operations --layer {best_row['layer']} --head {best_row['head']} " in result.stdout


def test_relations_are_written_to_a_file(run, tmp_path):
    result = run("relations", "next.json", "--shuffles", "5", "--out", "scores.csv", "--table", "heads")
    assert result.exit_code == 0 and result.stdout == "" and "scores.csv: 16 rows" in result.stderr
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 16


def test_options_of_operations_are_passed_to_the_library(run, folder):
    lens = EmbeddingLens.from_pretrained(folder, vocabulary="ascii", score="centered")
    options = ["--layer", "1", "--head", "2", "--n", "4", "-k", "3", "--lowest", "--no-first-mlp"]
    result = run("operations", *options, "--vocabulary", "ascii", "--score", "centered", "--format", "json")
    assert result.exit_code == 0, result.output
    expected = salient_operations(lens, 1, 2, n=4, k=3, largest=False, first_mlp=False)
    pd.testing.assert_frame_equal(pd.DataFrame(json.loads(result.stdout)), expected, check_dtype=False, rtol=1e-5)


def test_operations_are_printed_as_pairs(run):
    result = run("operations", "--layer", "0", "--head", "1", "--n", "3", "-k", "2")
    assert result.exit_code == 0 and "→" in result.stdout and "Next: embspace-lens heads --layer 0" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["relations", "absent.json"], r"absent\.json cannot be read.*"),
        (["relations", "next.json", "next.json"], r".*'next'.*"),
        (["relations", "bad.json"], r"bad\.json does not hold relations\. .*"),
        (["relations", "next.json", "--layer", "9"], r"layer=9 is out of range: tiny has 2 layers \(0 to 1\)\."),
        (["operations", "--n", "9999"], r"n=9999 is not .* \d+, the number of tokens that this lens reads\."),
    ],
)
def test_wrong_relations_and_selections_are_refused(run, tmp_path, arguments, message):
    (tmp_path / "bad.json").write_text('["ab"]')
    check_refusal(run(*arguments), message)


def test_one_bad_relation_does_not_spoil_a_file(run, tmp_path):
    (tmp_path / "mixed.json").write_text(json.dumps({"bad": ["ab"], "copying": RELATIONS["copying"]}))
    result = run("relations", "mixed.json", "--layer", "0", "--format", "csv", "--shuffles", "5")
    assert result.stderr.splitlines()[0] == (
        "mixed.json: the relation 'bad' is not a list of pairs of words, and is left out."
    )
    assert set(read_csv(result)["relation"]) == {"copying"}
