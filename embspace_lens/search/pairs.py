r"""Exact best k entries of a low-rank product A·L·Rᵀ·Bᵀ, in tiles that fit memory.

As in `topk`: a screen in low precision with a proven bound, then float64 for what is left, ranked, equal scores by index.
"""

import math
import struct
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..tables.checks import check_integer
from . import bounds
from .bounds import UNDERFLOW, finite, length_bound, plain_arithmetic, rounding
from .duplicates import best_by_key, distinct_rows, expand, fingerprint, first_of_each
from .tiles import Rows, Subset, chunk_rows, chunks, float64, row_bytes, signed, take, upcast

PAIR_TILE = (512, 2048)  # rows × columns of pairs screened at a time
PATIENCE = 32  # tiles in which bfloat16 may fail before float32 takes its place


def top_pairs(
    A: Rows,
    left: Float[Tensor, "d_a rank"],
    right: Float[Tensor, "d_b rank"],
    B: Rows,
    k: int,
    *,
    largest: bool = True,
) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"], Int[Tensor, " k"]]:
    r"""Find the largest entries of a low-rank product without building it.

    .. math:: \operatorname{top}_k \{ A_i \, L R^\top B_j^\top : i < n, j < m \}

    Rows are visited longest first, in the basis of the low-rank space that makes both sides equally long, so that the
    search ends where :math:`|A_i L||B_j R|` falls under the k-th best score; what comes before is screened in bfloat16
    where that is fast.

    Args:
        A: The rows of the product, n × d_a.
        left: L; `W_Q` for pairs of query and key.
        right: R; `W_K`.
        B: The columns of the product, m × d_b.
        k: How many pairs to keep.
        largest: Keep the largest entries; otherwise the most negative.

    Returns:
        Scores (float32), rows and columns (int64), one per pair, best first, equal scores by row, then column.

    Raises:
        EmbspaceError: If k is less than one or more than there are pairs.
    """
    n, m = A.shape[0], B.shape[0]
    check_integer("k", k, minimum=1, maximum=n * m, count_of="pairs")
    with plain_arithmetic(left.device):
        left, right = upcast(left), upcast(right)
        if left.any() and right.any():
            try:
                score, key = _search_pairs(A, left, right, B, k, largest=largest)
            except _Crowded:
                score, key = _search_distinct_pairs(A, left, right, B, k, largest=largest)
        else:  # everything ties
            key = torch.arange(k, device=left.device)
            score = torch.zeros_like(key)
        return signed(score, largest), key // m, key % m


class _Crowded(Exception):
    """More pairs tie with the k-th best than are worth holding."""


class _Side:
    """One side of a product in the balanced basis, longest rows first.

    `norm` bounds the true length of each row's coordinates, `slack` how far from them computed coordinates may be,
    float64 brute force included; both sorted like `order`, with their maxima over each tile in Python numbers.
    """

    def __init__(self, rows: Rows, basis: Float[Tensor, "d rank"], error: float, tile: int, resident: bool) -> None:
        self.rows, self.basis, self.tile = rows, basis, tile
        norms, slacks = [], []
        kept = torch.empty(rows.shape[0] if resident else 0, basis.shape[1], device=basis.device)
        error += rounding(len(basis) + 2, basis.dtype, basis.device) * torch.linalg.vector_norm(basis).item()
        for some in chunks(rows.shape[0], row_bytes(rows)):
            made = take(rows, some).to(basis.dtype)
            part = (made @ basis).float()
            slacks.append((length_bound(made) * error).float() + length_bound(part) * 2**-23)
            norms.append(length_bound(part) + slacks[-1])
            if resident:
                kept[some] = part
        norm, slack = torch.cat(norms), torch.cat(slacks)
        self.norm, self.order = norm.sort(descending=True, stable=True)
        self.slack = slack[self.order]
        self.kept = kept[self.order] if resident else None
        self.longest = self.norm[::tile].tolist()
        self.slackest = [part.max().item() for part in self.slack.split(tile)]
        finite(math.fsum(self.longest))

    def coordinates(self, start: int, stop: int) -> Float[Tensor, "n rank"]:
        if self.kept is not None:
            return self.kept[start:stop]
        index = self.order[start:stop]
        made = torch.empty(len(index), self.basis.shape[1], device=self.basis.device)
        for some in chunks(len(index), row_bytes(self.rows)):
            made[some] = take(self.rows, index[some]).to(self.basis.dtype) @ self.basis
        return made


