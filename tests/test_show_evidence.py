"""The papers' measurements as pictures, terminal lines and HTML."""

import numpy as np
import pandas as pd
import pytest
from embspace_lens.show import plot_displacement, plot_keep_k, plot_recall, plot_related_pairs, plot_stitch

from embspace_lens import EmbspaceError, evidence
from embspace_lens.display import html, terminal
from embspace_lens.display import theme as look
from embspace_lens.display.measurements import measure
from embspace_lens.display.table_groups import kind
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
def test_the_accessor_draws_what_the_columns_say(tables, name):
    pytest.importorskip("plotly")
    assert tables[name].embspace.plot() == PLOTS[name](tables[name])
    assert kind(tables[name]) == "measurements"


def test_related_pairs_show_claim_and_control_with_their_bands(tables):
    pytest.importorskip("plotly")
    df = tables["pairs"]
    figure = plot_related_pairs(df)
    drawn = curves(figure)
    assert len(drawn) == 6 and len(figure.data) == 12
    assert [trace.line.color for trace in drawn] == [look.GREY, look.BLUE] * 3
    first = df[(df["pair"] == "W_Q-W_K") & (df["sample"] == "paired")]
    assert list(drawn[1].y) == first["jaccard"].tolist() and list(drawn[1].x) == [0, 1]
    band = figure.data[2]
    assert list(band.y) == [*first["high"], *first["low"][::-1]] and band.fillcolor == look.BLUE
    assert [a.text for a in figure.layout.annotations] == ["W_Q-W_K", "W_V-W_O", "W_in-W_out", *_ends(df, "jaccard")]
    assert "layer 0<br>paired 0." in drawn[1].hovertext[0] and "32 units" in drawn[1].hovertext[0]


def _ends(df, value):
    """The names at the ends of the last panel's curves, the lower one first."""
    last = df[(df["pair"] == "W_in-W_out") & (df["layer"] == 1)].sort_values(value)
    return last["sample"].tolist()


def test_recall_has_a_row_for_each_target(tables):
    pytest.importorskip("plotly")
    figure = plot_recall(tables["recall"])
    titles = [a.text for a in figure.layout.annotations][:8]
    assert titles[0] == "W_in, the block&#x27;s own output" and titles[4] == "W_in, the final state"
    one_text = tables["recall"].assign(low=np.nan, high=np.nan)
    assert len(curves(plot_recall(one_text))) == len(curves(figure)) == 16


def test_keep_k_has_a_logarithmic_axis_and_tells_inverses_by_more_than_colour(tables):
    pytest.importorskip("plotly")
    figure = plot_keep_k(tables["kept"])
    assert figure.layout.xaxis.type == "log"
    assert {(trace.line.color, trace.line.dash) for trace in curves(figure)} == {
        (look.BLUE, "solid"),
        (look.ORANGE, "dash"),
    }
    assert "<b>" not in figure.layout.annotations[0].text and "<b>" not in curves(figure)[0].hovertext[0]
    assert any("&lt;b&gt;mine" in a.text for a in figure.layout.annotations)


@pytest.mark.parametrize("plot", PLOTS.values())
def test_other_tables_and_empty_ones_are_refused(tables, plot):
    pytest.importorskip("plotly")
    own = next(df for name, df in tables.items() if PLOTS[name] is plot)
    other = next(df for name, df in tables.items() if PLOTS[name] is not plot)
    with pytest.raises(EmbspaceError, match=r"draws another table: .* is not there"):
        plot(other)
    with pytest.raises(EmbspaceError, match="The table is empty"):
        plot(own.head(0))


def test_a_table_of_other_measurements_has_lines_but_no_picture_of_its_own():
    df = tidy(["layer", "weight", "similarity"], [{"layer": 0, "weight": ["W_in"], "similarity": 0.25}])
    assert terminal.render(df) == "layer  weight  similarity\n0      W_in          0.25"
    with pytest.raises(EmbspaceError, match=r"plot\(\) takes a table of .*; this one is of measurements\."):
        df.embspace.plot()


def test_numbers_stand_under_each_other_in_a_terminal(tables):
    lines = terminal.render(tables["pairs"], n=3).splitlines()
    assert lines[0].split() == tables["pairs"].columns.tolist()
    assert len({len(line) for line in lines[:4]}) == 1 and lines[-1] == "… 9 more of 12"
    assert terminal.render(tables["pairs"].head(0)) == "An empty table: nothing was selected."


def test_html_is_escaped(tables):
    pytest.importorskip("jinja2")
    page = html.table(tables["kept"].sort_values("source", ignore_index=True))
    assert "<b>mine" not in page and "&lt;b&gt;mine&lt;/b&gt;" in page
    assert tables["kept"].embspace.show(3)._repr_html_().count("<tr>") == 4


