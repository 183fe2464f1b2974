"""The command line's comparisons: the tables of `compare`, and every mistake as one sentence."""

import io
import re

import pandas as pd
import pytest
from typer.testing import CliRunner

from embspace_lens import EmbeddingLens, align, demo
from embspace_lens.cli import app

SMALL = ["reviews-small-0", "reviews-small-1"]

pytestmark = pytest.mark.skipif(not set(SMALL) <= set(demo.names()), reason="the demo models are not in this checkout")


def run(*arguments):
    return CliRunner().invoke(app, ["align", *arguments])


@pytest.fixture(scope="module")
def found():
    return align(*map(EmbeddingLens.from_pretrained, SMALL), weights="W_V")


@pytest.mark.parametrize("table", ["matches", "correlation", "diagonal"])
def test_every_table_is_the_librarys(found, table):
    result = run(*SMALL, "--weight", "W_V", "--table", table, "--format", "csv")
    assert result.exit_code == 0, result.output
    expected = {"matches": found.matches, "correlation": found.correlation, "diagonal": found.on_diagonal()}[table]
    expected = expected.assign(weight=expected["weight"].astype("str"))
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(result.stdout)), expected, check_dtype=False, rtol=1e-4)


def test_options_reach_the_comparison(tmp_path):
    path = tmp_path / "found.parquet"
    result = run(*SMALL, "--weight", "W_K", "--weight", "W_O", "--space", "residual", "--out", str(path))
    assert result.exit_code == 0 and result.stdout == "" and result.stderr == f"{path}: 8 rows\n"
    expected = align(*map(EmbeddingLens.from_pretrained, SMALL), weights=["W_K", "W_O"], space="residual").matches
    pd.testing.assert_frame_equal(pd.read_parquet(path), expected, check_exact=False, rtol=1e-4)


def test_on_a_terminal_it_says_what_was_found(monkeypatch):
    result = run(*SMALL, "--weight", "W_V", "--vocabulary", "frequent")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 160 and lines[0].split() == ["weight", "layer_a", "layer_b", "correlation"]
    assert re.search(
        r"Alignment\(reviews-small-0 × reviews-small-1: 4 × 4 layers, 4,371 shared tokens; W_V 4 of 4 ", result.stdout
    )
    assert lines[-1] == "Next: embspace-lens neurons --layer 0 --model reviews-small-1 --vocabulary frequent"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([*SMALL, "--space", "raw"], r"--space='raw' is not one of 'embedding', 'residual'\..*"),
        ([*SMALL, "--table", "plot"], r"--table='plot' is not one of 'matches', 'correlation', 'diagonal'\..*"),
        ([*SMALL, "--weight", "W_gate"], r"reviews-small-0's MLP in block 0 is not gated: it has no W_gate\."),
        (
            ["reviews-small-0", "reviews-medium-0", "--space", "residual"],
            r".*d_model=192 and reviews-medium-0 d_model=.*",
        ),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence):
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == "", result.output
    assert re.fullmatch(sentence + r"\n", result.stderr), result.stderr