class _Pool:
    """The pairs that may be among the best k, with an interval around each score; `floor` bounds the k-th best."""

    def __init__(self, k: int, capacity: int, rescore: Callable[[Tensor], Tensor] | None, device: torch.device) -> None:
        self.k, self.capacity, self.rescore = k, capacity, rescore
        self.floor, self.parts, self.fresh = -math.inf, [], 0
        nothing = torch.empty(0, device=device)
        self.add(nothing, nothing, nothing.long())

    def add(self, lower: Float[Tensor, " p"], upper: Float[Tensor, " p"], key: Int[Tensor, " p"]) -> None:
        self.parts.append((lower, upper, key))
        self.fresh += len(key)
        if self.fresh > max(64, self.k // 4):
            self.compact()

    def raise_floor(self, lower: Float[Tensor, " p"]) -> None:
        if len(lower) >= self.k:
            self.floor = max(self.floor, lower.topk(self.k, sorted=False).values.min().item())

    def compact(self) -> None:
        """Drop what cannot win. If ties leave too much, keep the best k by float64 score, then by row and column."""
        lower, upper, key = (torch.cat(part) for part in zip(*self.parts, strict=True))
        self.raise_floor(lower)
        alive = upper >= self.floor
        lower, upper, key = lower[alive], upper[alive], key[alive]
        if len(key) > self.capacity:
            if self.rescore is None:
                raise _Crowded
            score, key = best_by_key(self.rescore(key), key, self.k)
            lower, upper = (score * (1 - score.sign() * sign * 2**-22) for sign in (1, -1))
            lower, upper = lower.to(alive.device, torch.float32), upper.to(alive.device, torch.float32)
            self.raise_floor(lower)
        self.parts, self.fresh = [(lower, upper, key)], 0


def _search_pairs(A, left, right, B, k, *, largest, distinct=False):
    """Best k pairs: float64 scores, positive for better, and keys (row · m + column).

    Raises `_Crowded` when more pairs than are worth holding tie with the k-th best, unless the rows are `distinct`.
    """
    n, m, rank = A.shape[0], B.shape[0], left.shape[1]
    left_basis, right_basis, error = _balanced_bases(A, left, right, B)
    resident = n + m <= chunk_rows(4 * rank, scale=8)
    high, wide = PAIR_TILE
    a = _Side(A, left_basis if largest else -left_basis, error[0], high, resident)
    b = _Side(B, right_basis, error[1], wide, resident)
    capacity = max(4 * k, chunk_rows(16 * rank, scale=4))

    def rescore(key: Int[Tensor, " p"]) -> Float[Tensor, " p"]:
        step = capacity if distinct else len(key)  # equal rows must meet to be seen as equal
        score = [_rescore_pairs(A, left, right, B, part // m, part % m) for part in key.split(max(1, step))]
        return torch.cat(score) * (1 if largest else -1)

    pool = _Pool(k, capacity, rescore if distinct else None, a.order.device)
    fine = rounding(rank + 4, torch.float32, a.order.device)
    coarse, coarse_error = bounds.screen_dtype(a.order.device), fine
    if coarse is torch.bfloat16:
        coarse_error = (1 + 2**-8) ** 3 * (1 + 2 * fine) - 1  # two inputs and the output are rounded
    refined = 0  # tiles in which bfloat16 could not tell the best pairs from the rest

    corner = max(256, math.isqrt(4 * k) + 1)  # the longest rows give the first bound
    score = a.coordinates(0, corner) @ b.coordinates(0, corner).T
    margin = _margin(a.norm[:corner, None], a.slack[:corner, None], b.norm[:corner], b.slack[:corner], fine)
    pool.raise_floor((score - margin).flatten())

    chunk = n if resident else chunk_rows(4 * rank * high, scale=2) * high
    for start in range(0, n, chunk):
        x = a.coordinates(start, start + chunk)
        x_coarse = x.to(coarse)
        for left_edge in range(0, m, wide):
            b_most = b.longest[left_edge // wide], b.slackest[left_edge // wide]
            if a.longest[start // high] * b_most[0] < pool.floor:
                break
            y = b.coordinates(left_edge, left_edge + wide)
            y_coarse = y.to(coarse)
            columns = slice(left_edge, left_edge + len(y))
            for top in range(start, min(n, start + chunk), high):
                a_most = a.longest[top // high], a.slackest[top // high]
                if a_most[0] * b_most[0] < pool.floor:
                    break
                rows, here = slice(top, top + high), slice(top - start, top - start + high)
                score = x_coarse[here] @ y_coarse.T
                i, j = _at_least(score, pool.floor - _margin(*a_most, *b_most, coarse_error))
                if not len(i):
                    continue
                if score.dtype is torch.float32 or len(i) * rank > score.numel():
                    if score.dtype is torch.bfloat16:
                        score, refined = x[here] @ y.T, refined + 1
                        i, j = _at_least(score, pool.floor - _margin(*a_most, *b_most, fine))
                    value = score[i, j]
                else:
                    value = (x[here][i] * y[j]).sum(-1)
                margin = _margin(a.norm[rows][i], a.slack[rows][i], b.norm[columns][j], b.slack[columns][j], fine)
                pool.add(value - margin, value + margin, a.order[rows][i] * m + b.order[columns][j])
            if refined > PATIENCE and coarse is torch.bfloat16:
                coarse, coarse_error, x_coarse = torch.float32, fine, x
    pool.compact()
    key = pool.parts[0][2]
    return best_by_key(rescore(key), key, k)


def _search_distinct_pairs(A, left, right, B, k, *, largest):
    """The search among distinct rows; each of the pairs found then stands for all pairs of rows equal to its own.

    The first of its kind comes before its copies, so the best k pairs are copies of the best k of these.
    """
    first_a, group_a = distinct_rows(A)
    first_b, group_b = (first_a, group_a) if B is A else distinct_rows(B)
    some_a = Subset(A, first_a)
    some_b = some_a if B is A else Subset(B, first_b)
    wanted = min(k, len(first_a) * len(first_b))
    score, key = _search_pairs(some_a, left, right, some_b, wanted, largest=largest, distinct=True)
    return expand(score, key // len(first_b), key % len(first_b), group_a, group_b, k)


def _balanced_bases(A, left, right, B):
    r"""Bases M = L T, N = R T⁻ᵀ in which a sample of both sides is equally long: A M (B N)ᵀ = A L Rᵀ Bᵀ.

    With the Gram matrices of A L and B R factored as PᵀP and QᵀQ, and P Qᵀ = U S Vᵀ, T is P⁻¹ U √S. Any T gives the
    same answer, so a sample of rows is enough, and a ridge makes T invertible where the factors are not of full rank.
    How far T T⁻¹ is from one, and float64 brute force from the truth, is returned as a factor on the length of the
    rows of each side.
    """
    rank = left.shape[1]
    roots = []
    for rows, factor in ((A, left), (B, right)):
        index = torch.arange(min(1024, rows.shape[0]), device=rows.device) * max(1, rows.shape[0] // 1024)
        sample = float64(take(rows, index)) @ float64(factor)
        gram = (sample.T @ sample).cpu()
        ridge = 1e-8 * finite(gram.trace().item()) / rank
        gram += torch.eye(rank, dtype=gram.dtype) * (ridge or 1.0)
        roots.append(torch.linalg.cholesky(gram, upper=True))
    u, s, vh = torch.linalg.svd(roots[0] @ roots[1].T)
    change_left = torch.linalg.solve_triangular(roots[0], u * s.sqrt(), upper=True)
    change_right = torch.linalg.solve_triangular(roots[1], vh.T * s.sqrt(), upper=True)
    inexact = torch.linalg.matrix_norm(change_left @ change_right.T - torch.eye(rank, dtype=s.dtype)).item()
    bases = [(float64(f).cpu() @ c).to(f) for f, c in ((left, change_left), (right, change_right))]
    size_left, size_right = (torch.linalg.matrix_norm(base.double()).item() for base in bases)
    inexact += 2 * rounding(sum(left.shape) + len(right), torch.float64, torch.device("cpu"))
    inexact *= torch.linalg.matrix_norm(left).item() * torch.linalg.matrix_norm(right).item()
    share = math.sqrt(size_left / size_right)
    return *bases, (math.sqrt(inexact) * share, math.sqrt(inexact) / share)


def _margin(norm_a, slack_a, norm_b, slack_b, rounding):
    """How far a product of computed coordinates may be off, by the lengths of the true ones and their errors."""
    inexact = slack_a * norm_b + norm_a * slack_b + slack_a * slack_b
    return UNDERFLOW + rounding * norm_a * norm_b + (1 + rounding) * inexact


def _at_least(score: Float[Tensor, "n m"], limit: float) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """Where scores reach the limit. Positive floats are ordered like their bits, which compare ten times as fast."""
    if not 0 < limit < 1e38:
        i, j = (score >= limit).nonzero().T
        return i, j
    bits = struct.unpack("i", struct.pack("f", limit))[0]
    if score.dtype is torch.bfloat16:
        score, bits = score.view(torch.int16), bits >> 16
    else:
        score = score.view(torch.int32)
    rows = (score.amax(1) >= bits).nonzero()[:, 0]
    i, j = (score[rows] >= bits).nonzero().T
    return rows[i], j


def _rescore_pairs(A, left, right, B, i, j):
    """A_i L Rᵀ B_jᵀ in float64, the same for equal rows, and for (i, j) and (j, i) where the product is symmetric."""
    if A is B and torch.equal(left, right):
        a, at = _exact_coordinates(A, left, torch.cat([i, j]))
        b, (at_a, at_b) = a, at.chunk(2)
    else:
        (a, at_a), (b, at_b) = _exact_coordinates(A, left, i), _exact_coordinates(B, right, j)
    step = chunk_rows(8 * a.shape[1])
    return torch.cat([(a[p] * b[q]).sum(-1) for p, q in zip(at_a.split(step), at_b.split(step), strict=True)])


def _exact_coordinates(rows, factor, index):
    """Coordinates of the rows in float64, and where to find each; one computation for rows that are equal.

    BLAS may add up in another order at the edge of a matrix; padding keeps the edge away from the rows that matter.
    """
    used, at = index.unique(return_inverse=True)
    parts, prints = [], []
    for some in used.split(chunk_rows(row_bytes(rows, 2))):
        tile = take(rows, some)
        prints.append(fingerprint(tile))
        padded = torch.nn.functional.pad(float64(tile), (0, 0, 0, -len(tile) % 64))
        parts.append((padded @ float64(factor))[: len(tile)])
    first, group = first_of_each(torch.cat(prints))
    coordinates = torch.cat(parts)
    return coordinates[first.to(coordinates.device)], group[at].to(coordinates.device)