@pytest.mark.parametrize(
    ("value", "text"), [(0.01516, "0.0152"), (1.0, "1"), (-0.5, "−0.5"), (float("nan"), "n/a"), (4.2e-5, "4.2e−05")]
)
def test_measured_numbers_have_three_significant_figures(value, text):
    assert measure(value) == text


def test_the_lists_of_a_lens_are_still_what_they_were(lens):
    assert [kind(df) for df in (lens.neurons(0, k=1), lens.ov(0, k=1), lens.components())] == [
        "tokens",
        "pairs",
        "components",
    ]
    with pytest.raises(EmbspaceError, match="not one of EmbeddingLens's tables"):
        kind(pd.DataFrame({"layer": [0], "mean_recall": [0.5]}))


# -- comparisons

SWEEP = ["recipient", "donor", "kernel", "keep", "accuracy", "low", "high", "n"]


def sweep(donors=("a", "b", "c"), kernels=("pinv", "states", "random")):
    rows = [("<b>r</b>", d, "donor", -1, 0.8, 0.7, 0.9, 100) for d in donors]
    rows += [("<b>r</b>", d, "chance", -1, 0.5, 0.4, 0.6, 100) for d in donors]
    for place, kernel in enumerate(kernels):
        rows += [
            ("<b>r</b>", d, kernel, k, 0.5 + 0.1 * place + 0.01 * i + 0.02 * k, 0.4, 0.9, 100)
            for i, d in enumerate(donors)
            for k in range(3)
        ]
    return tidy(SWEEP, (dict(zip(SWEEP, row)) for row in rows))


def test_a_sweep_is_drawn_as_the_median_of_its_donors_between_worst_and_best():
    pytest.importorskip("plotly")
    df = sweep()
    figure = plot_stitch(df)
    assert df.embspace.plot() == figure
    drawn, bands = curves(figure), [trace for trace in figure.data if trace.fill == "toself"]
    assert [trace.line.color for trace in drawn] == [look.GREY, *look.SERIES[:2]]
    assert list(drawn[1].y) == pytest.approx([0.51, 0.53, 0.55]) and list(drawn[1].x) == [0, 1, 2]
    assert list(bands[1].y) == pytest.approx([0.52, 0.54, 0.56, 0.54, 0.52, 0.50])
    names = {a.text: a.y for a in figure.layout.annotations}
    assert set(names) == {"pinv", "states", "random", "on its own model", "chance"}
    assert sorted(line.y0 for line in figure.layout.shapes) == pytest.approx([0.5, 0.8])
    assert "3 classifiers" in figure.layout.title.subtitle.text and "100 texts" in figure.layout.title.subtitle.text
    assert "&lt;b&gt;r&lt;/b&gt;" in figure.layout.xaxis.title.text


def test_names_of_curves_that_end_together_stand_apart():
    pytest.importorskip("plotly")
    df = sweep(kernels=("pinv", "ridge", "states", "procrustes"))
    figure = plot_stitch(df.assign(accuracy=np.float32(0.7)))
    places = sorted(a.y for a in figure.layout.annotations)
    bottom, top = figure.layout.yaxis.range
    assert len(places) == 6 and min(np.diff(places)) >= 0.99 * 15 * (top - bottom) / 330
    assert np.mean(places) == pytest.approx(0.7, abs=1e-6)


def test_displacement_shows_the_change_above_base_and_random():
    pytest.importorskip("plotly")
    columns = ["layer", "weight", "sample", "share", "low", "high", "n"]
    rows = [
        (layer, weight, sample, share, share - 0.1, share + 0.1, 7)
        for weight in ("W_in", "W_out", "W_V", "W_O")
        for layer in (0, 1)
        for sample, share in (("base", 0.2), ("difference", 0.4), ("random", 0.1))
    ]
    df = tidy(columns, (dict(zip(columns, row)) for row in rows))
    df.loc[(df["layer"] == 0) & (df["sample"] == "difference"), "share"] = np.nan  # a block that did not change
    figure = plot_displacement(df)
    assert df.embspace.plot() == figure
    drawn = curves(figure)
    assert [trace.line.color for trace in drawn] == [look.GREY, look.GREY, look.BLUE] * 4
    assert [len(trace.x) for trace in drawn] == [2, 2, 1] * 4
    titles = [a.text for a in figure.layout.annotations if a.text in {"W_in", "W_out", "W_V", "W_O"}]
    assert len(titles) == 4


@pytest.mark.parametrize("plot", [plot_stitch, plot_displacement])
def test_other_and_empty_tables_of_comparisons_are_refused(plot, tables):
    pytest.importorskip("plotly")
    with pytest.raises(EmbspaceError, match="draws another table"):
        plot(tables["pairs"])
