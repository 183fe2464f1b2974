"""Pairs of tokens as lines."""

import pandas as pd
import pytest
from handmade import neurons_of, pairs_of

from embspace_lens import EmbspaceError
from embspace_lens.plots import plot_pairs


def test_every_pair_has_a_line():
    df = pairs_of([" a", " b", " c"])
    figure = plot_pairs(df)
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert len(lines) == 3
    assert "What head L2H5 moves" in figure.layout.title.text
    assert {line.hovertext.split("<br>")[1] for line in lines} == {"␣a→␣c", "␣b→␣b", "␣c→␣a"}


def test_too_many_heads_and_other_tables_raise():
    table_of_ten_heads = pd.concat([pairs_of([" a", " b"], head=h) for h in range(10)], ignore_index=True)
    with pytest.raises(EmbspaceError, match=r"plot_pairs\(\) draws at most 9.*holds 10\. Select fewer layers or heads"):
        plot_pairs(table_of_ten_heads)
    with pytest.raises(EmbspaceError, match="nothing to draw"):
        plot_pairs(pairs_of([" a"]).head(0))
    with pytest.raises(EmbspaceError, match=r"plot_pairs\(\) takes a table of ov\(\) or qk\(\)"):
        plot_pairs(neurons_of([" a"]))
