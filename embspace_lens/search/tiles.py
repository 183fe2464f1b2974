"""Rows that are made on demand, chunks that fit a memory budget, and working precisions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

PART_SCALE = 8
"""The directions that are made at once from a large weight fit this many chunks. With fewer, more time goes into the embeddings."""

Progress = Callable[[int, int], None]
"""Called with (rows or pairs done, all of them)."""

_budget: ContextVar[int] = ContextVar("chunk_bytes", default=2**24)


@runtime_checkable
class Rows(Protocol):
    """A matrix whose rows are made on demand: a tensor, or any object with `shape` (n, d), `device` and `rows[index]`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""
        ...

    @property
    def device(self) -> torch.device:
        """The device on which the rows are made."""
        ...

    def __getitem__(self, index: slice | Tensor, /) -> Float[Tensor, "_n _d"]:
        """The rows of a slice or of an index tensor, `[n, d]`."""
        ...


@dataclass(frozen=True)
class Subset:
    """Selected rows of a matrix, made on demand.

    Attributes:
        rows: The matrix.
        indices: The selected rows, in order.
    """

    rows: Rows
    indices: Int[Tensor, " n"]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.indices), self.rows.shape[1])

    @property
    def device(self) -> torch.device:
        return self.rows.device

    def __getitem__(self, index: slice | Tensor, /) -> Float[Tensor, "_n _d"]:
        return self.rows[self.indices[index]]


def chunk_rows(bytes_per_row: int | float, *, scale: int | float = 1.0) -> int:
    """How many rows of this size fit the budget times `scale`: at least one; a multiple of 32 if 32 or more fit."""
    rows = max(1, int(_budget.get() * scale / bytes_per_row))
    return rows // 32 * 32 or rows


def chunks(n: int, bytes_per_row: int | float, *, scale: int | float = 1.0) -> Iterator[slice]:
    """Slices that cut n rows into chunks, each within the budget times `scale`."""
    step = chunk_rows(bytes_per_row, scale=scale)
    return (slice(start, min(n, start + step)) for start in range(0, n, step))


@contextmanager
def chunk_bytes(budget: int) -> Iterator[None]:
    """Set the memory budget of a chunk within a `with` block; 16 MiB by default. Results do not depend on it."""
    token = _budget.set(budget)
    try:
        yield
    finally:
        _budget.reset(token)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision of products of values of this dtype: float64 for float64, float32 for all others."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def row_bytes(rows: Rows, copies: int = 1) -> int:
    """The size of one row in float32, times `copies`."""
    return 4 * rows.shape[1] * copies


def upcast(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The same values in float32; float64 stays float64."""
    return x.to(working_dtype(x.dtype))


def take(rows: Rows, index: slice | Tensor) -> Float[Tensor, "_n _d"]:
    """The rows at these indices, in float32 or float64."""
    if isinstance(rows, Tensor) and isinstance(index, Tensor):
        return upcast(rows.index_select(0, index))  # several times as fast as rows[index]
    return upcast(rows[index])


def float64(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The same values in float64, on the CPU if the device has no float64 (Apple's MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def signed(score: Float[Tensor, "*shape"], largest: bool) -> Float[Tensor, "*shape"]:
    """Scores in float32, negated unless `largest`; −0 becomes 0."""
    return (score if largest else -score).float() + 0.0
