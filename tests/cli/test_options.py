"""Selectors, choices and ranges: the values that options accept, and errors for other values."""

from typing import get_args

import pytest
import typer
from command_line import check_refusal

from embspace_lens.cli.options import VOCABULARIES, Indices, ScoreName
from embspace_lens.lens import MASKS
from embspace_lens.space import embeddings


@pytest.mark.parametrize(
    ("text", "indices"),
    [("3", [3]), ("0,2", [0, 2]), ("1-4", [1, 2, 3, 4]), ("0, 2-3", [0, 2, 3]), ("5-5", [5])],
)
def test_indices_are_numbers_lists_and_ranges(text, indices):
    assert Indices(text) == indices
    assert Indices(text).text == text


@pytest.mark.parametrize("text", ["", "x", "-1", "1-", "1,,2", "1.5", "²", "1-2-3"])
def test_other_indices_are_refused(text):
    with pytest.raises(typer.BadParameter, match="selects nothing. Give one number .3., several .0,2. or a range"):
        Indices(text)


def test_ranges_that_end_before_they_begin_are_refused():
    with pytest.raises(typer.BadParameter, match="'4-1' selects nothing: 4 is greater than 1. Give 1-4."):
        Indices("4-1")


def test_indices_too_large_for_memory_are_refused():
    with pytest.raises(typer.BadParameter, match="no model has an index of 99,999,999,999"):
        Indices("0-99999999999")


def test_scores_and_vocabularies_are_those_of_the_lens():
    assert get_args(ScoreName) == get_args(embeddings.Score)
    assert VOCABULARIES.split("|") == ["all", *MASKS]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["neurons", "--layer", "x"], r"Invalid value for '--layer': 'x' selects nothing\. Give one number .*"),
        (["neurons", "-k", "0"], r"Invalid value for '-k': .*1.*"),
        (["search", "#5", "-k", "0"], r"Invalid value for '-k': .*"),
        (["relations", "x.json", "--shuffles", "0"], r"Invalid value for '--shuffles': .*"),
        (["operations", "--n", "0"], r"Invalid value for '--n': .*"),
        (["evidence", "related-pairs", "--seeds", "1"], r"Invalid value for '--seeds': .*"),
        (["neurons", "--score", "cos"], r"Invalid value for '--score': 'cos' is not one of 'dot', 'centered', 'cosine'\."),
        (["neurons", "--format", "cvs"], r"Invalid value for '--format': 'cvs' is not one of 'table', 'csv', .*"),
        (["align", "a", "b", "--space", "raw"], r"Invalid value for '--space': 'raw' is not one of 'embedding', 'residual'\."),
        (["align", "a", "b", "--table", "plot"], r"Invalid value for '--table': 'plot' is not one of 'matches', .*"),
        (["difference", "a", "--table", "heads"], r"Invalid value for '--table': 'heads' is not one of 'components', .*"),
        (["relations", "x.json", "--table", "worst"], r"Invalid value for '--table': 'worst' is not one of 'best', 'heads'\."),
        (["evidence", "recall", "--texts", "x", "--target", "both"], r"Invalid value for '--target': 'both' is not .*"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_in_one_line(run, arguments, message):
    check_refusal(run(*arguments), message)
