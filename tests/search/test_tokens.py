"""The best k rows are those of brute force in float64, for any numbers, ties and chunk sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import check_ranking
from reference import brute_top_tokens

from embspace_lens.errors import EmbspaceError
from embspace_lens.search import screening
from embspace_lens.search.tiles import chunk_bytes, chunk_rows
from embspace_lens.search.tokens import top_tokens

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("largest", [True, False])
def test_tokens_equal_brute_force(dtype, largest, device):
    vectors, embedding = torch.randn(9, 12).to(device, dtype), torch.randn(83, 12).to(device, dtype)
    for k in (1, 10, 83):
        expected = brute_top_tokens(vectors, embedding, k, largest)
        check_ranking(top_tokens(vectors, embedding, k, largest=largest), expected)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_tokens_of_small_integers_equal_brute_force(data):
    """Small integers give many ties, rows of zeros and equal rows."""
    n, m, d = (data.draw(st.integers(1, maximum)) for maximum in (12, 12, 4))
    high = data.draw(st.integers(0, 2))
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    A, B = (torch.randint(-high, high + 1, (rows, d)).float() for rows in (n, m))
    k, largest = data.draw(st.integers(1, m)), data.draw(st.booleans())
    check_ranking(top_tokens(A, B, k, largest=largest), brute_top_tokens(A, B, k, largest))


def test_tokens_of_a_larger_product_equal_brute_force(device):
    vectors, embedding = torch.randn(300, 32, device=device), torch.randn(5000, 32, device=device)
    expected = (vectors.double() @ embedding.double().T).topk(50)
    check_ranking(top_tokens(vectors, embedding, 50), (expected.values.float(), expected.indices))


# -- screening


@pytest.fixture
def screened_batches(monkeypatch):
    """The screened batches: the precision of each, and whether it had few enough candidates."""
    records = []
    candidate_entries = screening.candidate_entries

    def recorded(score, *args):
        candidates = candidate_entries(score, *args)
        records.append((score.dtype, candidates is not None))
        return candidates

    monkeypatch.setattr(screening, "candidate_entries", recorded)
    return records


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("n_rows", [2048, 2500])  # whole tiles, and a padded last tile
def test_screening_succeeds_for_every_batch(largest, n_rows, screened_batches, screen_dtype, device):
    """Rows of different norms around a common direction that makes every score negative, in several tiles and batches."""
    common = 5 * torch.randn(16, device=device)
    embedding = torch.randn(n_rows, 16, device=device) * torch.rand(n_rows, 1, device=device) + common
    embedding[0] = common - 6 * common / common.norm()  # the best or the worst row of every vector
    vectors = torch.randn(333, 16, device=device) - common
    vectors[7] = 0
    scores = (vectors.double() @ embedding.double().T).sort(dim=1, descending=largest, stable=True)
    score, index = scores.values[:, :10], scores.indices[:, :10]
    score[7], index[7] = 0, torch.arange(10)
    tile = 1024
    with chunk_bytes(tile * 16 * 4):
        check_ranking(top_tokens(vectors, embedding, 10, largest=largest), (score.float().cpu(), index.cpu()))
        padded = [-(-min(tile, n_rows - start) // 64) * 64 for start in range(0, n_rows, tile)]
        n_batches = sum(-(-332 // chunk_rows(screen_dtype.itemsize * size, scale=0.5)) for size in padded)
    assert screened_batches == [(screen_dtype, True)] * n_batches


def test_unused_slots_do_not_count_row_zero_twice(device):
    """Ten rows far above the rest, the first of them row 0: fewer candidates than slots."""
    planted = torch.arange(10, device=device) * 101
    embedding = 0.01 * torch.randn(2000, 8, device=device)
    embedding[planted, 0] += torch.arange(20.0, 10.0, -1.0, device=device)
    vectors = torch.randn(5, 8, device=device) * 0.01 + torch.eye(8, device=device)[0]
    assert torch.equal(top_tokens(vectors, embedding, 10)[1], planted.repeat(5, 1))


def test_float32_replaces_bfloat16_after_some_failures(screened_batches, screen_dtype, device):
    """Scores that bfloat16 cannot distinguish: float32 screens this batch, and all later ones."""
    embedding = torch.cat([torch.ones(2048, 4), 1e-4 * torch.randn(2048, 4)], 1).to(device)
    embedding[::2, :4] *= -1  # the mean row is near zero, so subtracting it does not help
    vectors = torch.cat([torch.ones(200, 4), torch.randn(200, 4)], 1).to(device)
    expected = (vectors.double() @ embedding.double().T).topk(5)
    with chunk_bytes(2 * 2048 * 2 * 10):  # one tile, batches of ten vectors
        check_ranking(top_tokens(vectors, embedding, 5), (expected.values.float().cpu(), expected.indices.cpu()))
    bfloat16_results = [succeeded for dtype, succeeded in screened_batches if dtype is torch.bfloat16]
    if screen_dtype is torch.bfloat16:
        assert not any(bfloat16_results)
        # 20 batches in two or three passes
        assert screening.MAX_FAILURES < len(bfloat16_results) <= 3 * (screening.MAX_FAILURES + 1)
    assert len(screened_batches) >= 20 + len(bfloat16_results)


# -- hard cases


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("scale", [1.0, 2.0**-80])
def test_near_ties_below_float32_are_ranked_exactly(largest, scale, device):
    """float32 rounds all these scores to one number. Only products in float64, of all rows within the error bound, rank them correctly."""
    n = 400
    embedding = torch.zeros(n, 3, device=device)
    embedding[:, 0], embedding[:, 1] = 1.0, torch.randperm(n, device=device) * 2.0**-33
    vectors = (
        torch.tensor([[1.0, 1.0, 0.0], [3.0, -1.0, 0.0]], device=device) * scale
    )  # the squares of these may underflow
    expected = brute_top_tokens(vectors, embedding, 5, largest)
    check_ranking(top_tokens(vectors, embedding, 5, largest=largest), expected)


@pytest.mark.parametrize("largest", [True, False])
def test_tokens_equal_brute_force_with_a_large_common_direction(largest, device):
    common = 100 * torch.randn(16, device=device)
    A, B = torch.randn(60, 16, device=device) + common, torch.randn(80, 16, device=device) + common
    check_ranking(top_tokens(A, B, 7, largest=largest), brute_top_tokens(A, B, 7, largest))


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_tokens_equal_brute_force_for_tiny_and_huge_vectors(scale, device):
    A, B = torch.randn(40, 8, device=device) * scale, torch.randn(30, 8, device=device)
    check_ranking(top_tokens(A, B / scale, 9), brute_top_tokens(A, B / scale, 9))


# -- ties


def test_equal_rows_are_ranked_by_index(device):
    """Twenty different rows, each many times, in random order: every score ties with dozens of others."""
    different = torch.randn(20, 8, device=device)
    A, B = different[torch.randint(20, (30,))], different[torch.randint(20, (700,))]
    product = torch.stack([(B.double() * x.double()).sum(-1) for x in A])
    expected = product.sort(dim=1, descending=True, stable=True).indices
    for k in (1, 37, 650):
        assert torch.equal(top_tokens(A, B, k)[1], expected[:, :k])


@pytest.mark.parametrize("budget", [1, 2**24])
def test_ties_between_copies_of_rows_are_ranked_by_index(budget, device):
    A = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [-0.0, 1.0]], device=device)
    B = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]], device=device).repeat(60, 1)
    with chunk_bytes(budget):
        check_ranking(top_tokens(A, B, 90), brute_top_tokens(A, B, 90))


def test_every_row_ties_for_a_zero_vector(device):
    vectors, embedding = torch.zeros(3, 6, device=device), torch.zeros(900, 6, device=device)
    assert top_tokens(vectors, torch.randn(900, 6, device=device), 4)[1].tolist() == [[0, 1, 2, 3]] * 3
    assert not top_tokens(vectors, embedding, 4, largest=False)[0].signbit().any(), "0, not −0"
    vectors[1] = 1
    assert top_tokens(vectors, embedding, 4)[1].tolist() == [[0, 1, 2, 3]] * 3
    embedding[700:] = torch.randn(200, 6, device=device)
    check_ranking(top_tokens(vectors, embedding, 300), brute_top_tokens(vectors, embedding, 300))


# -- chunks, precision modes, errors


@pytest.mark.parametrize("largest", [True, False])
def test_result_is_independent_of_chunk_size(largest, device):
    A, B = torch.randn(61, 9, device=device), torch.randn(50, 9, device=device)
    A[::3], B[:20] = A[0], B[1]
    for k in (1, 12, 50):
        expected = brute_top_tokens(A, B, k, largest)
        for budget in (2**10, 2**24):
            with chunk_bytes(budget):
                check_ranking(top_tokens(A, B, k, largest=largest), expected)


def test_autocast_and_gradients_change_nothing():
    vectors, embedding = torch.nn.Parameter(torch.randn(20, 64)), torch.nn.Parameter(torch.randn(300, 64))
    expected = top_tokens(vectors, embedding, 5)
    assert not expected[0].requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check_ranking(top_tokens(vectors, embedding, 5), expected)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_fast_float32_products_give_exact_results(precision):
    vectors, embedding = torch.randn(40, 64), torch.randn(3000, 64)
    expected = top_tokens(vectors, embedding, 5)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        check_ranking(top_tokens(vectors, embedding, 5), expected)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("k", [0, 4])
def test_k_out_of_range_raises(k):
    x = torch.randn(3, 4)
    with pytest.raises(EmbspaceError) as caught:
        top_tokens(x, x, k)
    assert str(caught.value) == f"k={k} is not an integer from 1 to 3, the number of rows."


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_raise(value):
    x = torch.randn(300, 4)
    x[7, 2] = value
    with pytest.raises(EmbspaceError, match="^NaN or infinite values in the rows to rank"):
        top_tokens(x[:2], x, 4)
