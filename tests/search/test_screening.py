"""Screening leaves out no row of the result."""

import pytest
import torch

from embspace_lens.search.bounds import rounding_factor
from embspace_lens.search.screening import SAME_SIZE_INTEGER, Screen, Tile, bits_below, unordered_topk


def test_rows_left_out_are_below_the_limit(device):
    """Every row that is left out has a score below the k-th best, also if the products cancel up to rounding."""
    plain, even = torch.randn(50, 24, device=device), torch.randn(1500, 24, device=device)
    signs = torch.randn(50, 12, device=device).sign().repeat_interleave(2, 1)
    opposed = 64 * torch.tensor([1.0, -1.0], device=device).repeat(12)
    for x, rows in (
        (plain, even),
        (plain, even * torch.rand(1500, 1, device=device).pow(3)),
        (signs, opposed + 8 * torch.rand(1500, 24, device=device) - 4),
    ):
        screen = Screen(x, 10, 15)
        tile = Tile(rows, screen.dtype)
        exact = x.double() @ rows.double().T
        best = exact.sort(dim=1, descending=True)
        for floor in (best.values[:, 400], best.values[:, 8]):  # as if earlier tiles had no better rows, or better rows
            value, index = screen.top_rows(slice(0, 50), tile, floor)
            for i in range(50):
                is_candidate = value[i] > -torch.inf
                candidates = index[i][is_candidate]
                left_out = torch.ones(1500, dtype=torch.bool, device=device).index_fill(0, candidates, False)
                limit = max(best.values[i, 9].item(), floor[i].item())
                last_score = value[i].min().item() if len(candidates) == 15 else -torch.inf
                error = screen.error_bound(tile.max_norm)[i].item()
                assert (exact[i, left_out] < max(limit, last_score + error)).all()
                scores = value[i][is_candidate].double()
                torch.testing.assert_close(scores, exact[i, candidates], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_bits_below_a_limit_are_close_to_it(dtype):
    limit = torch.rand(1000, dtype=torch.float64).pow(20).clamp_min(1e-30)
    bits = bits_below(limit, dtype)
    assert bits.dtype is SAME_SIZE_INTEGER[dtype]
    value = bits.view(dtype).double()
    assert (value <= limit).all() and (value >= limit * (1 - 2**-6)).all()


@pytest.mark.parametrize("width", [1, 5, 40])
def test_unordered_topk_equals_topk(width, device):
    score = torch.randn(20, 4096, device=device)
    value, index = unordered_topk(score, width)
    assert torch.equal(value, score.gather(1, index))
    assert torch.equal(value.sort(dim=1).values, score.topk(width).values.sort(dim=1).values)


@pytest.mark.parametrize(("precision", "input_error"), [("high", 2**-11), ("medium", 2**-9)])
def test_rounding_bound_includes_fast_float32_products(precision, input_error):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert rounding_factor(64, torch.float32, torch.device("cpu")) > 2 * input_error
        assert rounding_factor(64, torch.float64, torch.device("cpu")) < 2**-40
    finally:
        torch.set_float32_matmul_precision(before)
