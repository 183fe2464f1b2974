r"""Best k of x·Eᵀ, and exact best k token pairs of low-rank A·Bᵀ, in tiles that fit memory.

Both searches follow one plan. A product in low precision *screens*: what lies further below the k-th best than its
proven rounding error cannot belong to the answer. What is left is *rescored* in float64 from the numbers that were
given, and ranked, equal scores by index. So the answer is that of float64 brute force, and no tile size can be seen in
it. Whatever the order of summation, `|fl(x·y) - x·y| <= gamma_d |x||y|` with gamma_d = d u / (1 - d u), u the unit
roundoff (Higham 2002, Accuracy and Stability of Numerical Algorithms, §3.1).
"""

import math
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .errors import EmbspaceError

__all__ = ["Rows", "top_pairs", "top_tokens"]

TILE_BYTES = 2**24  # of rows in d_model width, made or gathered at a time
SCORE_BYTES = 2**23  # of scores of vectors against rows, at a time
MAX_WIDTH = 2048  # candidates kept for each vector before the search turns exhaustive
PAIR_TILE = (512, 2048)  # rows × columns of pairs screened at a time
RESIDENT_BYTES = 2**27  # of coordinates of both sides; more than that is computed again when visited
CHUNK_BYTES = 2**25  # of coordinates of one side held while the other streams past, when they are not resident
COPIES = 2**20  # pairs of equal rows listed at a time
UNDERFLOW = 1e-36  # no product in float32 or bfloat16 is trusted below this
PATIENCE = 32  # tiles in which bfloat16 may fail before float32 takes its place
POOL_BYTES = 2**26  # of float64 coordinates needed to rescore all candidate pairs at once


@runtime_checkable
class Rows(Protocol):
    """A tensor, or anything that makes its rows when asked: `shape` (n, d), `device`, `rows[slice or indices]`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the rows are made."""
        ...

    def __getitem__(self, index: slice | Tensor, /) -> Tensor:
        """Make these rows, [n, d]."""
        ...


