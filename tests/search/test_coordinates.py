"""Coordinates of rows in a low-rank space, and the candidates among their pairs."""

import math

import pytest
import torch

from embspace_lens.search.candidates import CandidatePairs, TooManyTies, entries_at_least
from embspace_lens.search.coordinates import SortedCoordinates, exact_coordinates
from embspace_lens.search.duplicates import best_by_key


@pytest.mark.parametrize("resident", [True, False])
def test_norms_and_errors_of_coordinates_are_bounded(resident, device):
    A, basis = torch.randn(100, 300, device=device), torch.randn(300, 8, device=device)
    side = SortedCoordinates(A, basis, 0.0, 7, resident=resident)
    exact = (A.double() @ basis.double())[side.order]
    assert (exact.norm(dim=1) <= side.norm).all()
    assert ((side.coordinates(0, 100) - exact).norm(dim=1) <= side.slack).all()
    tiles = zip(side.norm.split(7), side.slack.split(7), side.max_norm, side.max_slack, strict=True)
    for norm, slack, max_norm, max_slack in tiles:
        assert norm.max() == max_norm and slack.max() == max_slack


def test_equal_rows_share_their_exact_coordinates(device):
    rows = torch.tensor([[0.0, 1.0], [2.0, 1.0], [-0.0, 1.0], [1.0, 0.0], [2.0, 1.0]], device=device)
    index = torch.tensor([4, 0, 1, 2, 3], device=device)
    _, group = exact_coordinates(rows, torch.randn(2, 3, device=device), index)
    assert group[0] == group[2] and group[1] == group[3] and len(group.unique()) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entries_at_a_limit_include_all_that_reach_it(dtype):
    score = torch.randn(40, 30).to(dtype)
    for limit in [*score[:3].flatten().tolist(), 0.0, -math.inf, math.inf, 1e39, 1.2345]:
        expected = (score.double() >= limit).nonzero()
        entries = torch.stack(entries_at_least(score, limit), 1)
        missed = set(map(tuple, expected.tolist())) - set(map(tuple, entries.tolist()))
        assert not missed and len(entries) <= len(expected) + 3


def test_candidates_stay_within_their_capacity(device):
    """With tied scores, an overflow keeps the k smallest keys. Without exact scores it raises an error."""
    key = torch.randperm(1000, device=device)
    score = torch.ones(1000, device=device)
    candidates = CandidatePairs(5, 20, lambda keys: torch.ones(len(keys), device=device).double(), device)
    for start in range(0, 1000, 100):
        candidates.add(score[:100] - 0.1, score[:100] + 0.1, key[start : start + 100])
        assert len(candidates.keys) <= 20
    assert best_by_key(score[:5], candidates.keys, 5)[1].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(TooManyTies):
        CandidatePairs(5, 20, None, device).add(score - 0.1, score + 0.1, key)
