"""Neurons of mixtures of experts, and batches of layers."""

import pandas as pd
import pytest

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.search.tiles import chunk_bytes
from embspace_lens.space.embedding_space import EmbeddingSpace


def test_selected_experts_equal_rows_of_the_whole_table(moe_lens, tiny, lens):
    all_experts = moe_lens.neurons(k=2)
    for expert in (1, [0, 2], range(2)):
        selected = [expert] if isinstance(expert, int) else list(expert)
        expected = all_experts[all_experts["expert"].isin(selected)].reset_index(drop=True)
        pd.testing.assert_frame_equal(moe_lens.neurons(expert=expert, k=2), expected)
    shared = EmbeddingLens(tiny("qwen2_moe"))
    table = shared.neurons(expert=-1, weight="W_out", k=1)
    assert set(table["expert"]) == {-1} and set(table["layer"]) == set(range(shared.weights.n_layers))
    with pytest.raises(EmbspaceError, match=r"expert=3 is out of range: .* has 3 experts in a block \(0 to 2\)\."):
        moe_lens.neurons(expert=3)
    with pytest.raises(EmbspaceError, match=r"expert=0 selects nothing: .* has no mixture of experts\."):
        lens.neurons(expert=0)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2_moe"])
def test_result_is_independent_of_batch_size(tiny, architecture, monkeypatch):
    """Batches of one layer, of several layers, and of all layers. With all layers in one batch, each weight is searched once."""
    lens = EmbeddingLens(tiny(architecture), score="cosine")
    n_searches, tables = [], []
    top = EmbeddingSpace.top

    def counted(self, x, *args, **options):
        n_searches.append(len(x))
        return top(self, x, *args, **options)

    monkeypatch.setattr(EmbeddingSpace, "top", counted)
    for budget in (4 * lens.weights.d_model * 64, 4 * lens.weights.d_model * 400, 2**27):
        n_searches.clear()
        with chunk_bytes(budget):
            table = lens.neurons(k=3)
            n_searches_of_all = len(n_searches)
            tables.append((table, lens.neurons([0, 1], [3, 1], k=2)))
    assert n_searches_of_all == len(table["weight"].unique())
    for tables_of_budget in tables[1:]:
        for table, other in zip(tables[0], tables_of_budget, strict=True):
            pd.testing.assert_frame_equal(table, other)
