"""Scatter plots of scores from weights and effects of interventions."""

import numpy as np
import pytest

from embspace_lens import agreement
from embspace_lens.plots import plot_agreement
from embspace_lens.tables.frames import tidy


def test_every_component_is_a_point_and_the_strongest_are_named():
    keys = {"layer": np.repeat([0, 1], 4), "head": np.tile(np.arange(4), 2)}
    a = tidy(["layer", "head", "score"], [keys | {"score": np.arange(8.0)}])
    b = tidy(["layer", "head", "value"], [keys | {"value": np.array([0, 0.1, 0, 0.2, 0.1, 0.3, 0.2, 5.0])}])
    figure = plot_agreement(a, b, axis_labels=("score <x>", "effect"))
    (trace,) = figure.data
    assert list(trace.x) == list(range(8)) and trace.y[7] == pytest.approx(5)
    assert "L1H3" in trace.hovertext[7] and "L1H3" in {note.text for note in figure.layout.annotations}
    row = agreement(a, b).to_dict("records")[0]
    text = figure.layout.title.text + str(figure.layout.title.subtitle.text)
    assert f"{row['correlation']:.3g}" in text and "n = 8" in text and "permuted" in text
    assert figure.layout.xaxis.title.text == "score &lt;x&gt;"
    assert plot_agreement(a, b).layout.yaxis.title.text == "value"
