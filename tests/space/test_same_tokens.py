"""Pairs of tokens that are the same word, compared with a rule that looks at two texts at a time."""

import re

import pytest
from unchecked import unchecked_types

from embspace_lens import EmbspaceError
from embspace_lens.space.same_tokens import same_pairs

WORDS = [" walk", "walk", " Walk", " walks", " walked", " walking", " make", " making", " makes", " story", " stories"]
WORDS += [
    " the",
    " then",
    " they",
    " her",
    " here",
    " car",
    " care",
    " cars",
    " caring",
    "",
    " ",
    "\n",
    "!",
    " don't",
    "ß",
    "SS",
]


def test_the_fuzzy_rule_is_about_letters_alone():
    """Unrelated words that differ by a regular ending are the same."""
    for pair in (["numb", "number"], ["inter", "interest"]):
        assert len(same_pairs(pair, "fuzzy")) == 4 and len(same_pairs(pair, "exact")) == 2


def is_same(a, b):
    """Two texts at a time, by regular expressions."""
    a, b = a.strip().casefold(), b.strip().casefold()
    if a == b:
        return True
    classes = (r"(|s|es|ed|ing|er|ers|est|ly|'s)", r"(e|es|ed|ing|er|ers|est|ely)", r"(y|ies|ied|ier|iest|ily)")
    for endings in classes:
        for n in range(3, len(a) + 1):
            stem = re.escape(a[:n])
            if a[:n].isalpha() and all(re.fullmatch(stem + endings, text) for text in (a, b)):
                return True
    return False


def test_fuzzy_pairs_are_those_of_the_rule_for_two_texts():
    n = len(WORDS)
    expected = [i * n + j for i in range(n) for j in range(n) if is_same(WORDS[i], WORDS[j])]
    assert same_pairs(WORDS, "fuzzy").tolist() == expected


def test_examples_of_same_words():
    def is_excluded(a, b, rule):
        return 1 in same_pairs([a, b], rule).tolist()

    for a, b in [(" walk", "Walk"), (" walks", " walking"), (" make", " making"), (" story", " stories"), ("\n", "  ")]:
        assert is_excluded(a, b, "fuzzy") and not is_excluded(a, b, "exact")
    for a, b in [(" the", " then"), (" her", " here"), (" car", " care"), (" he", " her"), (" 100", " 100s")]:
        assert not is_excluded(a, b, "fuzzy")
    assert is_excluded("w5", "w5", "exact")


def test_unknown_rule_raises():
    with unchecked_types(), pytest.raises(EmbspaceError, match="exclude_same='similar' is not one of 'exact', 'fuzzy'"):
        same_pairs(WORDS, "similar")
