"""The first pass over products of vectors and rows: in low precision, with a proven bound on the rounding error.

The scores of one vector with the rows of a tile are compared with a limit in two steps. The columns are cut into groups.
First the maximum of each group is compared, then the columns of the groups whose maximum reaches the limit. The limit is
below the k-th best score by more than the rounding error, so that no row of the answer is left out.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from . import bounds
from .bounds import UNDERFLOW, norm_bound, rounding_factor
from .tiles import chunk_rows, float64

GROUP_SIZE = 16  # columns of which first only the maximum is compared
PADDING = (
    4 * GROUP_SIZE
)  # tiles have a multiple of this many rows, so that the maxima of groups can be grouped again by four
MAX_CANDIDATE_SHARE = 1 / 32  # if a larger share of the scores reaches the limit, sorting all of them is faster
MAX_FAILURES = 4  # batches in which bfloat16 may leave too many candidates, before float32 replaces it
LARGE = 1e30  # above this, float32 and bfloat16 may overflow

SAME_SIZE_INTEGER = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


class Tile:
    """Consecutive rows, padded with zeros, with a copy in the precision of the first pass.

    Attributes:
        n: The number of rows without padding.
        rows: The padded rows.
        low_precision: The same rows in the precision of the first pass.
        max_norm: A bound on the norm of every row.
        max_error: A bound on the norm of every row's rounding to low precision.
    """

    def __init__(self, rows: Float[Tensor, "n d"], dtype: torch.dtype) -> None:
        self.n = len(rows)
        self.rows = torch.nn.functional.pad(rows, (0, 0, 0, -self.n % PADDING))
        self.low_precision, error = _round(self.rows, dtype)
        self.max_norm, self.max_error = norm_bound(self.rows).max().item(), error.max().item()


class Screen:
    """Selects candidates for each vector's best rows, tile by tile.

    Args:
        x: The vectors.
        k: How many rows of each vector are searched for.
        width: How many candidates to return of each tile.

    Attributes:
        norm: A bound on the norm of every vector, in float64.
        dtype: The precision of the first pass; float32 after `MAX_FAILURES` failures of bfloat16.
        low_precision: The vectors in that precision.
        n_failures: In how many batches bfloat16 left too many candidates.
    """

    def __init__(self, x: Float[Tensor, "n d"], k: int, width: int) -> None:
        self.x, self.k, self.width = x, k, width
        self.dtype = torch.float64 if x.dtype is torch.float64 else bounds.screen_dtype(x.device)
        self.n_failures = 0
        self.norm = float64(norm_bound(x))
        self.low_precision, error = _round(x, self.dtype)
        self._rounding = float64(error)
        # Two roundings more than the width: the mean row is subtracted from the rows.
        self._factor = rounding_factor(x.shape[1] + 2, x.dtype, x.device)

    def error_bound(self, max_norm: float) -> Float[Tensor, " n"]:
        """A bound on the rounding error of the scores that `top_rows` returns, for rows of at most this norm."""
        return self.norm * (self._factor * max_norm) + self.x.shape[1] * UNDERFLOW

    def top_rows(
        self, batch: slice, tile: Tile, floor: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b w"], Int[Tensor, "b w"]]:
        """Candidates of a tile for a batch of vectors: scores in the vectors' precision, and rows; both unsorted.

        The score of a row that is left out is at most that of the last of `width` candidates; or its exact score is below
        `floor`, or below k other exact scores.
        """
        x, error = self.x[batch], self.error_bound(tile.max_norm)[batch]
        if self.dtype is not x.dtype:
            candidates = candidate_entries(
                self.low_precision[batch] @ tile.low_precision.T,
                self.k,
                self._low_precision_error(batch, tile),
                floor,
                tile.max_norm,
            )
            if candidates is not None:
                i, j = candidates
                return _top_of_lists(i, j, _paired_products(x, i, tile.rows, j), len(x), self.width)
            self.n_failures += 1
            if self.n_failures > MAX_FAILURES:
                self.dtype, self.low_precision = x.dtype, self.x
        score = x @ tile.rows.T
        candidates = candidate_entries(score, self.k, error, floor, tile.max_norm)
        if candidates is not None:
            return _top_of_lists(*candidates, score[candidates], len(x), self.width)
        return unordered_topk(score[:, : tile.n], self.width)

    def _low_precision_error(self, batch: slice, tile: Tile) -> Float[Tensor, " b"]:
        """A bound on the error of scores in low precision: of rounding both inputs, and of the product itself."""
        norm, rounding = self.norm[batch], self._rounding[batch]
        rounded_norm = norm + rounding
        error = rounding * tile.max_norm + rounded_norm * tile.max_error
        product = self._factor * rounded_norm * (tile.max_norm + tile.max_error)
        return error + product + self.x.shape[1] * UNDERFLOW


def _round(x: Float[Tensor, "n d"], dtype: torch.dtype) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
    """Rows in another precision, and a bound on the norm of each row's rounding."""
    if dtype is x.dtype:
        return x, x.new_zeros(len(x))
    rounded = x.to(dtype)
    return rounded, norm_bound(x - rounded)


