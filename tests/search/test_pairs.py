"""The best k pairs are those of brute force in float64, for any numbers, ties and chunk sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import check_ranking
from reference import brute_top_pairs, dense_pairs

from embspace_lens.errors import EmbspaceError
from embspace_lens.search.pairs import top_pairs
from embspace_lens.search.tiles import chunk_bytes

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("largest", [True, False])
def test_pairs_equal_brute_force(dtype, largest, device):
    A, B = torch.randn(23, 10).to(device, dtype), torch.randn(41, 14).to(device, dtype)
    left, right = torch.randn(10, 6).to(device, dtype), torch.randn(14, 6).to(device, dtype)
    for k in (1, 10, 23 * 41):
        expected = brute_top_pairs(A, left, right, B, k, largest)
        check_ranking(top_pairs(A, left, right, B, k, largest=largest), expected)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_pairs_of_small_integers_equal_brute_force(data):
    """Small integers give many ties, rows of zeros, equal rows and factors of low rank."""
    n, m, d, rank = (data.draw(st.integers(1, maximum)) for maximum in (12, 12, 4, 6))
    high = data.draw(st.integers(0, 2))

    def integers(*shape):
        return torch.randint(-high, high + 1, shape).float()

    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    A, B, left, right = integers(n, d), integers(m, d), integers(d, rank), integers(d, rank)
    k, largest = data.draw(st.integers(1, n * m)), data.draw(st.booleans())
    check_ranking(top_pairs(A, left, right, B, k, largest=largest), brute_top_pairs(A, left, right, B, k, largest))


def test_pairs_of_a_larger_product_equal_brute_force(device):
    A, B = torch.randn(1500, 32, device=device), torch.randn(2600, 24, device=device)
    left, right = torch.randn(32, 16, device=device), torch.randn(24, 16, device=device)
    for scale in (1, torch.rand(1500, 1, device=device).pow(4)):  # rows of similar norms; rows of very different norms
        for k in (1, 10, 20_000):
            check_ranking(top_pairs(A * scale, left, right, B, k), dense_pairs(A * scale, left, right, B, k))


# -- hard cases


@pytest.mark.parametrize("largest", [True, False])
def test_near_ties_below_float32_are_ranked_exactly(largest, device):
    """float32 rounds all these scores to one number."""
    n = 70
    A = torch.zeros(n, 3, device=device)
    A[:, 0], A[:, 1] = 1.0, torch.randperm(n, device=device) * 2.0**-33
    eye = torch.eye(3, device=device)
    args = A[:60], eye, eye, A, 30
    check_ranking(top_pairs(*args, largest=largest), brute_top_pairs(*args, largest))


@pytest.mark.parametrize("largest", [True, False])
def test_pairs_equal_brute_force_if_coordinates_nearly_cancel(largest, device):
    """In float32 the coordinates of these rows are mostly rounding error, which the error bound must include."""
    A = torch.randn(200, 6, device=device)
    A[:, :2] = torch.stack([A[:, 0], 1e-6 * A[:, 1] - A[:, 0]], 1) * 1e5
    left = torch.zeros(6, 2, device=device)
    left[:2, 0], left[2:, 1] = 1, 0.0001
    right = torch.eye(2, device=device)
    B = torch.rand(30, 2, device=device)
    expected = brute_top_pairs(A, left, right, B, 40, largest)
    check_ranking(top_pairs(A, left, right, B, 40, largest=largest), expected)


@pytest.mark.parametrize("largest", [True, False])
def test_pairs_equal_brute_force_with_a_large_common_direction(largest, device):
    common = 100 * torch.randn(16, device=device)
    A, B = torch.randn(60, 16, device=device) + common, torch.randn(80, 16, device=device) + common
    left, right = torch.randn(16, 8, device=device), torch.randn(16, 8, device=device)
    expected = brute_top_pairs(A, left, right, B, 25, largest)
    check_ranking(top_pairs(A, left, right, B, 25, largest=largest), expected)


def test_pairs_of_many_rows_equal_brute_force_with_a_large_common_direction(device):
    """bfloat16 cannot distinguish any of these scores; float32 can distinguish some of them."""
    A = torch.randn(3000, 24, device=device) + 100 * torch.randn(24, device=device)
    left, right = torch.randn(24, 16, device=device), torch.randn(24, 16, device=device)
    check_ranking(top_pairs(A, left, right, A, 10), dense_pairs(A, left, right, A, 10))


def test_planted_pairs_are_the_best(device):
    A, B = 0.01 * torch.randn(3000, 20, device=device), 0.01 * torch.randn(4000, 20, device=device)
    eye = torch.eye(20, device=device)
    planted = [(2999, 3999), (0, 1), (1234, 2345), (7, 3000)]
    for rank, (i, j) in enumerate(planted):
        A[i], B[j] = 0, 0
        A[i, rank], B[j, rank] = 4 - rank, 4 - rank
    score, row, column = top_pairs(A, eye, eye, B, 4)
    assert list(zip(row.tolist(), column.tolist(), strict=True)) == planted
    assert score.tolist() == [16, 9, 4, 1]


@pytest.mark.parametrize("rank", [1, 5, 40])
def test_pairs_equal_brute_force_for_low_rank_and_for_more_columns_than_rows(rank, device):
    A, B = torch.randn(30, 12, device=device), torch.randn(50, 12, device=device)
    for own_rank in (1, 3):
        left = torch.randn(12, own_rank, device=device) @ torch.randn(own_rank, rank, device=device)
        right = torch.randn(12, rank, device=device)
        right[:, rank // 2 + 1 :] = 0
        check_ranking(top_pairs(A, left, right, B, 40), brute_top_pairs(A, left, right, B, 40))


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_pairs_equal_brute_force_for_tiny_and_huge_factors(scale, device):
    A, B = torch.randn(40, 8, device=device) * scale, torch.randn(30, 8, device=device)
    left, right = torch.randn(8, 4, device=device), torch.randn(8, 4, device=device) / scale
    check_ranking(top_pairs(A, left, right, B, 20), brute_top_pairs(A, left, right, B, 20))


# -- ties


def test_a_constant_product_gives_the_first_pairs(device):
    A, left = torch.full((3000, 8), 0.1, device=device), torch.randn(8, 4, device=device)
    score, row, column = top_pairs(A, left, left, A[:500], 1100)
    assert (row * 500 + column).tolist() == list(range(1100))
    assert len(score.unique()) == 1
    for factor in (left, 0 * left):
        assert top_pairs(A, 0 * left, factor, A, 3)[2].tolist() == [0, 1, 2]
    assert top_pairs(0 * A, left, left, A, 3)[2].tolist() == [0, 1, 2]


def test_equal_rows_are_ranked_by_index(device):
    """Twenty different rows, each many times, in random order: every score ties with hundreds of others."""
    different = torch.randn(20, 8, device=device)
    A, B = different[torch.randint(20, (600,))], different[torch.randint(20, (700,))]
    left, right = torch.randn(8, 4, device=device), torch.randn(8, 4, device=device)
    a, b = A.double() @ left.double(), B.double() @ right.double()
    product = torch.stack([(b * x).sum(-1) for x in a]).round(decimals=9).flatten()
    expected = product.sort(descending=True, stable=True).indices
    for k in (1, 37, 5000):
        _, row, column = top_pairs(A, left, right, B, k)
        assert torch.equal(row * 700 + column, expected[:k])


@pytest.mark.parametrize("k", [5, 400])
def test_ties_between_different_rows_are_ranked_by_index(k, device):
    """More ties than the candidates may hold, between rows that are all different."""
    A = torch.randint(-1, 2, (300, 12), device=device).float()
    first = torch.eye(12, device=device)[:, :2]
    with chunk_bytes(2**12):
        pairs = top_pairs(A, first, first, A, k)
    check_ranking(pairs, brute_top_pairs(A[:, :2], first[:2], first[:2], A[:, :2], k))


@pytest.mark.parametrize("budget", [1, 2**24])
def test_ties_between_copies_of_rows_are_ranked_by_index(budget, device):
    A = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [-0.0, 1.0]], device=device).repeat(60, 1)
    B = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]], device=device).repeat(60, 1)
    eye = torch.eye(2, device=device)
    with chunk_bytes(budget):
        check_ranking(top_pairs(A, eye, eye, B, 500), brute_top_pairs(A, eye, eye, B, 500))


def test_a_symmetric_product_ties_with_its_transpose(device):
    A = torch.randn(333, 15, device=device)
    left = torch.randn(15, 8, device=device)
    for largest in (True, False):
        _, row, column = top_pairs(A, left, left, A, 501, largest=largest)
        off_diagonal = (row != column).nonzero()[:, 0]
        pairs = list(zip(row[off_diagonal].tolist(), column[off_diagonal].tolist(), strict=True))
        for pair, next_pair in zip(pairs[:-1:2], pairs[1::2], strict=False):
            assert pair == next_pair[::-1] and pair[0] < pair[1]


# -- chunks, memory, precision modes, errors


@pytest.mark.parametrize("largest", [True, False])
def test_result_is_independent_of_chunk_size(largest, device):
    A, B = torch.randn(61, 9, device=device), torch.randn(50, 9, device=device)
    A[::3], B[:20] = A[0], B[1]
    left, right = torch.randn(9, 5, device=device), torch.randn(9, 5, device=device)
    for k in (1, 12, 700):
        expected = brute_top_pairs(A, left, right, B, k, largest)
        for budget in (2**4, 2**10, 2**24):
            with chunk_bytes(budget):
                check_ranking(top_pairs(A, left, right, B, k, largest=largest), expected)


@pytest.mark.parametrize(
    "budget", [2**10, 2**24]
)  # coordinates computed again for every tile, and coordinates in memory
def test_result_over_several_tiles_equals_brute_force(budget, device):
    """Products of small integers are exact. Ties are ranked by key, also between tiles of 512 × 2048."""
    A, B = (
        torch.randint(-20, 21, (1100, 9), device=device).float(),
        torch.randint(-20, 21, (4200, 9), device=device).float(),
    )
    A[::3], B[:2000:2] = A[0], B[1]
    left, right = (
        torch.randint(-3, 4, (9, 5), device=device).float(),
        torch.randint(-3, 4, (9, 5), device=device).float(),
    )
    for k in (1, 3000):
        with chunk_bytes(budget):
            pairs = top_pairs(A, left, right, B, k)
        check_ranking(pairs, dense_pairs(A, left, right, B, k))


def test_autocast_and_gradients_change_nothing():
    embedding, left = torch.nn.Parameter(torch.randn(300, 64)), torch.nn.Parameter(torch.randn(64, 8))
    expected = top_pairs(embedding, left, left, embedding, 5)
    assert not expected[0].requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check_ranking(top_pairs(embedding, left, left, embedding, 5), expected)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_fast_float32_products_give_exact_results(precision):
    embedding = torch.randn(3000, 64)
    left, right = torch.randn(2, 64, 16)
    expected = top_pairs(embedding, left, right, embedding, 50)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        check_ranking(top_pairs(embedding, left, right, embedding, 50), expected)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("k", [0, 10])
def test_k_out_of_range_raises(k):
    x = torch.randn(3, 4)
    with pytest.raises(EmbspaceError) as caught:
        top_pairs(x, x.T, x.T, x, k)
    assert str(caught.value) == f"k={k} is not an integer from 1 to 9, the number of pairs."


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_raise(value):
    x = torch.randn(300, 4)
    x[7, 2] = value
    with pytest.raises(EmbspaceError, match="^NaN or infinite values in the rows to rank"):
        top_pairs(x, x[:4], x[:4], x, 4)
