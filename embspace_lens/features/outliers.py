"""Outliers among the best scores of vectors: z-scores within a pool of the best tokens or features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from ..search.tiles import Rows
from ..search.tokens import top_tokens
from ..space.embedding_space import EmbeddingSpace
from ..weights.parameter_names import Side

TOKEN = -1
"""The source of an entry that is a token; other entries are from an earlier dictionary, numbered from 0."""


class Entries(NamedTuple):
    """The best entries of each of n vectors: tokens, or features of earlier dictionaries.

    Attributes:
        source: `TOKEN`, or the number of an earlier dictionary.
        index: The token's id, or the feature's index.
        score: The score.
        z: The score's z-score in its pool.
        is_outlier: Whether the z-score passes the threshold.
    """

    source: Int[np.ndarray, "*n m"]
    index: Int[np.ndarray, "*n m"]
    score: Float[np.ndarray, "*n m"]
    z: Float[np.ndarray, "*n m"]
    is_outlier: Bool[np.ndarray, "*n m"]

    def first(self, k: int) -> "Entries":
        """The first k entries of each vector."""
        return Entries(*(part[..., :k] for part in self))


@dataclass(frozen=True, eq=False)
class OutlierSearch:
    """Searches for tokens and earlier features whose score is an outlier among the best.

    Attributes:
        space: The tokens and their scores.
        earlier: What the features of each earlier dictionary write.
        k: How many entries are kept of each vector, outliers or not.
        largest: The highest scores; with False, the lowest.
        pool: How many tokens a pool holds.
        feature_pool: How many features of an earlier dictionary a pool holds.
        token_threshold: The threshold of z-scores of tokens.
        feature_threshold: The threshold of z-scores of features.
    """

    space: EmbeddingSpace
    earlier: Sequence[Rows]
    k: int
    largest: bool
    pool: int
    feature_pool: int
    token_threshold: float
    feature_threshold: float

    def tokens(self, x: Float[Tensor, "n d_model"], side: Side) -> Entries:
        """All tokens that are outliers, and at least the best k."""

        def search(n: int) -> tuple[Tensor, Tensor]:
            return self.space.top(x, side, n, largest=self.largest)

        return self._entries(search, TOKEN, self.pool, self.token_threshold)

    def read(self, x: Float[Tensor, "n d_model"]) -> tuple[Entries, Entries]:
        """The best k tokens and earlier features that encoders read, by z-score; and the tokens alone, as `tokens` gives them.

        Entries with equal z-scores are in the order of their sources, tokens first.
        """
        tokens = self.tokens(x, "read")
        parts = [tokens]
        vectors = normalize(x, dim=1) if self.space.score == "cosine" else x
        for source, rows in enumerate(self.earlier):

            def search(n: int, rows: Rows = rows) -> tuple[Tensor, Tensor]:
                return top_tokens(vectors.to(rows.device), rows, n, largest=self.largest)

            parts.append(self._entries(search, source, min(self.feature_pool, rows.shape[0]), self.feature_threshold))
        all_entries = joined(parts, axis=1)
        order = np.argsort(-all_entries.z if self.largest else all_entries.z, axis=1, kind="stable")[:, : self.k]
        return Entries(*(np.take_along_axis(part, order, axis=1) for part in all_entries)), tokens

    def _entries(
        self, search: Callable[[int], tuple[Tensor, Tensor]], source: int, pool: int, threshold: float
    ) -> Entries:
        """All outliers among the best scores, and at least the best k."""
        score, index = search(pool)
        z = z_scores(score)
        is_outlier = z > threshold if self.largest else z < -threshold
        parts = (part.cpu().numpy() for part in (index, score, z, is_outlier))
        entries = Entries(np.full(score.shape, source), *parts)
        return entries.first(max(self.k, int(is_outlier.sum(dim=1).max()) if len(z) else 0))


def z_scores(score: Float[Tensor, "n pool"]) -> Float[Tensor, "n pool"]:
    r"""z-scores of each row's sorted scores; 0 if they are all equal.

    .. math:: z = (s - \bar s) / \sigma, \qquad \sigma^2 = \tfrac{1}{n - 1} \textstyle\sum (s - \bar s)^2
    """
    values = score.double()
    is_constant = values[:, :1] == values[:, -1:]
    if values.shape[1] < 2:
        return torch.zeros_like(score)
    scale = torch.where(is_constant, 1.0, values.std(dim=1, keepdim=True))
    return torch.where(is_constant, 0.0, (values - values.mean(dim=1, keepdim=True)) / scale).to(score.dtype)


def joined(parts: Sequence[Entries], axis: int) -> Entries:
    """Entries of several searches: more entries of the same vectors (axis 1), or entries of more vectors (axis 0)."""
    return Entries(*(np.concatenate(columns, axis=axis) for columns in zip(*parts, strict=True)))
