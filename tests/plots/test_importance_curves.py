"""Importance of factors over the layers."""

import numpy as np
import pytest

from embspace_lens import EmbspaceError
from embspace_lens.plots import plot_importance
from embspace_lens.tables.frames import tidy

COLUMNS = ["factor", "layer", "importance"]


def test_each_curve_is_divided_by_its_peak_and_named_by_its_token():
    curve = {
        "factor": np.repeat([3, 7], 3),
        "layer": np.tile([-1, 0, 1], 2),
        "importance": np.array([0, 1, 4, 2, 8, 6.0]),
    }
    df = tidy(COLUMNS, [curve])
    words = {"factor": np.array([3, 7]), "token_string": np.array([" <b>", ""], dtype=object)}
    figure = plot_importance(df, tidy(["factor", "token_string"], [words]))
    assert [list(trace.x) for trace in figure.data] == [[-1, 0, 1]] * 2
    assert [list(trace.y) for trace in figure.data] == [[0, 0.25, 1], [0.25, 1, 0.75]]
    names = [annotation.text for annotation in figure.layout.annotations]
    assert any("3 ␣&lt;b&gt;" in name for name in names) and "7" in names
    assert len({trace.line.color for trace in figure.data}) == 2
    assert len(df.embspace.plot().data) == 2


def test_names_of_curves_stay_within_the_plot():
    layers = np.arange(6)
    blocks = [{"factor": i, "layer": layers, "importance": np.exp(-((layers - i) ** 2.0))} for i in range(4)]
    figure = plot_importance(tidy(COLUMNS, blocks))
    bottom, top = figure.layout.yaxis.range
    heights = sorted(annotation.y for annotation in figure.layout.annotations)
    assert len(heights) == 4 and bottom <= heights[0] and heights[-1] <= top
    assert min(np.diff(heights)) >= 0.99 * 15 * (top - bottom) / 300


def test_too_many_factors_and_other_tables_raise():
    table_of_nine = tidy(COLUMNS, [{"factor": np.arange(9), "layer": np.zeros(9), "importance": np.ones(9)}])
    with pytest.raises(EmbspaceError, match=r"plot_importance\(\) draws at most 6 factors .* holds 9\. Select fewer\."):
        plot_importance(table_of_nine)
    with pytest.raises(
        EmbspaceError, match=r"plot_importance\(\) needs columns 'layer', 'importance', which this table"
    ):
        plot_importance(tidy(["factor", "n"], [{"factor": 0, "n": 1}]))