def candidate_entries(
    score: Float[Tensor, "n m"], k: int, error: Float[Tensor, " n"], floor: Float[Tensor, " n"], max_norm: float
) -> tuple[Int[Tensor, " c"], Int[Tensor, " c"]] | None:
    """Row and column of every score that may be among its row's best k; None if there are so many that sorting all is faster.

    The k-th best maximum of groups of columns is at most the k-th best score, so it gives a limit. Positive floats have the
    same order as their bits, and integer comparison is several times as fast.
    """
    n, m = score.shape
    group_size = GROUP_SIZE
    while group_size > 1 and m // group_size < 8 * k:
        group_size //= 2
    if group_size == 1 or error.max() > LARGE or max_norm > LARGE:
        return None
    bits = score.view(SAME_SIZE_INTEGER[score.dtype])
    # Column c belongs to group c mod n_groups: groups are then contiguous in memory when maxima are taken.
    maxima = bits.view(n, group_size, -1).amax(1)
    fewer = maxima.view(n, 4, -1).amax(1) if m // group_size >= 32 * k else maxima
    output_rounding = 2**-8 * 1.01 if score.dtype is torch.bfloat16 else 0.0
    kth_best = float64(fewer.topk(k, sorted=False).values.amin(1).view(score.dtype))
    limit = torch.maximum(kth_best - output_rounding * kth_best.abs() - error, floor) - error
    limit -= output_rounding * limit.abs()
    if not (limit > UNDERFLOW).all():
        return None
    limit_bits = bits_below(limit.to(score.device), score.dtype)
    i, group = (maxima >= limit_bits[:, None]).nonzero(as_tuple=True)
    if len(i) * group_size > score.numel() // 2:
        return None
    n_groups = m // group_size
    positions = (i * m + group)[:, None] + torch.arange(0, m, n_groups, device=score.device)
    members = bits.flatten().index_select(0, positions.flatten()).view(-1, group_size)
    hit, member = (members >= limit_bits.index_select(0, i)[:, None]).nonzero(as_tuple=True)
    if len(hit) > score.numel() * MAX_CANDIDATE_SHARE:
        return None
    return i[hit], member * n_groups + group[hit]


def bits_below(limit: Float[Tensor, " n"], dtype: torch.dtype) -> Int[Tensor, " n"]:
    """The bits of a float of this dtype that is at most the limit, for positive limits."""
    if dtype is torch.float64:
        return limit.view(torch.int64)
    bits = limit.float().view(torch.int32) - 1
    return (bits >> 16).to(torch.int16) if dtype is torch.bfloat16 else bits


def _paired_products(
    x: Float[Tensor, "n d"], i: Int[Tensor, " c"], rows: Float[Tensor, "m d"], j: Int[Tensor, " c"]
) -> Float[Tensor, " c"]:
    """The product of row i of x with row j of the tile, for each of the pairs."""
    # A sixteenth of the budget stays in the processor's cache.
    parts = zip(*(index.split(chunk_rows(4 * x.shape[1], scale=1 / 16)) for index in (i, j)))
    return torch.cat([x.index_select(0, a).mul_(rows.index_select(0, b)).sum(-1) for a, b in parts])


def _top_of_lists(
    i: Int[Tensor, " c"], j: Int[Tensor, " c"], score: Float[Tensor, " c"], n: int, width: int
) -> tuple[Float[Tensor, "n w"], Int[Tensor, "n w"]]:
    """The best `width` of each vector, from one list of entries (vector i, row j, score) that is sorted by vector."""
    count = i.bincount(minlength=n)
    slot = torch.arange(len(i), device=i.device) - (count.cumsum(0) - count)[i]
    longest = int(count.max())
    value = score.new_full((n, longest), -torch.inf)
    index = j.new_zeros(n, longest)
    value[i, slot], index[i, slot] = score, j
    value, order = value.topk(min(width, longest), sorted=False)
    return value, index.gather(1, order)


def unordered_topk(score: Float[Tensor, "n m"], width: int) -> tuple[Float[Tensor, "n w"], Int[Tensor, "n w"]]:
    """Like `score.topk(width)`, unsorted and several times as fast: the best scores are in the groups with the largest maxima."""
    n, m = score.shape
    group_size = 8
    if m % group_size or m // group_size < 6 * width:
        return score.topk(min(width, m), sorted=False)
    groups = score.view(n, group_size, -1)
    _, group = unordered_topk(groups.amax(1), width)
    members = groups.gather(2, group[:, None].expand(-1, group_size, -1)).flatten(1)
    value, position = unordered_topk(members, width)
    return value, position // width * groups.shape[2] + group.gather(1, position % width)
