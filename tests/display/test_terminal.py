"""Tables printed in a terminal."""

import re

import numpy as np
import pandas as pd
import pytest
from handmade import TABLES, UNSAFE_TOKENS, neurons_of, pairs_of

from embspace_lens.display import terminal
from embspace_lens.display.tokens import width
from embspace_lens.tables.frames import tidy


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("columns", [100, 60])
def test_lines_fit_the_terminal_and_have_no_boxes(lens, name, columns):
    text = terminal.render(TABLES[name](lens), columns=columns)
    assert max(map(width, text.splitlines())) <= columns
    assert not set("│─┌┐└┘") & set(text)


def test_a_line_has_name_weight_best_score_and_tokens():
    lines = terminal.render(neurons_of([" film", " films", " movies"], ["W_out"]), hint="Next: x").splitlines()
    assert lines == [
        "neuron  weight   best  tokens, best first",
        "L3N120  W_out   0.900  ␣film ␣films ␣movies",
        "",
        "Next: x",
    ]


def test_last_line_counts_the_omitted_rows():
    df = pd.concat([neurons_of([" a"], ["W_out"], neuron=n) for n in range(5)], ignore_index=True)
    assert terminal.render(df, n=2).splitlines()[-1] == "… 3 more of 5"
    assert terminal.render(df, n=5).splitlines()[-1].startswith("L3N4")
    assert "nothing was selected" in terminal.render(df.head(0))


def test_columns_stay_aligned_with_control_characters_and_long_tokens():
    df = pd.concat(
        [neurons_of([t, *UNSAFE_TOKENS], ["W_out"], neuron=n) for n, t in enumerate([*UNSAFE_TOKENS, "x" * 300])],
        ignore_index=True,
    )
    lines = terminal.render(df).splitlines()
    assert len(lines) == len(UNSAFE_TOKENS) + 2
    assert max(map(width, lines)) <= 100
    assert lines[-1].endswith("x…")
    assert "\x1b" not in "".join(lines) and "\u202e" not in "".join(lines)


def test_arrows_point_from_source_to_target_and_from_query_to_key():
    ov, qk = pairs_of([" a", " b"]), pairs_of([" a", " b"], "W_QK")
    assert terminal.render(ov).splitlines()[1] == "L2H5  W_OV    0.500  ␣a→␣b ␣b→␣a"
    assert terminal.render(qk).splitlines()[1] == "L2H5  W_QK    0.500  ␣b→␣a ␣a→␣b"


def test_a_search_has_one_line_per_weight(lens):
    df = lens.search(5, weight=["W_out", "W_V"], k=2)
    lines = terminal.render(df).splitlines()
    assert lines[0] == "weight  components that score w5 highest (and its rank among their tokens)"
    assert re.fullmatch(r"W_out   L\dN\d+ \d\.\d\d\d? \(\d+\w\w\)  L\dN\d+ \d\.\d\d\d? \(\d+\w\w\)", lines[1])
    assert re.fullmatch(r"W_V     L\dH\d\.\d \d\.\d\d\d? \(\d+\w\w\)  L\dH\d\.\d \d\.\d\d\d? \(\d+\w\w\)", lines[2])


def test_columns_stay_aligned_with_control_and_wide_characters_in_names():
    names = ["b\x1b[31m日本", "שלום", "plain", "[bold]markup[/bold]"]
    block = {"direction": names, "rank": 0, "token_index": 0, "token_string": [" x"] * 4, "score": np.full(4, 0.5)}
    df = tidy(["direction", "rank", "token_index", "token_string", "score"], [block], kind="tokens")
    lines = terminal.render(df).splitlines()
    assert "\x1b" not in "".join(lines) and "b\\x1b[31m日本" in lines[1] and "[bold]markup[/bold]" in lines[4]
    assert len({width(line) for line in lines[1:]}) == 1 and all(line.endswith("0.500  ␣x") for line in lines[1:])


def test_colours_are_added_on_request_only(lens):
    df = lens.neurons(0, 3, k=4)
    plain, coloured = terminal.render(df), terminal.render(df, colour=True)
    assert "\x1b[" not in plain and "\x1b[1m" in coloured
    without_codes = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert [line.rstrip() for line in without_codes.splitlines()] == plain.splitlines()


def test_last_line_lists_the_columns_that_do_not_fit():
    names = ["layer", "neuron", "in_norm", "out_norm", "in_out_similarity", "gate_out_similarity", "vocab_mean"]
    df = tidy(names, [{name: np.arange(2) for name in names}])
    lines = terminal.render(df, columns=60).splitlines()
    assert lines[0].split() == names[:5]
    assert [line.split() for line in lines[1:3]] == [["0"] * 5, ["1"] * 5]
    assert len({width(line) for line in lines[:3]}) == 1
    assert lines[3] == "… and columns gate_out_similarity, vocab_mean"


def test_line_of_tokens_with_an_ellipsis_fits_the_width():
    assert terminal.whole_tokens(["ab", "cd"], 5) == (["ab", "cd"], True)
    assert terminal.whole_tokens(["ab", "cd", "ef"], 7) == (["ab", "cd"], False)
    assert terminal.whole_tokens(["abcdef", "g"], 4) == (["abc…"], True)
    assert terminal.cut_start("abcdef", 4) == "…def" and terminal.cut_end("日本語", 5) == "日本…"


def contexts_of(before, token, after):
    """A hand-made table of one factor's contexts."""
    n = len(token)
    block = {
        "factor": 3,
        "layer": 2,
        "rank": np.arange(n),
        "token_string": token,
        "code": np.linspace(2, 1, n),
        "before": before,
        "after": after,
    }
    return tidy(list(block), [block], kind="contexts")


def test_targets_of_contexts_are_aligned():
    tokens = [" film", "日本", "שלום", "z" * 300]
    df = contexts_of(["a long " * 40, "short", "", "x"], tokens, ["after " * 40, "", "the end", "y"])
    lines = terminal.render(df).splitlines()
    start = lines[0].index("target")
    assert len(lines) == 5 and max(map(width, lines)) <= 100
    for line, token in zip(lines[1:], tokens, strict=True):
        position = line.index(token.strip()[:1] if token[0] == "z" else token.strip())
        assert line.startswith("L2F3 ") and width(line[:position].replace("␣", "")) == start
    assert "…" in lines[1][:start] and lines[1].endswith("…") and lines[2].endswith("日本") and "the end" in lines[3]
    assert max(map(width, terminal.render(df, columns=60).splitlines())) <= 60


def test_salient_tokens_have_offset_and_saliency():
    block = {
        "factor": 3,
        "layer": 2,
        "rank": np.repeat([0, 1], 2),
        "offset": [-1, 0, -1, 0],
        "token_string": [" a", " b", " c", " d"],
        "saliency": [0.5, 1.5, 0.25, 0.125],
    }
    lines = terminal.render(tidy(list(block), [block], kind="saliency"), n=1).splitlines()
    assert lines[1:] == ["L2F3        0  ␣b(0) 1.50  ␣a(-1) 0.500", "… 1 more of 2"]
