"""Tokens as bars."""

import re

import numpy as np
import pandas as pd
import pytest
from handmade import UNSAFE_TOKENS, neurons_of, pairs_of

from embspace_lens import EmbspaceError
from embspace_lens.plots import plot_pairs, plot_tokens


def test_weights_of_a_neuron_have_adjacent_panels(lens):
    df = lens.neurons(1, 7, k=5)
    figure = plot_tokens(df, k=4)
    assert figure.layout.title.text == "What neuron L1N7 reads, and what it writes"
    assert [len(bar.y) for bar in figure.data] == [4, 4]
    np.testing.assert_array_equal(figure.data[1].x, df[df["weight"] == "W_out"]["score"].head(4))
    assert list(figure.layout.yaxis2.ticktext) == df[df["weight"] == "W_out"]["token_string"].head(4).tolist()
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]  # best on top


def test_too_many_groups_and_other_tables_raise(lens):
    tables = {
        96: lens.neurons(k=1),
        7: lens.neurons(0, range(7), weight="W_out", k=1),
        64: lens.subheads(weight=["W_V", "W_O"], k=1),
        8: lens.singular(0, 0, n_directions=8, k=1),
    }
    for count, df in tables.items():  # the limit and the count are of the same thing, whatever the size of the table
        message = (
            rf"plot_tokens\(\) draws at most 6 neurons, sub-heads or directions .* this table holds {count}\. Select"
        )
        with pytest.raises(EmbspaceError, match=message):
            plot_tokens(df)
    assert len(plot_tokens(lens.subheads(0, 0, k=1).query("subhead < 6")).data) == 24
    with pytest.raises(EmbspaceError, match="nothing to draw"):
        plot_tokens(neurons_of([]))
    with pytest.raises(
        EmbspaceError, match=r"plot_tokens\(\) takes a table of .*; this is a table of ov\(\) or qk\(\)"
    ):
        plot_tokens(pairs_of([" a"]))


def test_singular_directions_have_one_row_of_panels_per_component(lens):
    figure = plot_tokens(lens.singular(0, 0, n_directions=3, k=3))
    titles = [annotation.text for annotation in figure.layout.annotations]
    assert titles == [f"W_OV {i} {side}" for i in range(3) for side in ("read", "write")]
    assert figure.layout.title.text == "The best tokens of head L0H0"


def test_a_search_has_one_panel_per_weight(lens):
    figure = plot_tokens(lens.search(5, k=3))
    assert [a.text for a in figure.layout.annotations][:3] == ["reads (W_in)", "writes (W_out)", "queries (W_Q)"]
    assert figure.layout.title.text == "Components that score w5 highest"


def test_quotation_marks_are_not_escaped():
    figure = plot_tokens(neurons_of([' "x"', " <b>", " it's"], ["W_out"]))
    assert list(figure.layout.yaxis.ticktext) == ['␣"x"', "␣&lt;b&gt;", "␣it's"], "plotly does not replace &quot;"


def test_figures_are_wide_enough_for_their_titles():
    df = neurons_of([" a"], ["W_out"]).assign(neuron=1234567890123456789)
    figure = plot_tokens(pd.concat([df.assign(layer=layer) for layer in range(6)], ignore_index=True))
    assert figure.layout.width > 8 * len(figure.layout.title.text)


def test_tokens_are_text_and_not_markup():
    bars = plot_tokens(neurons_of(UNSAFE_TOKENS))
    lines = plot_pairs(pairs_of(UNSAFE_TOKENS))
    shown = [*bars.layout.yaxis.ticktext, *bars.data[0].hovertext]
    shown += [text for trace in lines.data for text in (trace.text or ())]
    for text in shown:
        assert not re.search(r"<(?!br>score|br>[^<]*\(id)", text), text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in bars.layout.yaxis.ticktext[0]
