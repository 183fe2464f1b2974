"""Lists of top tokens: compared with sorting and sets in slow loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embspace_lens.evidence.token_lists import cyclic_permutation, jaccard, strongest_tokens
from embspace_lens.search.tiles import chunk_bytes


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**20))
def test_cyclic_permutation_has_no_fixed_points(n, seed):
    order = cyclic_permutation(n, seed)
    assert sorted(order.tolist()) == list(range(n))
    assert n == 1 or (order != torch.arange(n)).all()


@pytest.mark.parametrize("k", [1, 20, 60, 97])
def test_strongest_tokens_have_the_largest_absolute_scores(lens, k):
    x = torch.cat([torch.randn(6, 32), torch.zeros(1, 32)])
    lists = strongest_tokens(lens.space, x, "write", k)
    absolute = lens.project(x).abs()
    for ids, sizes in zip(lists.tolist(), absolute):
        assert len(set(ids)) == k and ids == sorted(ids)
        assert sizes[ids].sort().values.allclose(sizes.topk(k).values.flip(0))


@pytest.mark.parametrize("budget", [1, 900, 2**24])
def test_jaccard_is_that_of_sets_for_every_chunk_size(budget):
    a, b = (torch.stack([torch.randperm(30)[:8].sort().values for _ in range(11)]).int() for _ in "ab")
    slow = [len(set(x) & set(y)) / len(set(x) | set(y)) for x, y in zip(a.tolist(), b.tolist())]
    with chunk_bytes(budget):
        assert jaccard(a, b).tolist() == pytest.approx(slow)
        assert (jaccard(a, a) == 1).all()
