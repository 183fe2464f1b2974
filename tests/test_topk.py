"""The best k are those of brute force in float64, whatever the numbers, their ties, or the tiles."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import brute_top_pairs, brute_top_tokens

from embspace_lens.errors import EmbspaceError
from embspace_lens.search import pairs
from embspace_lens.search import screening as screen_module
from embspace_lens.search import tiles as rows_module
from embspace_lens.search import tokens as topk
from embspace_lens.search.tokens import top_pairs, top_tokens

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=cuda)])
def device(request):
    return torch.device(request.param)


@pytest.fixture(params=["screened in bfloat16", "screened in float32"], autouse=True)
def screen(request, monkeypatch):
    """Both screens, whatever this processor is good at."""
    dtype = torch.bfloat16 if request.param == "screened in bfloat16" else torch.float32
    monkeypatch.setattr(rows_module, "screen_dtype", lambda device: dtype)


@pytest.fixture
def small_tiles(monkeypatch):
    """Several tiles of everything, and no side of the pairs held whole."""
    sizes = dict(TILE_BYTES=2**10, SCORE_BYTES=2**10, PAIR_TILE=(7, 12), RESIDENT_BYTES=0, CHUNK_BYTES=2**8)
    for name, size in sizes.items():
        owner = next(module for module in (rows_module, topk, pairs) if hasattr(module, name))
        monkeypatch.setattr(owner, name, size)


class Lazy:
    """Rows that keep count of the most asked for at a time."""

    def __init__(self, rows):
        self.rows, self.most, self.made = rows, 0, 0

    shape = property(lambda self: tuple(self.rows.shape))
    device = property(lambda self: self.rows.device)

    def __getitem__(self, index):
        made = self.rows[index].float()
        self.most, self.made = max(self.most, len(made)), self.made + len(made)
        return made


def agree(found, truth):
    """Same indices; same scores, up to the last bit of float32, which the order of summation in float64 may turn."""
    score, *index = found
    true_score, *true_index = truth
    assert score.dtype == torch.float32
    for one, other in zip(index, true_index, strict=True):
        assert one.dtype == torch.int64
        torch.testing.assert_close(one.cpu(), other, rtol=0, atol=0)
    torch.testing.assert_close(score.cpu(), true_score, rtol=2e-7, atol=1e-12)


def dense_pairs(A, left, right, B, k):
    """Brute force for sizes at which loops would take too long; for inputs without ties."""
    product = (A.double() @ left.double()) @ (B.double() @ right.double()).T
    score, key = product.flatten().topk(k)
    return score.float(), key // len(B), key % len(B)


# -------------------------------------------------------------------------------------------------------- same as twins


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("largest", [True, False])
def test_tokens_are_those_of_brute_force(dtype, largest, device):
    vectors, embedding = torch.randn(9, 12).to(device, dtype), torch.randn(83, 12).to(device, dtype)
    for k in (1, 10, 83):
        agree(top_tokens(vectors, embedding, k, largest=largest), brute_top_tokens(vectors, embedding, k, largest))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("largest", [True, False])
def test_pairs_are_those_of_brute_force(dtype, largest, device):
    A, B = torch.randn(23, 10).to(device, dtype), torch.randn(41, 14).to(device, dtype)
    left, right = torch.randn(10, 6).to(device, dtype), torch.randn(14, 6).to(device, dtype)
    for k in (1, 10, 23 * 41):
        agree(top_pairs(A, left, right, B, k, largest=largest), brute_top_pairs(A, left, right, B, k, largest))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_pairs_and_tokens_of_any_small_integers(data):
    """Small integers tie all the time, and have rows of zeros, equal rows and factors of low rank."""
    n, m, d, rank = (data.draw(st.integers(1, most)) for most in (12, 12, 4, 6))
    high = data.draw(st.integers(0, 2))

    def integers(*shape):
        return torch.randint(-high, high + 1, shape).float()

    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    A, B, left, right = integers(n, d), integers(m, d), integers(d, rank), integers(d, rank)
    k, largest = data.draw(st.integers(1, n * m)), data.draw(st.booleans())
    agree(top_pairs(A, left, right, B, k, largest=largest), brute_top_pairs(A, left, right, B, k, largest))
    k = data.draw(st.integers(1, m))
    agree(top_tokens(A, B, k, largest=largest), brute_top_tokens(A, B, k, largest))


def test_pairs_of_a_larger_product(device):
    A, B = torch.randn(1500, 32, device=device), torch.randn(2600, 24, device=device)
    left, right = torch.randn(32, 16, device=device), torch.randn(24, 16, device=device)
    for scale in (1, torch.rand(1500, 1, device=device).pow(4)):  # rows all alike in length; rows of all lengths
        for k in (1, 10, 20_000):
            agree(top_pairs(A * scale, left, right, B, k), dense_pairs(A * scale, left, right, B, k))


def test_tokens_of_a_larger_product(device):
    vectors, embedding = torch.randn(300, 32, device=device), torch.randn(5000, 32, device=device)
    truth = (vectors.double() @ embedding.double().T).topk(50)
    agree(top_tokens(vectors, embedding, 50), (truth.values.float(), truth.indices))


def wide_screen(monkeypatch):
    """Count the batches that the first look settles, and the crowds that it leaves."""
    looked = []
    promising = screen_module._promising

    def spy(score, *args):
        found = promising(score, *args)
        looked.append((score.dtype, found is not None))
        return found

    monkeypatch.setattr(screen_module, "_promising", spy)
    return looked


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("n_rows", [2048, 2500])  # whole tiles, and a last one that is padded
def test_the_first_look_settles_and_stays_exact(largest, n_rows, monkeypatch, device):
    """Rows of all lengths around a common direction that makes every score negative, in several tiles and batches."""
    looked = wide_screen(monkeypatch)
    monkeypatch.setattr(rows_module, "TILE_BYTES", 1024 * 16 * 4)
    monkeypatch.setattr(topk, "SCORE_BYTES", 1024 * 4 * 100)
    common = 5 * torch.randn(16, device=device)
    embedding = torch.randn(n_rows, 16, device=device) * torch.rand(n_rows, 1, device=device) + common
    embedding[0] = common - 6 * common / common.norm()  # the best or the worst of all for every vector
    vectors = torch.randn(333, 16, device=device) - common
    vectors[7] = 0
    truth = (vectors.double() @ embedding.double().T).sort(dim=1, descending=largest, stable=True)
    score, index = truth.values[:, :10], truth.indices[:, :10]
    score[7], index[7] = 0, torch.arange(10)
    agree(top_tokens(vectors, embedding, 10, largest=largest), (score.float().cpu(), index.cpu()))
    dtype = rows_module.screen_dtype(device)
    sizes = [min(1024, n_rows - start) for start in range(0, n_rows, 1024)]
    batches = sum(-(-333 // (topk.SCORE_BYTES // (dtype.itemsize * -(-size // 64) * 64))) for size in sizes)
    assert looked == [(dtype, True)] * batches, "settled at the first attempt"


def test_fewer_candidates_than_places(device):
    """Ten rows far above the rest, the first of them row 0: places that nobody takes must not count it twice."""
    planted = torch.arange(10, device=device) * 101
    embedding = 0.01 * torch.randn(2000, 8, device=device)
    embedding[planted, 0] += torch.arange(20.0, 10.0, -1.0, device=device)
    vectors = torch.randn(5, 8, device=device) * 0.01 + torch.eye(8, device=device)[0]
    assert torch.equal(top_tokens(vectors, embedding, 10)[1], planted.repeat(5, 1))


def test_what_is_passed_over_cannot_belong_to_the_best(device):
    """The promise of the first look, on its own: nothing that is left out truly reaches the k-th best."""
    plain, even = torch.randn(50, 24, device=device), torch.randn(1500, 24, device=device)
    signs = torch.randn(50, 12, device=device).sign().repeat_interleave(2, 1)
    opposed = 64 * torch.tensor([1.0, -1.0], device=device).repeat(12)  # which cancels, but for what it was rounded to
    for x, rows in (
        (plain, even),
        (plain, even * torch.rand(1500, 1, device=device).pow(3)),
        (signs, opposed + 8 * torch.rand(1500, 24, device=device) - 4),
    ):
        screen = screen_module.Screen(x, 10, 15)
        tile = screen_module.Tile(rows, screen.dtype)
        truth = x.double() @ rows.double().T
        best = truth.sort(dim=1, descending=True)
        for floor in (best.values[:, 400], best.values[:, 8]):  # as if nothing, or better rows, had been found before
            value, index = screen.best(slice(0, 50), tile, floor)
            for i in range(50):
                kept = index[i][value[i] > -torch.inf]
                left = torch.ones(1500, dtype=torch.bool, device=device).index_fill(0, kept, False)
                reach = max(best.values[i, 9].item(), floor[i].item())
                last = value[i].min().item() if len(kept) == 15 else -torch.inf
                slack = screen.error(tile.longest)[i].item()
                assert (truth[i, left] < max(reach, last + slack)).all()
                found = value[i][value[i] > -torch.inf].double()
                torch.testing.assert_close(found, truth[i, kept], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_bits_below_a_limit(dtype):
    limit = torch.rand(1000, dtype=torch.float64).pow(20).clamp_min(1e-30)
    bits = screen_module._bits_below(limit, dtype)
    assert bits.dtype is screen_module.INTEGERS[dtype]
    back = bits.view(dtype).double()
    assert (back <= limit).all() and (back >= limit * (1 - 2**-6)).all()


def test_a_crowd_that_the_first_look_leaves(monkeypatch, device):
    """Scores that bfloat16 cannot tell apart: float32 looks, and after some crowds bfloat16 is not asked again."""
    looked = wide_screen(monkeypatch)
    monkeypatch.setattr(topk, "SCORE_BYTES", 2048 * 2 * 10)
    embedding = torch.cat([torch.ones(2048, 4), 1e-4 * torch.randn(2048, 4)], 1).to(device)
    embedding[::2, :4] *= -1  # the centre does not help
    vectors = torch.cat([torch.ones(200, 4), torch.randn(200, 4)], 1).to(device)
    truth = (vectors.double() @ embedding.double().T).topk(5)
    agree(top_tokens(vectors, embedding, 5), (truth.values.float().cpu(), truth.indices.cpu()))
    coarse = [settled for kind, settled in looked if kind is torch.bfloat16]
    if rows_module.screen_dtype(device) is torch.bfloat16:
        assert not any(coarse)
        assert (
            screen_module.PATIENCE < len(coarse) <= 3 * (screen_module.PATIENCE + 1)
        )  # 20 batches, two passes or three
    assert len(looked) >= 20 + len(coarse)


# ----------------------------------------------------------------------------------------------------------- hard cases


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("scale", [1.0, 2.0**-80])
def test_near_ties_that_float32_cannot_tell_apart(largest, scale, device):
    """float32 rounds all these scores to one number: only float64, and every row within the bound, gets them right."""
    n = 400
    embedding = torch.zeros(n, 3, device=device)
    embedding[:, 0], embedding[:, 1] = 1.0, torch.randperm(n, device=device) * 2.0**-33
    vectors = torch.tensor([[1.0, 1.0, 0.0], [3.0, -1.0, 0.0]], device=device) * scale  # whose squares may underflow
    agree(top_tokens(vectors, embedding, 5, largest=largest), brute_top_tokens(vectors, embedding, 5, largest))
    eye = torch.eye(3, device=device)
    args = embedding[:60], eye, eye, embedding[:70], 30
    agree(top_pairs(*args, largest=largest), brute_top_pairs(*args, largest))


@pytest.mark.parametrize("largest", [True, False])
def test_rows_that_nearly_cancel(largest, device):
    """In float32 the coordinates of these rows are mostly rounding error, which the bound on pairs must know."""
    A = torch.randn(200, 6, device=device)
    A[:, :2] = torch.stack([A[:, 0], 1e-6 * A[:, 1] - A[:, 0]], 1) * 1e5
    left = torch.zeros(6, 2, device=device)
    left[:2, 0], left[2:, 1] = 1, 0.0001
    right = torch.eye(2, device=device)
    B = torch.rand(30, 2, device=device)
    agree(top_pairs(A, left, right, B, 40, largest=largest), brute_top_pairs(A, left, right, B, 40, largest))


def test_bounds_on_coordinates_hold(device):
    """The two promises that the screen of pairs rests on, and their maxima by tile."""
    A, basis = torch.randn(100, 300, device=device), torch.randn(300, 8, device=device)
    side = pairs._Side(A, basis, 0.0, 7, resident=True)
    truth = (A.double() @ basis.double())[side.order]
    assert (truth.norm(dim=1) <= side.norm).all()
    assert ((side.coordinates(0, 100) - truth).norm(dim=1) <= side.slack).all()
    for norm, slack, top, most in zip(
        side.norm.split(7), side.slack.split(7), side.longest, side.slackest, strict=True
    ):
        assert norm.max() == top and slack.max() == most


@pytest.mark.parametrize("largest", [True, False])
def test_a_large_common_direction(largest, device):
    common = 100 * torch.randn(16, device=device)
    A, B = torch.randn(60, 16, device=device) + common, torch.randn(80, 16, device=device) + common
    left, right = torch.randn(16, 8, device=device), torch.randn(16, 8, device=device)
    agree(top_pairs(A, left, right, B, 25, largest=largest), brute_top_pairs(A, left, right, B, 25, largest))
    agree(top_tokens(A, B, 7, largest=largest), brute_top_tokens(A, B, 7, largest))


def test_a_large_common_direction_at_scale(device):
    """bfloat16 can tell nothing apart here, and float32 little."""
    A = torch.randn(3000, 24, device=device) + 100 * torch.randn(24, device=device)
    left, right = torch.randn(24, 16, device=device), torch.randn(24, 16, device=device)
    agree(top_pairs(A, left, right, A, 10), dense_pairs(A, left, right, A, 10))


def test_planted_pairs(device):
    A, B = 0.01 * torch.randn(3000, 20, device=device), 0.01 * torch.randn(4000, 20, device=device)
    eye = torch.eye(20, device=device)
    planted = [(2999, 3999), (0, 1), (1234, 2345), (7, 3000)]
    for rank, (i, j) in enumerate(planted):
        A[i], B[j] = 0, 0
        A[i, rank], B[j, rank] = 4 - rank, 4 - rank
    score, row, col = top_pairs(A, eye, eye, B, 4)
    assert list(zip(row.tolist(), col.tolist(), strict=True)) == planted
    assert score.tolist() == [16, 9, 4, 1]


@pytest.mark.parametrize("rank", [1, 5, 40])
def test_factors_of_low_rank_and_more_columns_than_rows(rank, device):
    A, B = torch.randn(30, 12, device=device), torch.randn(50, 12, device=device)
    for own_rank in (1, 3):
        left = torch.randn(12, own_rank, device=device) @ torch.randn(own_rank, rank, device=device)
        right = torch.randn(12, rank, device=device)
        right[:, rank // 2 + 1 :] = 0
        agree(top_pairs(A, left, right, B, 40), brute_top_pairs(A, left, right, B, 40))


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_tiny_and_huge_weights(scale, device):
    A, B = torch.randn(40, 8, device=device) * scale, torch.randn(30, 8, device=device)
    left, right = torch.randn(8, 4, device=device), torch.randn(8, 4, device=device) / scale
    agree(top_pairs(A, left, right, B, 20), brute_top_pairs(A, left, right, B, 20))
    agree(top_tokens(A, B / scale, 9), brute_top_tokens(A, B / scale, 9))


# ----------------------------------------------------------------------------------------------------------------- ties


def test_a_constant_product_gives_the_first_pairs(device):
    A, left = torch.full((3000, 8), 0.1, device=device), torch.randn(8, 4, device=device)
    score, row, col = top_pairs(A, left, left, A[:500], 1100)
    assert (row * 500 + col).tolist() == list(range(1100))
    assert len(score.unique()) == 1
    for factor in (left, 0 * left):
        assert top_pairs(A, 0 * left, factor, A, 3)[2].tolist() == [0, 1, 2]
    assert top_pairs(0 * A, left, left, A, 3)[2].tolist() == [0, 1, 2]


def test_equal_rows_are_ranked_by_index(device):
    """Each row many times over, in random order: every score is tied hundreds of times."""
    kinds = torch.randn(20, 8, device=device)
    A, B = kinds[torch.randint(20, (600,))], kinds[torch.randint(20, (700,))]
    left, right = torch.randn(8, 4, device=device), torch.randn(8, 4, device=device)
    for k in (1, 37, 5000):
        _, row, col = top_pairs(A, left, right, B, k)
        # float64 scores of kinds, then ties by key: a stable sort of all pairs
        a, b = A.double() @ left.double(), B.double() @ right.double()
        product = torch.stack([(b * x).sum(-1) for x in a]).round(decimals=9).flatten()
        assert torch.equal(row * 700 + col, product.sort(descending=True, stable=True).indices[:k])
    for k in (1, 37, 650):
        _, index = top_tokens(A[:30], B, k)
        product = torch.stack([(B.double() * x.double()).sum(-1) for x in A[:30]])
        assert torch.equal(index, product.sort(dim=1, descending=True, stable=True).indices[:, :k])


def test_ties_between_rows_that_differ(monkeypatch, device):
    """A crowd that no grouping of equal rows thins out: kept in bounds by ranking it exactly, time and again."""
    A = torch.randint(-1, 2, (300, 12), device=device).float()
    first = torch.eye(12, device=device)[:, :2]
    monkeypatch.setattr(pairs, "POOL_BYTES", 0)
    compact, kept = pairs._Pool.compact, []

    def spy(pool):
        compact(pool)
        kept.append(len(pool.parts[0][2]) / pool.capacity)

    monkeypatch.setattr(pairs._Pool, "compact", spy)
    for k in (5, 400):
        agree(top_pairs(A, first, first, A, k), brute_top_pairs(A[:, :2], first[:2], first[:2], A[:, :2], k))
    assert max(kept) <= 1


@pytest.mark.parametrize("copies", [1, 2**20])
def test_ties_between_copies_of_rows_that_differ(copies, monkeypatch, device):
    monkeypatch.setattr(pairs, "POOL_BYTES", 0)
    monkeypatch.setattr(rows_module, "COPIES", copies)
    A = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [-0.0, 1.0]], device=device).repeat(60, 1)
    B = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]], device=device).repeat(60, 1)
    eye = torch.eye(2, device=device)
    agree(top_pairs(A, eye, eye, B, 500), brute_top_pairs(A, eye, eye, B, 500))
    agree(top_tokens(A[:4], B, 90), brute_top_tokens(A[:4], B, 90))


def test_equal_rows_are_known_by_their_bits(device):
    rows = torch.tensor([[0.0, 1.0], [2.0, 1.0], [-0.0, 1.0], [1.0, 0.0], [2.0, 1.0]], device=device)
    for dtype in (torch.float32, torch.float64):
        first, group = rows_module.distinct_rows(rows.to(dtype))
        assert first.tolist() == [0, 1, 3] and group.tolist() == [0, 1, 0, 2, 1]
    index = torch.tensor([4, 0, 1, 2, 3], device=device)
    _, at = pairs._exact_coordinates(rows, torch.randn(2, 3, device=device), index)
    assert at[0] == at[2] and at[1] == at[3] and len(at.unique()) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_compared_by_their_bits(dtype):
    score = torch.randn(40, 30).to(dtype)
    for limit in [*score[:3].flatten().tolist(), 0.0, -float("inf"), float("inf"), 1e39, 1.2345]:
        truth = (score.double() >= limit).nonzero()
        found = torch.stack(pairs._at_least(score, limit), 1)
        missed = set(map(tuple, truth.tolist())) - set(map(tuple, found.tolist()))
        assert not missed and len(found) <= len(truth) + 3


def test_a_symmetric_product_ties_with_its_transpose(device):
    A = torch.randn(333, 15, device=device)
    left = torch.randn(15, 8, device=device)
    for largest in (True, False):
        _, row, col = top_pairs(A, left, left, A, 501, largest=largest)
        off = (row != col).nonzero()[:, 0]
        pairs = list(zip(row[off].tolist(), col[off].tolist(), strict=True))
        for one, other in zip(pairs[:-1:2], pairs[1::2], strict=False):
            assert one == other[::-1] and one[0] < one[1]


def test_zero_vectors_and_rows(device):
    vectors, embedding = torch.zeros(3, 6, device=device), torch.zeros(900, 6, device=device)
    assert top_tokens(vectors, torch.randn(900, 6, device=device), 4)[1].tolist() == [[0, 1, 2, 3]] * 3
    assert not top_tokens(vectors, embedding, 4, largest=False)[0].signbit().any()
    vectors[1] = 1
    assert top_tokens(vectors, embedding, 4)[1].tolist() == [[0, 1, 2, 3]] * 3
    embedding[700:] = torch.randn(200, 6, device=device)  # unused rows in front, as many as there are
    agree(top_tokens(vectors, embedding, 300), brute_top_tokens(vectors, embedding, 300))


# -------------------------------------------------------------------------------------------------------- tiles, memory


@pytest.mark.parametrize("largest", [True, False])
def test_tiles_are_invisible(small_tiles, largest, device):
    A, B = torch.randn(61, 9, device=device), torch.randn(50, 9, device=device)
    A[::3], B[:20] = A[0], B[1]
    left, right = torch.randn(9, 5, device=device), torch.randn(9, 5, device=device)
    for k in (1, 12, 700):
        agree(top_pairs(A, left, right, B, k, largest=largest), brute_top_pairs(A, left, right, B, k, largest))
    for k in (1, 12, 50):
        agree(top_tokens(A, B, k, largest=largest), brute_top_tokens(A, B, k, largest))


def test_few_rows_are_asked_for_at_a_time(monkeypatch):
    monkeypatch.setattr(rows_module, "TILE_BYTES", 2**16)
    A, B = Lazy(torch.randn(4000, 64).bfloat16()), Lazy(torch.randn(3000, 64))
    left, right = torch.randn(64, 8), torch.randn(64, 8)
    found = top_pairs(A, left, right, B, 10)
    agree(found, dense_pairs(A.rows, left, right, B.rows, 10))
    assert A.most <= 1024 and B.most <= 1024  # the sample for the basis; tiles have 256
    assert A.made < 1.5 * 4000
    seen = []
    B.most = B.made = 0
    top_tokens(torch.randn(20, 64), B, 5, progress=lambda done, of: seen.append((done, of)))
    assert B.most <= 256 and B.made < 1.5 * 3000
    assert seen[-1] == (3000, 3000) and len(seen) == 12
    for size in (2**20, 2**27):  # coordinates computed again when visited, or held
        monkeypatch.setattr(pairs, "RESIDENT_BYTES", size)
        agree(top_pairs(A, left, right, B, 10), found)


def test_gradients_and_autocast_are_left_out():
    vectors = torch.nn.Parameter(torch.randn(20, 64))
    embedding, left = torch.nn.Parameter(torch.randn(300, 64)), torch.nn.Parameter(torch.randn(64, 8))
    tokens, pairs = top_tokens(vectors, embedding, 5), top_pairs(embedding, left, left, embedding, 5)
    assert not tokens[0].requires_grad and not pairs[0].requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        agree(top_tokens(vectors, embedding, 5), tokens)
        agree(top_pairs(embedding, left, left, embedding, 5), pairs)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_fast_products_of_float32_stay_exact(precision):
    vectors, embedding = torch.randn(40, 64), torch.randn(3000, 64)
    left, right = torch.randn(2, 64, 16)
    tokens, pairs = top_tokens(vectors, embedding, 5), top_pairs(embedding, left, right, embedding, 50)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        agree(top_tokens(vectors, embedding, 5), tokens)
        agree(top_pairs(embedding, left, right, embedding, 50), pairs)
        inputs = {"high": 2**-11, "medium": 2**-9}[precision]  # not every processor does what it is allowed to
        assert rows_module.rounding(64, torch.float32, torch.device("cpu")) > 2 * inputs
        assert rows_module.rounding(64, torch.float64, torch.device("cpu")) < 2**-40
    finally:
        torch.set_float32_matmul_precision(before)


# --------------------------------------------------------------------------------------------------------------- errors


def test_k_out_of_range():
    x = torch.randn(3, 4)
    with pytest.raises(EmbspaceError, match=r"k=4 is out of range: there are 3 rows to choose from \(k is 1 to 3\)\."):
        top_tokens(x, x, 4)
    with pytest.raises(EmbspaceError, match="k=10 is out of range: there are 9 pairs to choose from"):
        top_pairs(x, x.T, x.T, x, 10)
    with pytest.raises(EmbspaceError, match="k=0 is out of range"):
        top_tokens(x, x, 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite(bad):
    x = torch.randn(300, 4)
    x[7, 2] = bad
    with pytest.raises(EmbspaceError, match="NaN or infinity"):
        top_tokens(x[:2], x, 4)
    with pytest.raises(EmbspaceError, match="NaN or infinity"):
        top_pairs(x, x[:4], x[:4], x, 4)
