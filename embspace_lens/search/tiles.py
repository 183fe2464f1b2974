"""Rows made on demand, and the arithmetic that the searches share: tiles, rounding bounds, equal rows.

Whatever the order of summation, `|fl(x·y) - x·y| <= gamma_d |x||y|` with gamma_d = d u / (1 - d u), u the unit roundoff
(Higham 2002, Accuracy and Stability of Numerical Algorithms, §3.1).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import EmbspaceError

TILE_BYTES = 2**24  # of rows in d_model width, made or gathered at a time
COPIES = 2**20  # pairs of equal rows listed at a time
UNDERFLOW = 1e-36  # no product in float32 or bfloat16 is trusted below this


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


def fingerprint(tile: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
    """Each row's bits times fixed odd numbers, summed in 64 bits: equal for equal rows, in practice only for them."""
    bits = (tile + 0.0).view(torch.int64 if tile.dtype is torch.float64 else torch.int32)  # + 0.0 makes -0 equal to 0
    odd = torch.randint(-(2**62), 2**62, (tile.shape[1],), generator=torch.Generator().manual_seed(0)) * 2 + 1
    return (bits * odd.to(tile.device)).sum(-1)


def first_of_each(prints: Int[Tensor, " n"]) -> tuple[Int[Tensor, " g"], Int[Tensor, " n"]]:
    """The first row of each kind, in the order of rows; and which of these each row equals."""
    _, kind = prints.unique(return_inverse=True)
    number = torch.arange(len(prints), device=prints.device)
    first = torch.full_like(number[: int(kind.max()) + 1], len(prints)).scatter_reduce(0, kind, number, "amin")
    first, order = first.sort()
    return first, order.argsort()[kind]


def distinct_rows(rows):
    """The first row of each kind, and which of these each row equals."""
    parts = tiles(rows.shape[0], tile_rows(rows, 2))
    return first_of_each(torch.cat([fingerprint(take(rows, some)) for some in parts]))


def expand(score, row, col, group_a, group_b, k):
    """From pairs of kinds, best first, to the best k pairs of rows: scores and keys."""
    (member_a, start_a, count_a), (member_b, start_b, count_b) = members(group_a), members(group_b)
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
        best, key = best_by_key(torch.cat([best, score[pair.to(score.device)]]), new, k)
    return best, key


def members(group):
    """Row numbers sorted by kind; where each kind begins among them, and how many there are of it."""
    count = group.bincount()
    return group.argsort(stable=True), count.cumsum(0) - count, count


def best_by_key(score, key, k):
    """The best k scores and their keys, equal scores by key."""
    key, by_key = key.sort()
    score, order = score[by_key.to(score.device)].sort(descending=True, stable=True)
    return score[:k], key[order[:k].to(key.device)]


def check_k(k: int, n: int, what: str) -> None:
    """Refuse a k that is not between 1 and n."""
    if not 1 <= k <= n:
        raise EmbspaceError(f"k={k} is out of range: there are {n} {what} to choose from (k is 1 to {n}).")


def finite(size: float) -> float:
    """The size itself; NaN and infinity are refused."""
    if not math.isfinite(size):
        raise EmbspaceError("The rows hold NaN or infinity, so they cannot be ranked. Is the checkpoint damaged?")
    return size


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


def length_bound(tile: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """A bound on the length of each row: its norm, and what rounding and underflow of squares may have taken off."""
    d = tile.shape[1]
    return torch.linalg.vector_norm(tile, dim=1) * (1 + (d + 8) * 2**-23) + math.sqrt(d) * 2e-19


def rounding(d: int, dtype: torch.dtype, device: torch.device) -> float:
    """A factor on |x||y| that bounds the error of their product over d coordinates, fast modes included."""
    unit, inputs = (2**-53, 0.0) if dtype is torch.float64 else (2**-24, input_rounding(device))
    gamma = d * unit / (1 - d * unit) * (2 if inputs else 1)  # tensor cores truncate
    return ((1 + inputs) ** 2 * (1 + gamma) - 1) * 1.001


def input_rounding(device: torch.device) -> float:
    """What the float32 products of a device may first take from their inputs, as the user has set it."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    mode = getattr(getattr(backend, "matmul", None), "fp32_precision", None)  # torch >= 2.9
    mode = mode or {"high": "tf32", "medium": "bf16"}.get(torch.get_float32_matmul_precision())
    return {"tf32": 2**-10, "bf16": 2**-8}.get(str(mode), 0.0)


@contextmanager
def plain_arithmetic(device: torch.device) -> Iterator[None]:
    """No gradients, and no autocast behind the bounds' back."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


@cache
def screen_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies it several times as fast as float32."""
    able = torch.cpu.get_capabilities() if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32
