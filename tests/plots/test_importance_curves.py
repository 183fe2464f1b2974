"""Importance curves."""

import numpy as np
import pytest

from embspace_lens import EmbspaceError
from embspace_lens.plots import plot_importance
from embspace_lens.tables.frames import tidy


def test_importance_curves_show_the_share_of_the_peak():
    pytest.importorskip("plotly", reason="plots need plotly")
    curve = {
        "factor": np.repeat([3, 7], 3),
        "layer": np.tile([-1, 0, 1], 2),
        "importance": np.array([0, 1, 4, 2, 8, 6.0]),
    }
    df = tidy(["factor", "layer", "importance"], [curve])
    words = {"factor": np.array([3, 7]), "token_string": np.array([" <b>", ""], dtype=object)}
    figure = plot_importance(df, tidy(["factor", "token_string"], [words]))
    assert [list(trace.x) for trace in figure.data] == [[-1, 0, 1]] * 2
    assert [list(trace.y) for trace in figure.data] == [[0, 0.25, 1], [0.25, 1, 0.75]]
    texts = [a.text for a in figure.layout.annotations]
    assert any("3 ␣&lt;b&gt;" in text for text in texts) and any(text == "7" for text in texts)
    assert len({trace.line.color for trace in figure.data}) == 2
    assert len(df.embspace.plot().data) == 2
    many = tidy(
        ["factor", "layer", "importance"], [{"factor": np.arange(9), "layer": np.zeros(9), "importance": np.ones(9)}]
    )
    with pytest.raises(EmbspaceError, match="9 factors are more than a picture can hold; choose up to 6"):
        plot_importance(many)
    with pytest.raises(EmbspaceError, match="draws another table: 'layer', 'importance' is not there"):
        plot_importance(tidy(["factor", "token_string"], [words]))
