"""The active-set solver in special cases."""

import pytest
import torch

from embspace_lens.factors.active_set import ActiveSetSolver, solve_non_negative
from embspace_lens.search.tiles import chunk_bytes


def test_large_dictionaries_are_solved_without_the_full_gram_matrix():
    x, directions = 3 * torch.randn(40, 16), torch.nn.functional.normalize(torch.randn(60, 16), dim=1)
    with_gram, without_gram = (ActiveSetSolver(directions, 0.5) for _ in range(2))
    expected = with_gram.solve(x).dense(60)
    with chunk_bytes(64):
        codes = without_gram.solve(x).dense(60)
    assert with_gram._all_pairs and not without_gram._all_pairs
    torch.testing.assert_close(codes, expected, atol=1e-3, rtol=1e-3)


def test_indefinite_gram_matrix_is_solved():
    """Rounding can give the Gram matrix of three equal directions a negative eigenvalue, for which a tiny ridge is too small."""
    gram = torch.ones(1, 3, 3)
    gram[0, 0, 1] = gram[0, 1, 0] = 1.0001
    linear, start = torch.full((1, 3), 2.0), torch.zeros(1, 3)
    codes = solve_non_negative(gram, linear, start, torch.ones(1, 3, dtype=torch.bool))
    assert float(codes.sum()) == pytest.approx(2, rel=1e-2)
    assert (codes > 0.5).all(), "equal directions have codes of similar size"
