"""A first look at products of vectors and rows: in low precision, by folded maxima, with a bound on what it passes over."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from . import bounds
from .bounds import UNDERFLOW, length_bound, rounding
from .tiles import chunk_rows, float64

FOLD = 16  # scores of which only the largest is looked at first
PADDED = 4 * FOLD  # tiles have a multiple of so many rows, so that the maxima can be folded again
CROWD = 32  # of so many scores one may need a second look; if more do, the first does not pay
PATIENCE = 4  # crowds that bfloat16 may leave before float32 takes its place

INTEGERS = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


class Tile:
    """Some of the rows, padded with zeros, and the same in the precision of the first look."""

    def __init__(self, rows: Float[Tensor, "n d"], dtype: torch.dtype) -> None:
        self.n = len(rows)
        self.rows = torch.nn.functional.pad(rows, (0, 0, 0, -self.n % PADDED))
        self.coarse, self.off = _coarse(self.rows, dtype)
        self.longest, self.most_off = (length.max().item() for length in (length_bound(self.rows), self.off))


class Screen:
    """Finds each vector's best rows of a tile.

    Args:
        x: The vectors.
        k: How many rows will be wanted of each in the end.
        width: How many to give of each tile.
    """

    def __init__(self, x: Float[Tensor, "n d"], k: int, width: int) -> None:
        self.x, self.k, self.width = x, k, width
        self.dtype = torch.float64 if x.dtype is torch.float64 else bounds.screen_dtype(x.device)
        self.crowds = 0
        self.length = float64(length_bound(x))
        self.coarse, off = _coarse(x, self.dtype)
        self.off = float64(off)
        self.factor = rounding(x.shape[1] + 2, x.dtype, x.device)  # two more for rows less their centre

    def error(self, longest: float) -> Float[Tensor, " n"]:
        """A bound on the rounding of scores against rows of at most this length, as `best` gives them."""
        return self.length * (self.factor * longest) + self.x.shape[1] * UNDERFLOW

    def best(
        self, some: slice, tile: Tile, floor: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n w"], Int[Tensor, "n w"]]:
        """The best rows of a tile for some vectors: scores in the vectors' precision and places, without order.

        A row that is left out scores at most the last of `width` given, or truly less than `floor`, or than k others.
        """
        x, fine = self.x[some], self.error(tile.longest)[some]
        if self.dtype is not x.dtype:
            reach = self.length[some] + self.off[some]
            error = self.off[some] * tile.longest + reach * tile.most_off
            error += self.factor * reach * (tile.longest + tile.most_off) + x.shape[1] * UNDERFLOW
            found = _promising(self.coarse[some] @ tile.coarse.T, self.k, error, floor, tile.longest)
            if found is not None:
                i, j = found
                return _packed(i, j, _scores(x, i, tile.rows, j), len(x), self.width)
            self.crowds += 1
            if self.crowds > PATIENCE:
                self.dtype, self.coarse = x.dtype, self.x
        score = x @ tile.rows.T
        found = _promising(score, self.k, fine, floor, tile.longest)
        if found is not None:
            return _packed(*found, score[found], len(x), self.width)
        return best_of_each(score[:, : tile.n], self.width)


def _coarse(x: Float[Tensor, "n d"], dtype: torch.dtype) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
    """Rows in another precision, and a bound on how far each is from what it was."""
    if dtype is x.dtype:
        return x, x.new_zeros(len(x))
    coarse = x.to(dtype)
    return coarse, length_bound(x - coarse)


def _promising(score, k, error, floor, longest):
    """Vector and place of every score that may be among the best k, by vector; None if they are a crowd.

    The k-th best of the maxima of columns folded together is no better than the k-th best score. Positive floats are
    ordered like their bits, which compare several times as fast.
    """
    n, m = score.shape
    fold = FOLD
    while fold > 1 and m // fold < 8 * k:
        fold //= 2
    if fold == 1 or error.max() > 1e30 or longest > 1e30:
        return None
    bits = score.view(INTEGERS[score.dtype])
    maxima = bits.view(n, fold, -1).amax(1)
    fewer = maxima.view(n, 4, -1).amax(1) if m // fold >= 32 * k else maxima
    output = 2**-8 * 1.01 if score.dtype is torch.bfloat16 else 0.0  # rounding of the score itself
    best = float64(fewer.topk(k, sorted=False).values.amin(1).view(score.dtype))
    limit = torch.maximum(best - output * best.abs() - error, floor) - error
    limit -= output * limit.abs()
    if not (limit > UNDERFLOW).all():
        return None
    limit = _bits_below(limit.to(score.device), score.dtype)
    i, column = (maxima >= limit[:, None]).nonzero(as_tuple=True)
    if len(i) * fold > score.numel() // 2:
        return None
    step = m // fold
    places = (i * m + column)[:, None] + torch.arange(0, m, step, device=score.device)
    folded = bits.flatten().index_select(0, places.flatten()).view(-1, fold)
    at, row = (folded >= limit.index_select(0, i)[:, None]).nonzero(as_tuple=True)
    if len(at) > score.numel() // CROWD:
        return None
    return i[at], row * step + column[at]


def _bits_below(limit: Float[Tensor, " n"], dtype: torch.dtype) -> Int[Tensor, " n"]:
    """The bits of a float that is not above each limit."""
    if dtype is torch.float64:
        return limit.view(torch.int64)
    bits = limit.float().view(torch.int32) - 1
    return (bits >> 16).to(torch.int16) if dtype is torch.bfloat16 else bits


def _scores(x, i, rows, j):
    """Products of pairs of rows, a few at a time."""
    parts = zip(*(index.split(chunk_rows(4 * x.shape[1], scale=1 / 16)) for index in (i, j)))
    return torch.cat([x.index_select(0, a).mul_(rows.index_select(0, b)).sum(-1) for a, b in parts])


def _packed(i, j, score, n, width):
    """The best `width` of each vector, out of flat lists in the order of vectors."""
    count = i.bincount(minlength=n)
    place = torch.arange(len(i), device=i.device) - (count.cumsum(0) - count)[i]
    most = int(count.max())
    value = score.new_full((n, most), -torch.inf)
    index = j.new_zeros(n, most)
    value[i, place], index[i, place] = score, j
    value, at = value.topk(min(width, most), sorted=False)
    return value, index.gather(1, at)


def best_of_each(score: Float[Tensor, "n m"], width: int) -> tuple[Float[Tensor, "n w"], Int[Tensor, "n w"]]:
    """`score.topk(width)` without order, several times as fast: the best lie where the best folded maxima do."""
    n, m = score.shape
    fold = 8
    if m % fold or m // fold < 6 * width:
        return score.topk(min(width, m), sorted=False)
    folded = score.view(n, fold, -1)
    _, column = best_of_each(folded.amax(1), width)
    value, at = best_of_each(folded.gather(2, column[:, None].expand(-1, fold, -1)).flatten(1), width)
    return value, at // width * folded.shape[2] + column.gather(1, at % width)
