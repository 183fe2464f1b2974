"""Rows made on demand, and tiles of them that fit memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import EmbspaceError

TILE_BYTES = 2**24  # of rows in d_model width, made or gathered at a time


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


def check_k(k: int, n: int, what: str) -> None:
    """Refuse a k that is not between 1 and n."""
    if not 1 <= k <= n:
        raise EmbspaceError(f"k={k} is out of range: there are {n} {what} to choose from (k is 1 to {n}).")


def tiles(n: int, step: int) -> Iterator[slice]:
    """Cut n rows into slices of at most `step`."""
    return (slice(start, min(n, start + step)) for start in range(0, n, step))


def tile_rows(rows: Rows, copies: int = 1) -> int:
    """How many rows in float32, times `copies`, make a tile; if it can be, a multiple of 32, for `screen`."""
    step = max(1, TILE_BYTES // (4 * rows.shape[1] * copies))
    return step // 32 * 32 or step


def upcast(tile: Tensor) -> Tensor:
    """In float32, or in float64 if it is already."""
    return tile if tile.dtype is torch.float64 else tile.float()


def take(rows: Rows, index: slice | Tensor) -> Tensor:
    """Make these rows, in float32 at least."""
    if isinstance(rows, Tensor) and isinstance(index, Tensor):
        return upcast(rows.index_select(0, index))  # several times as fast as rows[index]
    return upcast(rows[index])


def float64(x: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def signed(score: Tensor, largest: bool) -> Float[Tensor, "..."]:
    """Scores as the caller asked for them, never -0."""
    return (score if largest else -score).float() + 0.0
