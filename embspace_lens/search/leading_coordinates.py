r"""Upper bounds on the scores of a tile from the first coordinates of both sides, which take a fraction of the product.

With the coordinates of a row x cut into the first w and the rest, and :math:`t_x` the norm of the rest,

.. math:: x \cdot y \le x_{:w} \cdot y_{:w} + t_x t_y = [x_{:w}, t_x] \cdot [y_{:w}, t_y]

by the inequality of Cauchy and Schwarz. Balanced coordinates are in the order of decreasing size, so that few of them may suffice.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .candidates import entries_at_least
from .coordinates import SortedCoordinates

MIN_RANK = 256  # with fewer coordinates, the product of all is about as fast as the comparison of its entries
SHARES = (8, 4, 2)  # the leading coordinates are an eighth, a fourth or half of all
SAMPLE_STEP = 16  # one row in so many is tried first


def leading_widths(rank: int) -> tuple[int, ...]:
    """How many leading coordinates are tried, in turn; none for a product of low rank."""
    return tuple(rank // share for share in SHARES) if rank >= MIN_RANK else ()


class LeadingCoordinates:
    """One side's coordinates of consecutive rows, and their leading coordinates for each width, made when they are needed.

    Args:
        side: The side.
        start: The first row, in the side's order.
        stop: The row after the last one.

    Attributes:
        all: All coordinates, in float32.
    """

    def __init__(self, side: SortedCoordinates, start: int, stop: int) -> None:
        self.all = side.coordinates(start, stop)
        self._tail = {width: tail[start:stop] for width, tail in side.tail.items()}
        self._dtype = side.dtype
        self._made: dict[int, Tensor] = {}
        self._rounded: Tensor | None = None

    @property
    def rounded(self) -> Float[Tensor, "n rank"]:
        """All coordinates, in the precision of the first pass over a tile."""
        if self._rounded is None:
            self._rounded = self.all.to(self._dtype)
        return self._rounded

    def leading(self, width: int) -> Float[Tensor, "n _"]:
        """The first `width` coordinates of each row, and the norm of the others."""
        if width not in self._made:
            tail = self._tail[width] * (1 + 2**-7)  # not smaller after rounding to bfloat16
            parts = [self.all[:, :width], tail[:, None]]
            self._made[width] = torch.cat(parts, dim=1).to(self._dtype)
        return self._made[width]


class LeadingScreen:
    """Selects candidates from leading coordinates, with the smallest width that leaves few in a sample of a tile's rows.

    Args:
        rank: How many coordinates there are.
    """

    def __init__(self, rank: int) -> None:
        self.widths = leading_widths(rank)

    def entries(
        self,
        x: LeadingCoordinates,
        y: LeadingCoordinates,
        rows: slice,
        max_tails: dict[int, float],
        limit: float,
        max_entries: int,
    ) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]] | None:
        """Row and column of all entries of a tile whose bound reaches the limit; None if there may be more than `max_entries`.

        Args:
            x: The rows of the tile, among others.
            y: The columns of the tile.
            rows: Which rows of `x` belong to the tile.
            max_tails: For each width, the largest product of the norms of the rest.
            limit: The limit, below which no score is of interest; the rounding of the product is included.
            max_entries: The largest number of entries.
        """
        for width in self.widths:
            if max_tails[width] >= limit:  # about half of the entries would reach the limit
                continue
            leading_x, leading_y = x.leading(width)[rows], y.leading(width)
            n_sampled = int((leading_x[::SAMPLE_STEP] @ leading_y.T >= limit).sum())
            if n_sampled * SAMPLE_STEP > max_entries:
                continue
            i, j = entries_at_least(leading_x @ leading_y.T, limit)
            if len(i) <= max_entries:
                return i, j
        return None
