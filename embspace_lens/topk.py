"""Best k of x·Eᵀ, and exact best k token pairs of low-rank A·Bᵀ (first, simple version)."""

from collections.abc import Callable
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .errors import EmbspaceError

__all__ = ["Rows", "top_pairs", "top_tokens"]


class Rows(Protocol):
    """Rows on demand: a tensor, or anything that makes the rows asked for and no others."""

    @property
    def shape(self) -> torch.Size | tuple[int, ...]: ...

    @property
    def device(self) -> torch.device: ...

    def __getitem__(self, index: slice | Tensor, /) -> Tensor: ...


@torch.no_grad()
def top_tokens(
    vectors: Float[Tensor, "n d"],
    embedding: Rows,
    k: int,
    *,
    largest: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Best k rows of `embedding` for every vector."""
    if k > embedding.shape[0]:
        raise EmbspaceError(f"k={k} is more than the {embedding.shape[0]} rows there are to choose from.")
    sign = 1 if largest else -1
    scores = torch.cat([vectors.double() @ embedding[i : i + 4096].double().T for i in range(0, embedding.shape[0], 4096)], 1)
    value, index = (sign * scores).sort(dim=1, descending=True, stable=True)
    return (sign * value[:, :k]).float(), index[:, :k]


@torch.no_grad()
def top_pairs(
    A: Rows, left: Float[Tensor, "d_a r"], right: Float[Tensor, "d_b r"], B: Rows, k: int, *, largest: bool = True
) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"], Int[Tensor, " k"]]:
    """Exact best k entries of A · left · rightᵀ · Bᵀ."""
    n, m = A.shape[0], B.shape[0]
    if k > n * m:
        raise EmbspaceError(f"k={k} is more than the {n * m} pairs there are to choose from.")
    sign = 1 if largest else -1
    a, b = A[:].double() @ left.double(), B[:].double() @ right.double()
    best = torch.empty(0, dtype=torch.float64)
    key = torch.empty(0, dtype=torch.int64)
    for i in range(0, n, 512):
        tile = (sign * a[i : i + 512] @ b.T).flatten()
        best = torch.cat([best, tile])
        key = torch.cat([key, i * m + torch.arange(len(tile))])
        best, order = best.sort(descending=True, stable=True)
        best, key = best[:k], key[order[:k]]
    return (sign * best).float(), key // m, key % m
