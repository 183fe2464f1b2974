"""Shares of contexts that follow a rule equal counts by hand, beside the contexts of other factors."""

import re

import numpy as np
import pytest
from tables import check_tidy

from embspace_lens import EmbspaceError
from embspace_lens.factors import pattern_share
from embspace_lens.tables.frames import tidy

COLUMNS = ["factor", "layer", "rank", "token_string", "before", "after"]


@pytest.fixture
def contexts():
    """Factor 1 is active inside parentheses in layer 1 only; factor 2 is never."""
    rows = [
        (1, 0, 0, " big", "a", " dog)"),
        (1, 0, 1, " big", "a (very", " dog)"),
        (1, 1, 0, " big", "a (very", " dog)"),
        (1, 1, 1, " dog", "the (small", ")"),
        (2, 0, 0, " big", "a", " dog"),
        (2, 1, 0, " big", "a", " dog"),
        (2, 1, 1, " dog", "(no)", ""),
        (2, 1, 2, " dog", "(yes", ""),
    ]
    return tidy(COLUMNS, [dict(zip(COLUMNS, row)) for row in rows], kind="contexts")


def test_share_and_control_equal_counts(contexts):
    df = pattern_share(contexts, r"\([^)]*«")
    check_tidy(df, ["factor", "layer"], ["factor", "layer", "share", "control", "low", "high", "n"])
    assert df["share"].tolist() == pytest.approx([1 / 2, 1, 0, 1 / 3])
    assert df["control"].tolist() == pytest.approx([0, 1 / 3, 1 / 2, 1])
    assert df["n"].tolist() == [2, 2, 1, 3]
    assert (
        df["low"].isna().tolist() == [False, False, True, False]
        and (df["low"].dropna() <= df["share"].iloc[[0, 1, 3]]).all()
    )


def test_expressions_and_functions_of_the_same_rule_agree(contexts):
    by_function = pattern_share(contexts, lambda before, target, after: "(" in before and ")" not in before)
    assert by_function.equals(pattern_share(contexts, r"\([^)]*«"))
    assert by_function.equals(pattern_share(contexts, re.compile(r"\([^)]*«")))
    assert pattern_share(contexts, r"very big")["share"].tolist() == [0.5, 0.5, 0, 0], "without marks the text has none"


def test_one_factor_has_no_control(contexts):
    df = pattern_share(contexts[contexts["factor"] == 1], "dog")
    assert np.isnan(df["control"]).all() and df["share"].tolist() == [1, 1]
    assert pattern_share(contexts.iloc[:0], "dog").columns.tolist() == df.columns.tolist()


def test_invalid_rules_and_tables_are_refused(contexts):
    with pytest.raises(EmbspaceError, match=r"rule='\(' is not a regular expression: missing \), .* Escape characters"):
        pattern_share(contexts, "(")
    with pytest.raises(EmbspaceError, match="contexts has no column 'before'"):
        pattern_share(contexts.drop(columns="before"), "dog")


def test_other_types_are_refused(contexts, unchecked_types):
    with pytest.raises(EmbspaceError, match="rule=3 is not a rule. Pass a regular expression, or a function"):
        pattern_share(contexts, 3)
