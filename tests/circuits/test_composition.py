"""Composition through tokens: the planted circuit, a slow loop, and controls."""

import numpy as np
import pytest
import torch
import zoo
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError, demo, token_composition
from embspace_lens.search.tiles import chunk_bytes

GRAIN = ["src_layer", "src_head", "layer", "head"]
COLUMNS = [*GRAIN, "matching", "control", "p_value", "n"]


@pytest.fixture(scope="module")
def planted():
    return EmbeddingLens(demo.induction_model())


def slow_matching(lens, k, sample):
    """Each pair of heads, one token at a time; and the share of matches among all sampled pairs of tokens."""
    E = torch.cat(list(lens.space.read.tiles())).double()
    W, rows = lens.weights, {}
    for src_layer in range(W.n_layers):
        for layer in range(src_layer + 1, W.n_layers):
            for src_head in range(W.n_heads):
                for head in range(W.n_heads):
                    matrices = W.W_V(src_layer)[src_head], W.W_O(src_layer)[src_head], W.W_K(layer)[head]
                    V, W_O, K = (matrix.double() for matrix in matrices)
                    Q = W.W_Q(layer)[head].double()
                    hits = np.zeros((len(sample), len(sample)))
                    for i, t in enumerate(sample):
                        best = [float(E[t] @ Q @ (u @ V @ W_O @ K)) for u in E]
                        top = sorted(range(len(E)), key=lambda u: -best[u])[:k]
                        hits[i] = [u in top for u in sample]
                    rows[src_layer, src_head, layer, head] = (np.diag(hits).mean(), hits.mean())
    return rows


@pytest.mark.parametrize("name", ["gpt2", "llama", "ht_attn_only"])
@pytest.mark.parametrize("score", ["dot", "cosine"])
def test_matching_equals_a_slow_loop(tiny, name, score):
    if name.startswith("ht_") and name not in zoo.HT_ZOO:
        pytest.skip("this TransformerLens has no HookedTransformer")
    model = tiny(name) if name in zoo.ZOO else zoo.HT_ZOO[name]()
    lens = EmbeddingLens(model, score=score)
    table = token_composition(lens, k=3, n_tokens=7, seed=2, n_shuffles=5)
    check_tidy(table, GRAIN, COLUMNS)
    sample = torch.randperm(lens.space.n_tokens, generator=torch.Generator().manual_seed(2))[:7].tolist()
    expected = slow_matching(lens, 3, sample)
    assert len(table) == len(expected)
    for row in table.itertuples():
        key = (row.src_layer, row.src_head, row.layer, row.head)
        assert (row.matching, row.control) == pytest.approx(expected[key], abs=1e-6)


def test_the_planted_circuit_matches_every_token(planted):
    table = token_composition(planted, k=1).set_index(GRAIN)
    assert table["matching"].idxmax() == (0, 1, 1, 2)
    assert table["matching"].max() == 1 and table["matching"].nlargest(2).iloc[1] < 0.1
    assert table["p_value"].idxmin() == (0, 1, 1, 2) and table["p_value"].min() == pytest.approx(1 / 1001)
    assert (table["control"] - 1 / 27).abs().max() < 1e-6, "one of 27 tokens is best for each"


def test_random_heads_do_not_match(tiny):
    table = token_composition(EmbeddingLens(tiny("gpt2")), k=3)
    assert table["p_value"].min() > 0.01
    assert abs(table["matching"].mean() - table["control"].mean()) < 0.03


def test_all_tokens_match_if_all_are_kept(planted):
    assert set(token_composition(planted, k=27)["matching"]) == {1.0}


def test_results_are_independent_of_chunks_and_selection(tiny):
    lens = EmbeddingLens(tiny("gpt2"))
    whole = token_composition(lens, k=4, n_tokens=20)
    with chunk_bytes(2000):
        assert token_composition(lens, k=4, n_tokens=20).equals(whole)
    some = token_composition(lens, layer=1, head=[3, 1], k=4, n_tokens=20)
    expected = whole.loc[whole["head"].isin([1, 3]), [*GRAIN, "matching", "control"]].reset_index(drop=True)
    assert some[[*GRAIN, "matching", "control"]].equals(expected)


def test_the_first_block_has_no_earlier_heads(planted):
    table = token_composition(planted, layer=0)
    check_tidy(table, GRAIN, COLUMNS)
    assert table.empty


def test_invalid_options_raise(planted):
    with pytest.raises(EmbspaceError, match="k=28 is not an integer from 1 to 27"):
        token_composition(planted, k=28)
    with pytest.raises(EmbspaceError, match="n_tokens=1 is not an integer of 2 or more"):
        token_composition(planted, n_tokens=1)