def top_tokens(
    vectors: Float[Tensor, "n d_model"],
    embedding: Rows,
    k: int,
    *,
    largest: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    r"""Find the rows of an embedding that have the largest product with each vector.

    .. math:: \operatorname{top}_k \{ x_i \cdot e_j : j < d_\mathrm{vocab} \}

    Args:
        vectors: One query per row.
        embedding: The rows to choose from; made a tile at a time, each of them once, the best few once more.
        k: How many rows to keep for each vector.
        largest: Keep the largest products; otherwise the most negative.
        progress: Called with (rows done, rows in all) after each tile of the embedding.

    Returns:
        Scores (float32) and row numbers (int64), one row per vector, best first, equal scores by row number.

    Raises:
        EmbspaceError: If k is less than one or more than there are rows.
    """
    n_rows = embedding.shape[0]
    _check_k(k, n_rows, "rows")
    with _plain_arithmetic(vectors.device):
        x = _upcast(vectors) if largest else -_upcast(vectors)
        score = torch.zeros(len(x), k, device=x.device)
        index = torch.arange(k, device=x.device).repeat(len(x), 1)
        todo = x.any(dim=1).nonzero()[:, 0]  # a zero vector ties with everything: its answer is in place
        width = k + k // 8 + 4
        while len(todo) and (width <= max(MAX_WIDTH, 2 * k) or width >= n_rows):
            found, rows, certain = _screen_and_rescore(x[todo], embedding, k, min(width, n_rows), progress)
            score[todo[certain]], index[todo[certain]] = found[certain], rows[certain]
            todo, width, progress = todo[~certain], width * 8, None
        if len(todo):
            found, index[todo] = _search_exhaustively(x[todo], embedding, k)
            score[todo] = found.to(score)
        return _signed(score, largest), index


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
    _check_k(k, n * m, "pairs")
    with _plain_arithmetic(left.device):
        left, right = _upcast(left), _upcast(right)
        if left.any() and right.any():
            try:
                score, key = _search_pairs(A, left, right, B, k, largest=largest)
            except _Crowded:
                score, key = _search_distinct_pairs(A, left, right, B, k, largest=largest)
        else:  # everything ties
            key = torch.arange(k, device=left.device)
            score = torch.zeros_like(key)
        return _signed(score, largest), key // m, key % m


# ------------------------------------------------------------------------------------------------------- vectors × rows


def _screen_and_rescore(x, embedding, k, width, progress):
    """Best k of each vector out of its best `width` in low precision; and whether that is certain.

    Any row that is not among the candidates has a screened score of at most the last candidate's, hence a true score of
    at most that plus the rounding error. Strictly below the k-th best it can neither win nor tie.
    """
    n, n_rows = len(x), embedding.shape[0]
    value = x.new_full((n, width), -math.inf)
    index = torch.zeros(n, width, dtype=torch.int64, device=x.device)
    longest = 0.0
    for rows in _tiles(n_rows, _tile_rows(embedding)):
        tile = _take(embedding, rows).to(x.dtype)
        longest = max(longest, _finite(_length(tile).max().item()))
        for some in _tiles(n, max(1, SCORE_BYTES // (tile.element_size() * len(tile)))):
            new_value, new_index = _best_of_each(x[some] @ tile.T, width)
            both = torch.cat([value[some], new_value], 1)
            value[some], at = both.topk(width)
            index[some] = torch.cat([index[some], new_index + rows.start], 1).gather(1, at)
        if progress:
            progress(rows.stop, n_rows)
    parts = _tiles(n, _tile_rows(embedding, 32 * width))  # small enough to stay in a cache
    exact = torch.cat([_rescore(x[some], embedding, index[some]) for some in parts])
    value, (index, by_index) = _float64(value[:, -1]), index.to(exact.device).sort(dim=1)
    exact, order = exact.gather(1, by_index).sort(dim=1, descending=True, stable=True)
    error = _rounding(x.shape[1], x.dtype, x.device) * longest * _length(x) + x.shape[1] * UNDERFLOW
    certain = (exact[:, k - 1] > value + _float64(error)) | (width == n_rows)
    return exact[:, :k].to(x.device, torch.float32), index.gather(1, order[:, :k]).to(x.device), certain.to(x.device)


def _best_of_each(score: Float[Tensor, "n m"], width: int) -> tuple[Float[Tensor, "n w"], Int[Tensor, "n w"]]:
    """`score.topk(width)` without order, several times as fast: the best lie where the best folded maxima do."""
    n, m = score.shape
    fold = 8
    if m % fold or m // fold < 6 * width:
        return score.topk(min(width, m), sorted=False)
    folded = score.view(n, fold, -1)
    _, column = _best_of_each(folded.amax(1), width)
    value, at = _best_of_each(folded.gather(2, column[:, None].expand(-1, fold, -1)).flatten(1), width)
    return value, at // width * folded.shape[2] + column.gather(1, at % width)


def _rescore(x, embedding, index):
    """Products with E[index] in float64; not by BLAS, whose result for a row may depend on where it stands."""
    rows = _float64(_take(embedding, index.flatten())).view(*index.shape, -1)
    return rows.mul_(_float64(x)[:, None]).sum(-1)


def _search_exhaustively(x, embedding, k):
    """Best k for vectors with many scores alike: every distinct row in float64, one vector at a time."""
    first, group = _distinct_rows(embedding)
    distinct = Subset(embedding, first)
    wanted = min(k, len(first))
    best = x.new_empty(len(x), 0, dtype=torch.float64)
    index = torch.empty(len(x), 0, dtype=torch.int64, device=x.device)
    for rows in _tiles(len(first), _tile_rows(embedding, 2)):
        tile = _float64(_take(distinct, rows))
        score = torch.cat([best, torch.stack([(tile * vector).sum(-1) for vector in _float64(x)])], 1)
        number = torch.cat([index, torch.arange(rows.start, rows.stop, device=x.device).expand(len(x), -1)], 1)
        best, order = score.sort(dim=1, descending=True, stable=True)
        best, index = best[:, :wanted], number.gather(1, order[:, :wanted])
    one = torch.zeros(1, dtype=torch.int64, device=x.device)
    found = [_expand(b, one.expand(wanted), i, one, group, k) for b, i in zip(best, index, strict=True)]
    return torch.stack([s for s, _ in found]), torch.stack([i for _, i in found])


# ---------------------------------------------------------------------------------------------------------- rows × rows


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
        error += _rounding(len(basis) + 2, basis.dtype, basis.device) * torch.linalg.vector_norm(basis).item()
        for some in _tiles(rows.shape[0], _tile_rows(rows)):
            tile_rows = _take(rows, some).to(basis.dtype)
            part = (tile_rows @ basis).float()
            slacks.append((_length(tile_rows) * error).float() + _length(part) * 2**-23)
            norms.append(_length(part) + slacks[-1])
            if resident:
                kept[some] = part
        norm, slack = torch.cat(norms), torch.cat(slacks)
        self.norm, self.order = norm.sort(descending=True, stable=True)
        self.slack = slack[self.order]
        self.kept = kept[self.order] if resident else None
        self.longest = self.norm[::tile].tolist()
        self.slackest = [part.max().item() for part in self.slack.split(tile)]
        _finite(math.fsum(self.longest))

    def coordinates(self, start: int, stop: int) -> Float[Tensor, "n rank"]:
        if self.kept is not None:
            return self.kept[start:stop]
        index = self.order[start:stop]
        made = torch.empty(len(index), self.basis.shape[1], device=self.basis.device)
        for some in _tiles(len(index), _tile_rows(self.rows)):
            made[some] = _take(self.rows, index[some]).to(self.basis.dtype) @ self.basis
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
            score, key = _best_by_key(self.rescore(key), key, self.k)
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
    resident = (n + m) * rank * 4 <= RESIDENT_BYTES
    high, wide = PAIR_TILE
    a = _Side(A, left_basis if largest else -left_basis, error[0], high, resident)
    b = _Side(B, right_basis, error[1], wide, resident)
    capacity = max(4 * k, POOL_BYTES // (16 * rank))

    def rescore(key: Int[Tensor, " p"]) -> Float[Tensor, " p"]:
        step = capacity if distinct else len(key)  # equal rows must meet to be seen as equal
        score = [_rescore_pairs(A, left, right, B, part // m, part % m) for part in key.split(max(1, step))]
        return torch.cat(score) * (1 if largest else -1)

    pool = _Pool(k, capacity, rescore if distinct else None, a.order.device)
    fine = _rounding(rank + 4, torch.float32, a.order.device)
    coarse, coarse_error = _screen_dtype(a.order.device), fine
    if coarse is torch.bfloat16:
        coarse_error = (1 + 2**-8) ** 3 * (1 + 2 * fine) - 1  # two inputs and the output are rounded
    refined = 0  # tiles in which bfloat16 could not tell the best pairs from the rest

    corner = max(256, math.isqrt(4 * k) + 1)  # the longest rows give the first bound
    score = a.coordinates(0, corner) @ b.coordinates(0, corner).T
    margin = _margin(a.norm[:corner, None], a.slack[:corner, None], b.norm[:corner], b.slack[:corner], fine)
    pool.raise_floor((score - margin).flatten())

    chunk = n if resident else max(1, CHUNK_BYTES // (4 * rank * high)) * high
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
    return _best_by_key(rescore(key), key, k)


def _search_distinct_pairs(A, left, right, B, k, *, largest):
    """The search among distinct rows; each of the pairs found then stands for all pairs of rows equal to its own.

    The first of its kind comes before its copies, so the best k pairs are copies of the best k of these.
    """
    first_a, group_a = _distinct_rows(A)
    first_b, group_b = (first_a, group_a) if B is A else _distinct_rows(B)
    some_a = Subset(A, first_a)
    some_b = some_a if B is A else Subset(B, first_b)
    wanted = min(k, len(first_a) * len(first_b))
    score, key = _search_pairs(some_a, left, right, some_b, wanted, largest=largest, distinct=True)
    return _expand(score, key // len(first_b), key % len(first_b), group_a, group_b, k)


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
        sample = _float64(_take(rows, index)) @ _float64(factor)
        gram = (sample.T @ sample).cpu()
        ridge = 1e-8 * _finite(gram.trace().item()) / rank
        gram += torch.eye(rank, dtype=gram.dtype) * (ridge or 1.0)
        roots.append(torch.linalg.cholesky(gram, upper=True))
    u, s, vh = torch.linalg.svd(roots[0] @ roots[1].T)
    change_left = torch.linalg.solve_triangular(roots[0], u * s.sqrt(), upper=True)
    change_right = torch.linalg.solve_triangular(roots[1], vh.T * s.sqrt(), upper=True)
    inexact = torch.linalg.matrix_norm(change_left @ change_right.T - torch.eye(rank, dtype=s.dtype)).item()
    bases = [(_float64(f).cpu() @ c).to(f) for f, c in ((left, change_left), (right, change_right))]
    size_left, size_right = (torch.linalg.matrix_norm(base.double()).item() for base in bases)
    inexact += 2 * _rounding(sum(left.shape) + len(right), torch.float64, torch.device("cpu"))
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
    step = max(1, TILE_BYTES // (8 * a.shape[1]))
    return torch.cat([(a[p] * b[q]).sum(-1) for p, q in zip(at_a.split(step), at_b.split(step), strict=True)])


def _exact_coordinates(rows, factor, index):
    """Coordinates of the rows in float64, and where to find each; one computation for rows that are equal.

    BLAS may add up in another order at the edge of a matrix; padding keeps the edge away from the rows that matter.
    """
    used, at = index.unique(return_inverse=True)
    parts, prints = [], []
    for some in used.split(_tile_rows(rows, 2)):
        tile = _take(rows, some)
        prints.append(_fingerprint(tile))
        padded = torch.nn.functional.pad(_float64(tile), (0, 0, 0, -len(tile) % 64))
        parts.append((padded @ _float64(factor))[: len(tile)])
    first, group = _first_of_each(torch.cat(prints))
    coordinates = torch.cat(parts)
    return coordinates[first.to(coordinates.device)], group[at].to(coordinates.device)


# ----------------------------------------------------------------------------------------------------------- equal rows


@dataclass(frozen=True)
class Subset:
    """Some of the rows, as rows."""

    rows: Rows
    chosen: Int[Tensor, " n"]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.chosen), self.rows.shape[1])

    @property
    def device(self) -> torch.device:
        return self.rows.device

    def __getitem__(self, index: slice | Tensor, /) -> Tensor:
        return self.rows[self.chosen[index]]


def _fingerprint(tile: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
    """Each row's bits times fixed odd numbers, summed in 64 bits: equal for equal rows, in practice only for them."""
    bits = (tile + 0.0).view(torch.int64 if tile.dtype is torch.float64 else torch.int32)  # + 0.0 makes -0 equal to 0
    odd = torch.randint(-(2**62), 2**62, (tile.shape[1],), generator=torch.Generator().manual_seed(0)) * 2 + 1
    return (bits * odd.to(tile.device)).sum(-1)


def _first_of_each(prints: Int[Tensor, " n"]) -> tuple[Int[Tensor, " g"], Int[Tensor, " n"]]:
    """The first row of each kind, in the order of rows; and which of these each row equals."""
    _, kind = prints.unique(return_inverse=True)
    number = torch.arange(len(prints), device=prints.device)
    first = torch.full_like(number[: int(kind.max()) + 1], len(prints)).scatter_reduce(0, kind, number, "amin")
    first, order = first.sort()
    return first, order.argsort()[kind]


def _distinct_rows(rows):
    tiles = _tiles(rows.shape[0], _tile_rows(rows, 2))
    return _first_of_each(torch.cat([_fingerprint(_take(rows, some)) for some in tiles]))


def _expand(score, row, col, group_a, group_b, k):
    """From pairs of kinds, best first, to the best k pairs of rows: scores and keys."""
    (member_a, start_a, count_a), (member_b, start_b, count_b) = _members(group_a), _members(group_b)
    best, key = score[:0], row[:0]
    for some in torch.arange(len(score), device=row.device).split(max(1, COPIES // k)):
        if len(best) == k and score[some[0]] < best[-1]:
            break
        size = (count_a[row[some]] * count_b[col[some]]).clamp(max=k)
        pair = some.repeat_interleave(size)
        number = torch.arange(len(pair), device=row.device) - (size.cumsum(0) - size).repeat_interleave(size)
        i, j = row[pair], col[pair]
        i, j = member_a[start_a[i] + number // count_b[j]], member_b[start_b[j] + number % count_b[j]]
        new = torch.cat([key, i * len(group_b) + j])
        best, key = _best_by_key(torch.cat([best, score[pair.to(score.device)]]), new, k)
    return best, key


def _members(group):
    count = group.bincount()
    return group.argsort(stable=True), count.cumsum(0) - count, count


def _best_by_key(score, key, k):
    key, by_key = key.sort()
    score, order = score[by_key.to(score.device)].sort(descending=True, stable=True)
    return score[:k], key[order[:k].to(key.device)]


# ----------------------------------------------------------------------------------------------------------- arithmetic


def _check_k(k: int, n: int, what: str) -> None:
    if not 1 <= k <= n:
        raise EmbspaceError(f"k={k} is out of range: there are {n} {what} to choose from (k is 1 to {n}).")


def _finite(size: float) -> float:
    if not math.isfinite(size):
        raise EmbspaceError("The rows hold NaN or infinity, so they cannot be ranked. Is the checkpoint damaged?")
    return size


def _tiles(n: int, step: int) -> Iterator[slice]:
    return (slice(start, min(n, start + step)) for start in range(0, n, step))


def _tile_rows(rows: Rows, copies: int = 1) -> int:
    """How many rows in float32, times `copies`, make a tile; if it can be, a multiple of 32, for `_best_of_each`."""
    step = max(1, TILE_BYTES // (4 * rows.shape[1] * copies))
    return step // 32 * 32 or step


def _upcast(tile: Tensor) -> Tensor:
    return tile if tile.dtype is torch.float64 else tile.float()


def _take(rows: Rows, index: slice | Tensor) -> Tensor:
    return _upcast(rows[index])


def _float64(x: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def _signed(score: Tensor, largest: bool) -> Float[Tensor, "..."]:
    return (score if largest else -score).float() + 0.0


def _length(tile: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """A bound on the length of each row: its norm, and what rounding and underflow of squares may have taken off."""
    d = tile.shape[1]
    return torch.linalg.vector_norm(tile, dim=1) * (1 + (d + 8) * 2**-23) + math.sqrt(d) * 2e-19


def _rounding(d: int, dtype: torch.dtype, device: torch.device) -> float:
    """A factor on |x||y| that bounds the error of their product over d coordinates, fast modes included."""
    unit, inputs = (2**-53, 0.0) if dtype is torch.float64 else (2**-24, _input_rounding(device))
    gamma = d * unit / (1 - d * unit) * (2 if inputs else 1)  # tensor cores truncate
    return ((1 + inputs) ** 2 * (1 + gamma) - 1) * 1.001


def _input_rounding(device: torch.device) -> float:
    """What the float32 products of a device may first take from their inputs, as the user has set it."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    mode = getattr(getattr(backend, "matmul", None), "fp32_precision", None)  # torch >= 2.9
    mode = mode or {"high": "tf32", "medium": "bf16"}.get(torch.get_float32_matmul_precision())
    return {"tf32": 2**-10, "bf16": 2**-8}.get(str(mode), 0.0)


@cache
def _screen_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies it several times as fast as float32."""
    able = torch.cpu.get_capabilities() if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


@contextmanager
def _plain_arithmetic(device: torch.device) -> Iterator[None]:
    """No gradients, and no autocast behind the bounds' back."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield
