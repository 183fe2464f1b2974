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


def brute_jaccard(a: Tensor, b: Tensor, k: int) -> list[float]:
    """Of the k tokens of largest absolute score in each row of a and of b: those shared, over those of either."""
    found = []
    for row_a, row_b in zip(a.double().tolist(), b.double().tolist(), strict=True):
        top = [set(_best([abs(s) for s in row], k, True)) for row in (row_a, row_b)]
        found.append(len(top[0] & top[1]) / len(top[0] | top[1]))
    return found


def brute_recall(states: Tensor, activations: Tensor, units: Tensor, k: int, n_active: int) -> list[float]:
    """For each token: how many of its state's top k tokens are in the top k of one of its most active units.

    Args:
        states: Scores of the hidden states, a row a token.
        activations: A row a token, a column a unit.
        units: Scores of the units' directions, a row a unit.
        k: Tokens of each list.
        n_active: Units of each token.
    """
    tops = [set(_best(scores, k, True)) for scores in units.double().tolist()]
    found = []
    for state, activation in zip(states.double().tolist(), activations.double().tolist(), strict=True):
        union = set().union(*(tops[unit] for unit in _best(activation, n_active, True)))
        found.append(len(set(_best(state, k, True)) & union) / k)
    return found


def brute_keep_k(X: Tensor, E: Tensor, E_inverse: Tensor, k: int) -> float:
    """cos(vec X Xᵀ, vec keep_k(XE) keep_k(XE'ᵀ)ᵀ), entry by entry; E and E'ᵀ hold one token a row."""
    kept = []
    for side in (E, E_inverse):
        rows = [[_dot(x, e) for e in side.double().tolist()] for x in X.double().tolist()]
        kept.append([])
        for row in rows:
            chosen = set(_best([abs(s) for s in row], k, True))
            kept[-1].append([s if i in chosen else 0.0 for i, s in enumerate(row)])
    true = [_dot(x, y) for x in X.double().tolist() for y in X.double().tolist()]
    found = [_dot(a, b) for a in kept[0] for b in kept[1]]
    return _dot(true, found) / math.sqrt(_dot(true, true) * _dot(found, found))
