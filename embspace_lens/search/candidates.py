"""Candidate pairs: the pairs that may still be among the best k, with an interval around each score."""

import math
import struct
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .bounds import UNDERFLOW
from .duplicates import best_by_key

Rescore = Callable[[Int[Tensor, " p"]], Float[Tensor, " p"]]
"""A function from keys of pairs to their exact scores."""


class TooManyTies(Exception):
    """More pairs tie with the k-th best than the candidates may hold."""


class CandidatePairs:
    """The pairs that may be among the best k, given bounds on their scores.

    Args:
        k: How many pairs are searched for.
        capacity: How many candidates are kept at most.
        rescore: Computes exact scores if more candidates than `capacity` remain; None raises `TooManyTies` instead.
        device: Where the candidates are kept.

    Attributes:
        floor: A lower bound on the k-th best score.
    """

    def __init__(self, k: int, capacity: int, rescore: Rescore | None, device: torch.device) -> None:
        self.k, self.capacity, self._rescore = k, capacity, rescore
        self.floor = -math.inf
        empty = torch.empty(0, dtype=torch.float32, device=device)
        self._parts = [(empty, empty, empty.long())]
        self._n_new = 0

    @property
    def keys(self) -> Int[Tensor, " p"]:
        """The candidates' keys (row · m + column)."""
        return torch.cat([key for _, _, key in self._parts])

    def add(self, lower: Float[Tensor, " p"], upper: Float[Tensor, " p"], key: Int[Tensor, " p"]) -> None:
        """Add pairs with lower and upper bounds on their scores."""
        self._parts.append((lower, upper, key))
        self._n_new += len(key)
        if self._n_new > max(64, self.k // 4):
            self.compact()

    def raise_floor(self, lower: Float[Tensor, " p"]) -> None:
        """Raise `floor` to the k-th best of these lower bounds, if it is higher."""
        if len(lower) >= self.k:
            self.floor = max(self.floor, lower.topk(self.k, sorted=False).values.min().item())

    def compact(self) -> None:
        """Drop pairs below `floor`. If too many remain, keep the best k by exact score, equal scores by key."""
        lower, upper, key = (torch.cat(part) for part in zip(*self._parts, strict=True))
        self.raise_floor(lower)
        is_candidate = upper >= self.floor
        lower, upper, key = lower[is_candidate], upper[is_candidate], key[is_candidate]
        if len(key) > self.capacity:
            if self._rescore is None:
                raise TooManyTies
            score, key = best_by_key(self._rescore(key), key, self.k)
            lower, upper = (score * (1 - score.sign() * sign * 2**-22) for sign in (1, -1))
            lower, upper = lower.to(upper.device, torch.float32), upper.to(upper.device, torch.float32)
            self.raise_floor(lower)
        self._parts, self._n_new = [(lower, upper, key)], 0


Bound = float | Float[Tensor, "..."]


def score_margin(norm_a: Bound, slack_a: Bound, norm_b: Bound, slack_b: Bound, rounding: float) -> Bound:
    """A bound on the error of products of computed coordinates, for tensors or numbers that broadcast together.

    Args:
        norm_a: Bounds on the exact norms of one side's coordinates.
        slack_a: Bounds on the errors of these coordinates.
        norm_b: As `norm_a`, of the other side.
        slack_b: As `slack_a`, of the other side.
        rounding: The factor that bounds the rounding of the product itself.
    """
    from_slack = slack_a * norm_b + norm_a * slack_b + slack_a * slack_b
    return UNDERFLOW + rounding * norm_a * norm_b + (1 + rounding) * from_slack


def entries_at_least(score: Float[Tensor, "n m"], limit: float) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """Row and column of all scores that reach the limit, and of some that are below it by one unit in the last place."""
    if not 0 < limit < 1e38:
        i, j = (score >= limit).nonzero().T
        return i, j
    # Positive floats have the same order as their bits, which are compared ten times as fast.
    bits = struct.unpack("i", struct.pack("f", limit))[0]
    if score.dtype is torch.bfloat16:
        score_bits, bits = score.view(torch.int16), bits >> 16
    else:
        score_bits = score.view(torch.int32)
    rows = (score_bits.amax(1) >= bits).nonzero()[:, 0]
    i, j = (score_bits[rows] >= bits).nonzero().T
    return rows[i], j
