"""Tokens and numbers as they are displayed."""

import pytest
from handmade import UNSAFE_TOKENS, assert_harmless

from embspace_lens.display.measurements import format_measure
from embspace_lens.display.tokens import chip, display, for_terminal, format_score, pair, pair_chip, visible, width


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" film", "␣film"),
        ("film", "film"),
        ("\n", "⏎"),
        ("a\n b\t", "a⏎␣b⇥"),
        ("\x00", "\\x00"),
        ("\u202ea", "\\u202ea"),
        ("Ġ", "Ġ"),
        ("<0xE2>", "<0xE2>"),
        ("", "∅"),
        ("\u0301", "◌\u0301"),
        ("\u200d", "\\u200d"),
        ("\xa0", "\\xa0"),
        ("👩‍👧", "👩‍👧"),
    ],
)
def test_display_makes_characters_visible(token, shown):
    assert display(token) == shown


def test_scores_have_three_significant_digits():
    assert [format_score(x) for x in (0.3932, 12.34, 1230.4, -0.05, 0.0, 1.0, 1.5e-7, float("nan"), -1e9)] == [
        "0.393",
        "12.3",
        "1,230",
        "−0.050",
        "0.000",
        "1.00",
        "1.50e-07",
        "n/a",
        "−1.00e+09",
    ]


def test_tokens_of_a_pair_are_joined_by_an_arrow():
    assert pair(" not", " bad") == "␣not→␣bad"


def test_width_counts_columns_of_wide_and_right_to_left_tokens():
    assert width(" 日本") == 5
    assert width(for_terminal("שלום")) == 4
    assert for_terminal("film") == "film"


@pytest.mark.parametrize("token", UNSAFE_TOKENS)
def test_chips_are_escaped_and_have_id_and_score_in_their_title(token):
    parsed = assert_harmless(chip(token, 7, -0.5, 0.3) + pair_chip(token, token, 1, 2, 0.5, 1.0))
    titles = [value for name, value in parsed.attributes if name == "title"]
    assert titles[0] == f"{display(token)}, id 7, score −0.500"
    assert "".join(parsed.text) == f"{display(token)}{display(token)}→{display(token)}"
    assert ("class", "esl-chip esl-negative") in parsed.attributes or (
        "class",
        "esl-chip esl-muted esl-negative",
    ) in parsed.attributes


def test_tokens_of_bytes_are_muted():
    assert "esl-muted" in chip("<0xE9>", 1) and "esl-muted" in chip(" <0xE2><0x96>", 1)
    assert "esl-muted" not in chip("a<0xC3>", 1) and "esl-muted" not in chip("é", 1)


def test_visible_keeps_spaces_and_escapes_control_characters():
    assert visible("a film\n\x00\u202e") == "a film⏎\\x00\\u202e"


@pytest.mark.parametrize(
    ("value", "text"), [(0.01516, "0.0152"), (1.0, "1"), (-0.5, "−0.5"), (float("nan"), "n/a"), (4.2e-5, "4.2e−05")]
)
def test_measures_have_three_significant_digits(value, text):
    assert format_measure(value) == text
