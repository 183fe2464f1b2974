"""The papers' measurements as curves."""

import numpy as np
import pytest

from embspace_lens import EmbspaceError, evidence
from embspace_lens.display import html, terminal, theme
from embspace_lens.display.table_groups import kind
from embspace_lens.plots import plot_keep_k, plot_recall, plot_related_pairs
from embspace_lens.tables.frames import tidy

TEXTS = ["w2 w3 w4 w5 w6", "w7 w8"]


@pytest.fixture(scope="module")
def tables(lens):
    return {
        "pairs": evidence.related_pairs(lens, k=5, seeds=3),
        "recall": evidence.hidden_state_recall(lens, TEXTS, k=5, seeds=3),
        "kept": evidence.keep_k(lens, {"<b>mine</b>": np.eye(32, dtype="float32")}, n=20),
    }


PLOTS = {"pairs": plot_related_pairs, "recall": plot_recall, "kept": plot_keep_k}


def curves(figure):
    return [trace for trace in figure.data if trace.mode == "lines+markers"]


@pytest.mark.parametrize("name", PLOTS)
def test_plot_depends_on_the_kind_of_the_table(tables, name):
    pytest.importorskip("plotly")
    assert tables[name].embspace.plot() == PLOTS[name](tables[name])
    assert kind(tables[name]) == {"pairs": "related_pairs", "recall": "recall", "kept": "keep_k"}[name]


def test_measurement_and_control_have_curves_with_bands(tables):
    pytest.importorskip("plotly")
    df = tables["pairs"]
    figure = plot_related_pairs(df)
    drawn = curves(figure)
    assert len(drawn) == 6 and len(figure.data) == 12
    assert [trace.line.color for trace in drawn] == [theme.GREY, theme.BLUE] * 3
    first = df[(df["pair"] == "W_Q-W_K") & (df["sample"] == "paired")]
    assert list(drawn[1].y) == first["jaccard"].tolist() and list(drawn[1].x) == [0, 1]
    band = figure.data[2]
    assert list(band.y) == [*first["high"], *first["low"][::-1]] and band.fillcolor == theme.BLUE
    assert [a.text for a in figure.layout.annotations] == ["W_Q-W_K", "W_V-W_O", "W_in-W_out", *_ends(df, "jaccard")]
    assert "layer 0<br>paired 0." in drawn[1].hovertext[0] and "32 pairs" in drawn[1].hovertext[0]


def _ends(df, value):
    """The names at the ends of the last panel's curves, the lower one first."""
    last_points = df[(df["pair"] == "W_in-W_out") & (df["layer"] == 1)].sort_values(value)
    return last_points["sample"].tolist()


def test_recall_has_a_row_of_panels_per_target(tables):
    pytest.importorskip("plotly")
    figure = plot_recall(tables["recall"])
    titles = [a.text for a in figure.layout.annotations][:8]
    assert titles[0] == "W_in, output of the block" and titles[4] == "W_in, final hidden state"
    one_text = tables["recall"].assign(low=np.nan, high=np.nan)
    assert len(curves(plot_recall(one_text))) == len(curves(figure)) == 16


def test_keep_k_has_a_logarithmic_axis_and_a_dash_per_inverse(tables):
    pytest.importorskip("plotly")
    figure = plot_keep_k(tables["kept"])
    assert figure.layout.xaxis.type == "log"
    assert {(trace.line.color, trace.line.dash) for trace in curves(figure)} == {
        (theme.BLUE, "solid"),
        (theme.ORANGE, "dash"),
    }
    assert "<b>" not in figure.layout.annotations[0].text and "<b>" not in curves(figure)[0].hovertext[0]
    assert any("&lt;b&gt;mine" in a.text for a in figure.layout.annotations)


@pytest.mark.parametrize("plot", PLOTS.values())
def test_other_and_empty_tables_raise(tables, plot):
    pytest.importorskip("plotly")
    own_table = next(df for name, df in tables.items() if PLOTS[name] is plot)
    other_table = next(df for name, df in tables.items() if PLOTS[name] is not plot)
    with pytest.raises(
        EmbspaceError, match=r"plot_\w+\(\) needs (a column|columns) .*, which this table does not have"
    ):
        plot(other_table)
    with pytest.raises(EmbspaceError, match="The table is empty"):
        plot(own_table.head(0))


def test_other_measurements_are_printed_and_cannot_be_plotted():
    df = tidy(["layer", "weight", "similarity"], [{"layer": 0, "weight": ["W_in"], "similarity": 0.25}])
    assert terminal.render(df) == "layer  weight  similarity\n0      W_in          0.25"
    with pytest.raises(EmbspaceError, match=r"plot\(\) takes a table of .*; this is a table of measurements\."):
        df.embspace.plot()


def test_numbers_are_aligned_in_a_terminal(tables):
    lines = terminal.render(tables["pairs"], n=3).splitlines()
    assert lines[0].split() == tables["pairs"].columns.tolist()
    assert len({len(line) for line in lines[:4]}) == 1 and lines[-1] == "… 9 more of 12"
    assert terminal.render(tables["pairs"].head(0)) == "The table is empty: nothing was selected."


def test_names_are_escaped_in_html(tables):
    pytest.importorskip("jinja2")
    page = html.table(tables["kept"].sort_values("source", ignore_index=True))
    assert "<b>mine" not in page and "&lt;b&gt;mine&lt;/b&gt;" in page
    assert tables["kept"].embspace.show(3)._repr_html_().count("<tr>") == 4
