"""Permutation tests of shares of pairs: how often a target is among the top tokens for its source, and for other sources."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

BLOCK_ENTRIES = 2**24  # entries of a matrix that are held at a time, for relations of many pairs


def shuffled(column: Int[Tensor, " n"], n_shuffles: int, seed: int) -> Int[Tensor, "n n_shuffles"]:
    """The entries in random orders, one order per column; 32-bit integers, because there may be many."""
    generator = torch.Generator().manual_seed(seed)
    n, column = len(column), column.int()
    orders = torch.empty(n, n_shuffles, dtype=torch.int32)
    block = max(1, BLOCK_ENTRIES // n)
    for start in range(0, n_shuffles, block):
        random = torch.rand(min(block, n_shuffles - start), n, generator=generator)
        orders[:, start : start + block] = column[random.argsort(dim=1)].T
    return orders


@dataclass(frozen=True)
class Hits:
    """The matrix of hits of a relation, in blocks of rows: entry (i, j) states whether the target of pair j is among the top
    tokens for the source of pair i. The n × n matrix is never built.
    """

    top: Int[Tensor, "n k"]  # the indices of the top tokens among the distinct targets; n_targets for other tokens
    column: Int[Tensor, " n"]  # the index of each pair's target among the distinct targets
    n_targets: int

    def __len__(self) -> int:
        return len(self.column)

    def paired(self) -> int:
        """The number of pairs whose target is among the top tokens for its source."""
        return int((self.top == self.column[:, None]).any(dim=1).sum())

    def mean(self) -> float:
        """The mean of the matrix: the expected score of shuffled targets."""
        counts = torch.bincount(self.column, minlength=self.n_targets + 1)  # the last entry is 0
        return int(counts[self.top].sum()) / len(self) ** 2

    def shuffled(self, targets: Int[Tensor, "n n_shuffles"]) -> Int[Tensor, " n_shuffles"]:
        """The number of hits in each shuffle of the targets."""
        counts = torch.zeros(targets.shape[1], dtype=torch.long)
        block = max(1, BLOCK_ENTRIES // max(targets.shape[1], self.n_targets + 1))
        for start in range(0, len(self), block):
            top = self.top[start : start + block]
            is_top = torch.zeros(len(top), self.n_targets + 1, dtype=torch.bool)
            is_top.scatter_(1, top, True)
            counts += is_top.gather(1, targets[start : start + block].long()).sum(0)
        return counts


class MaximumTest:
    """Permutation test of one relation and effect: each head's score against the best score of all heads in each shuffle.

    scipy's permutation test would compute all heads' hits again for every shuffle. They are computed once here, and a shuffle
    only picks entries of each head's hits.
    """

    def __init__(self, n_heads: int, shuffled: Int[Tensor, "n n_shuffles"]) -> None:
        self.score, self.control = np.zeros(n_heads), np.zeros(n_heads)
        self._n_hits = np.zeros(n_heads, dtype=np.int64)
        self._shuffled, self._best = shuffled, torch.zeros(shuffled.shape[1], dtype=torch.long)

    def add(self, head_index: int, hits: Hits) -> None:
        """Add the hits of one head."""
        self._n_hits[head_index] = hits.paired()
        self.score[head_index] = self._n_hits[head_index] / len(hits)
        self.control[head_index] = hits.mean()
        if self.control[head_index] > 0:
            self._best = torch.maximum(self._best, hits.shuffled(self._shuffled))

    @property
    def p_value(self) -> np.ndarray:
        """The share of shuffles at least as high, where the true order counts as one of the shuffles, so that it is never 0."""
        at_least = (self._best.numpy()[None] >= self._n_hits[:, None]).sum(1)
        return (1 + at_least) / (1 + len(self._best))
