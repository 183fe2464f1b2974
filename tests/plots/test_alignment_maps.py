"""Maps of the similarity of two models' layers."""

import copy

import numpy as np
import pytest

from embspace_lens import EmbeddingLens, EmbspaceError, align
from embspace_lens.plots import plot_alignment


def test_every_weight_has_a_map_with_framed_assignment(lens):
    weights = copy.copy(lens.weights)
    weights.name = "<b>a</b>"
    lens = EmbeddingLens(weights)
    alignment = align(lens, lens, weights=["W_in", "W_V"], space="residual")
    figure = plot_alignment(alignment)
    assert [np.asarray(trace.z).shape for trace in figure.data] == [(2, 2)] * 2
    assert len(figure.layout.shapes) == 4
    n_nearest = alignment.on_diagonal()["n_nearest"].tolist()
    assert figure.layout.title.text == (
        f"Layers with the same number: {sum(n_nearest)} of 4 nearest, 4 of 4 matched one to one (2 by chance)"
    )
    titles = [annotation.text for annotation in figure.layout.annotations[:2]]
    for title, weight, n in zip(titles, ("W_in", "W_V"), n_nearest):
        assert title.startswith(f"<b>{weight}</b> {n} / 2 of 2")
    assert "<b>a</b>" not in figure.to_json() and "&lt;b&gt;a" in figure.to_json()
    assert len(plot_alignment(alignment, weights="W_V").data) == 1
    with pytest.raises(EmbspaceError, match="weight='W_K' is not one of 'W_in', 'W_V'"):
        plot_alignment(alignment, weights=["W_K"])
    with pytest.raises(EmbspaceError, match="leaves nothing to draw"):
        plot_alignment(alignment, weights=[])
