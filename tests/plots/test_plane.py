"""Plots of tokens in two dimensions."""

import numpy as np
import pytest
from unchecked import unchecked_types

from embspace_lens import EmbspaceError
from embspace_lens.plots import plot_plane
from embspace_lens.plots.label_positions import LabelPositions


def test_same_seed_gives_the_same_figure(lens):
    vector = lens.weights.W_out(0)[3]
    first_figure, second_figure = plot_plane(lens, vector, k=20), plot_plane(lens, vector, k=20)
    np.testing.assert_array_equal(first_figure.data[0].x, second_figure.data[0].x)
    assert len(first_figure.data[0].x) == 20 and "t-SNE" in first_figure.layout.title.subtitle.text
    small_figure = plot_plane(lens, lens.neurons(0, [1, 2], weight="W_out", k=4))
    assert "principal components" in small_figure.layout.title.subtitle.text and len(small_figure.data) == 2
    with pytest.raises(EmbspaceError, match="3 tokens or more, and was given 2"):
        plot_plane(lens, vector, k=2)
    with pytest.raises(EmbspaceError, match="takes a table of neurons"):
        plot_plane(lens, lens.ov(0, 0, k=3))
    with pytest.raises(EmbspaceError, match=r"plot_plane\(\) draws at most 6 vectors .* this table holds 7"):
        plot_plane(lens, lens.weights.W_out(0)[:7])


def test_error_says_what_the_plot_takes(lens):
    df = lens.neurons(0, 1, k=4)
    for arguments, given in [((df, lens), "lens=DataFrame"), ((lens.model, df), "lens="), ((lens, "a"), "what=str")]:
        with (
            unchecked_types(),
            pytest.raises(EmbspaceError, match=rf"^{given}.* takes: an EmbeddingLens, and vectors .* or a table"),
        ):
            plot_plane(*arguments)
    for what in (None, 5, {"a": 1}):
        with unchecked_types(), pytest.raises(EmbspaceError, match=r"is not what plot_plane\(lens, what\) takes"):
            plot_plane(lens, what)


def test_labels_do_not_overlap_marks_or_other_labels():
    marks = np.array([[50.0, 50.0], [60.0, 50.0], [500.0, 50.0]])
    labels = LabelPositions(marks, (600, 100))
    assert labels.place(50, 50, "abc") == "middle left"  # the second mark is at its right
    assert labels.place(60, 50, "abc") == "middle right"
    assert labels.place(500, 50, "a" * 100) is None
