"""Maps of layers × heads."""

import numpy as np
import pandas as pd
import pytest
from handmade import pairs_of

from embspace_lens import EmbspaceError
from embspace_lens.plots import plot_heads


def test_layer_0_is_on_top(lens):
    df = lens.ov(k=3)
    figure = plot_heads(df)
    best = df[df["rank"] == 0].pivot(index="layer", columns="head", values="score").to_numpy()
    np.testing.assert_array_equal(figure.data[0].z, best)
    assert figure.layout.yaxis.autorange == "reversed" and figure.layout.yaxis.scaleanchor == "x"
    assert "layer 1, head 2" in figure.data[0].hovertext[1][2] and "→" in figure.data[0].hovertext[1][2]


def test_other_columns_can_be_drawn_and_invalid_tables_raise():
    effects = pd.DataFrame({"layer": [0, 0, 2], "head": [0, 2, 1], "value": [0.5, -0.25, 0.1]})
    figure = plot_heads(effects, "value")
    assert figure.data[0].zmin == -0.5 and figure.data[0].zmax == 0.5  # zero in the middle of blue and orange
    assert np.isnan(figure.data[0].z).sum() == 6
    with pytest.raises(EmbspaceError, match=r"needs a column 'score', which this table does not have"):
        plot_heads(effects)
    with pytest.raises(EmbspaceError, match="several values of 'value'"):
        plot_heads(pd.concat([effects, effects]), "value")
    with pytest.raises(
        EmbspaceError, match=r"draws one weight, and this table holds W_OV, W_QK\. Select one of them\."
    ):
        plot_heads(pd.concat([pairs_of([" a"]), pairs_of([" a"], "W_QK")]))
    with pytest.raises(EmbspaceError, match="column 'value' does not hold numbers"):
        plot_heads(effects.assign(value="a"), "value")
    with pytest.raises(EmbspaceError, match="no finite number"):
        plot_heads(effects.assign(value=np.nan), "value")


def test_cells_have_as_many_decimals_as_the_largest_number_needs():
    effects = pd.DataFrame({"layer": [0, 0, 1], "head": [0, 1, 0], "value": [-0.47, 8.9e-4, 0.12]})
    figure = plot_heads(effects, "value")
    assert [note.text for note in figure.layout.annotations] == ["−0.47", "0.00", "0.12"]
    assert figure.data[0].colorbar.tickformat == ".2f"
    assert (
        len(plot_heads(effects.assign(value=effects["value"] * 1e-6), "value").layout.annotations) == 0
    )  # the numbers do not fit into the cells
