"""Comparisons of two models as curves."""

import numpy as np
import pytest

from embspace_lens import EmbspaceError
from embspace_lens.display import theme
from embspace_lens.plots import plot_displacement, plot_stitch
from embspace_lens.tables.frames import tidy


def curves(figure):
    return [trace for trace in figure.data if trace.mode == "lines+markers"]


SWEEP = ["recipient", "donor", "inverse", "keep", "accuracy", "low", "high", "n"]


def sweep(donors=("a", "b", "c"), inverses=("pinv", "states", "random")):
    rows = [("<b>r</b>", d, "donor", -1, 0.8, 0.7, 0.9, 100) for d in donors]
    rows += [("<b>r</b>", d, "chance", -1, 0.5, 0.4, 0.6, 100) for d in donors]
    for index, inverse in enumerate(inverses):
        rows += [
            ("<b>r</b>", d, inverse, k, 0.5 + 0.1 * index + 0.01 * i + 0.02 * k, 0.4, 0.9, 100)
            for i, d in enumerate(donors)
            for k in range(3)
        ]
    return tidy(SWEEP, (dict(zip(SWEEP, row)) for row in rows))


def test_sweep_curve_is_the_median_over_donors_and_its_band_the_range():
    pytest.importorskip("plotly")
    df = sweep()
    figure = plot_stitch(df)
    assert df.embspace.plot() == figure
    drawn, bands = curves(figure), [trace for trace in figure.data if trace.fill == "toself"]
    assert [trace.line.color for trace in drawn] == [theme.GREY, *theme.SERIES[:2]]
    assert list(drawn[1].y) == pytest.approx([0.51, 0.53, 0.55]) and list(drawn[1].x) == [0, 1, 2]
    assert list(bands[1].y) == pytest.approx([0.52, 0.54, 0.56, 0.54, 0.52, 0.50])
    names = {a.text: a.y for a in figure.layout.annotations}
    assert set(names) == {"pinv", "states", "random", "on the donor's own model", "chance"}
    assert sorted(line.y0 for line in figure.layout.shapes) == pytest.approx([0.5, 0.8])
    assert "3 classifiers" in figure.layout.title.subtitle.text and "100 texts" in figure.layout.title.subtitle.text
    assert "&lt;b&gt;r&lt;/b&gt;" in figure.layout.xaxis.title.text


def test_names_of_curves_that_end_together_do_not_overlap():
    pytest.importorskip("plotly")
    df = sweep(inverses=("pinv", "ridge", "states", "procrustes"))
    figure = plot_stitch(df.assign(accuracy=np.float32(0.7)))
    label_heights = sorted(a.y for a in figure.layout.annotations)
    bottom, top = figure.layout.yaxis.range
    assert len(label_heights) == 6 and min(np.diff(label_heights)) >= 0.99 * 15 * (top - bottom) / 330
    assert np.mean(label_heights) == pytest.approx(0.7, abs=1e-6)


def displacement():
    columns = ["layer", "weight", "sample", "share", "low", "high", "n"]
    rows = [
        (layer, weight, sample, share, share - 0.1, share + 0.1, 7)
        for weight in ("W_in", "W_out", "W_V", "W_O")
        for layer in (0, 1)
        for sample, share in (("base", 0.2), ("difference", 0.4), ("random", 0.1))
    ]
    return tidy(columns, (dict(zip(columns, row)) for row in rows))


def test_displacement_and_its_controls_have_curves():
    pytest.importorskip("plotly")
    df = displacement()
    df.loc[(df["layer"] == 0) & (df["sample"] == "difference"), "share"] = np.nan  # a block that did not change
    figure = plot_displacement(df)
    assert df.embspace.plot() == figure
    drawn = curves(figure)
    assert [trace.line.color for trace in drawn] == [theme.GREY, theme.GREY, theme.BLUE] * 4
    assert [len(trace.x) for trace in drawn] == [2, 2, 1] * 4
    titles = [a.text for a in figure.layout.annotations if a.text in {"W_in", "W_out", "W_V", "W_O"}]
    assert len(titles) == 4


@pytest.mark.parametrize("plot", [plot_stitch, plot_displacement])
def test_other_and_empty_tables_raise(plot):
    pytest.importorskip("plotly")
    with pytest.raises(EmbspaceError, match="which this table does not have"):
        plot(tidy(["layer", "weight"], [{"layer": 0, "weight": "W_in"}]))
    with pytest.raises(EmbspaceError, match="The table is empty"):
        plot((sweep() if plot is plot_stitch else displacement()).head(0))
