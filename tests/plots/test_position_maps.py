"""Maps of positions: one for each head, rows of scores without their means, the planted line below the diagonal."""

import numpy as np
import pandas as pd
import pytest

from embspace_lens import EmbeddingLens, EmbspaceError, demo, position_qk
from embspace_lens.plots import plot_position_qk


@pytest.fixture(scope="module")
def scores():
    return position_qk(EmbeddingLens(demo.induction_model()), layer=0, head=[0, 1], positions=range(12))


def test_each_head_has_a_map_of_its_scores_minus_the_mean_of_each_row(scores):
    figure = plot_position_qk(scores)
    assert [note.text for note in figure.layout.annotations] == ["L0H0", "L0H1"]
    for head, trace in enumerate(figure.data):
        z = np.array(trace.z, dtype=float)
        assert np.abs(np.nanmean(z, axis=1)).max() < 1e-5
        for row in scores.query(f"head == {head} and dest_pos == 7").itertuples():
            mean = scores.query(f"head == {head} and dest_pos == 7")["score"].mean()
            assert z[7, row.src_pos] == pytest.approx(row.score - mean, abs=1e-4)
    assert np.isnan(np.array(figure.data[0].z, dtype=float)[3, 4]), "a causal mask hides later keys"


def test_the_previous_token_head_is_a_line_below_the_diagonal(scores):
    z = np.array(plot_position_qk(scores).data[1].z, dtype=float)
    assert [int(np.nanargmax(line)) for line in z[1:]] == list(range(11))


def test_models_have_maps_of_their_own_with_escaped_names(scores):
    table = pd.concat([scores.assign(model="a<b"), scores.assign(model="c")])
    titles = [note.text for note in plot_position_qk(table).layout.annotations]
    assert titles == ["a&lt;b, L0H0", "a&lt;b, L0H1", "c, L0H0", "c, L0H1"]


def test_other_columns_are_drawn_as_they_are(scores):
    figure = plot_position_qk(scores.assign(attention=0.25), value="attention")
    z = np.array(figure.data[0].z, dtype=float)
    assert set(z[~np.isnan(z)]) == {0.25} and figure.data[0].zmin == 0
    assert figure.layout.title.text == "Attention by key position"


def test_tables_that_do_not_fit_raise(scores):
    with pytest.raises(EmbspaceError, match="src_pos"):
        plot_position_qk(scores.drop(columns="src_pos"))
    with pytest.raises(EmbspaceError, match="several values of score for the same head, query and key position"):
        plot_position_qk(pd.concat([scores, scores]))
    many = pd.concat([scores.query("head == 0").assign(head=i) for i in range(13)])
    with pytest.raises(EmbspaceError, match="draws at most 12 maps at a time, and this table holds 13"):
        plot_position_qk(many)
    with pytest.raises(EmbspaceError, match="empty"):
        plot_position_qk(scores[:0])
    with pytest.raises(EmbspaceError, match="does not hold numbers"):
        plot_position_qk(scores.assign(score="x"))
