"""Slow twins: what the package computes fast, in the plainest code there is, in float64."""

import math

import torch
from torch import Tensor


def _dot(x: list[float], y: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(x, y, strict=True))


def _best(scores: list[float], k: int, largest: bool) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (-scores[i] if largest else scores[i], i))[:k]


def brute_top_tokens(vectors: Tensor, embedding: Tensor, k: int, largest: bool = True) -> tuple[Tensor, Tensor]:
    """Best k rows of the embedding for every vector: every product, sorted; equal ones by row."""
    score, index = [], []
    rows = embedding.double().tolist()
    for vector in vectors.double().tolist():
        products = [_dot(vector, row) for row in rows]
        best = _best(products, k, largest)
        score.append([products[i] for i in best])
        index.append(best)
    return torch.tensor(score, dtype=torch.float64).float().view(-1, k), torch.tensor(index).view(-1, k)


def brute_top_pairs(
    A: Tensor, left: Tensor, right: Tensor, B: Tensor, k: int, largest: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Best k entries of A · left · rightᵀ · Bᵀ: every entry, sorted; equal ones by row, then column."""
    a = [[_dot(row, column) for column in left.double().T.tolist()] for row in A.double().tolist()]
    b = [[_dot(row, column) for column in right.double().T.tolist()] for row in B.double().tolist()]
    products = [_dot(x, y) for x in a for y in b]
    best = _best(products, k, largest)
    key = torch.tensor(best)
    return torch.tensor([products[i] for i in best], dtype=torch.float64).float(), key // len(b), key % len(b)
