"""Outliers among the best scores of vectors: z-scores within a pool of the best tokens or features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from ..search.tiles import Rows, chunks, float64, row_bytes, signed, take, upcast
from ..search.tokens import top_tokens
from ..space.embedding_space import EmbeddingSpace
from ..weights.parameter_names import Side

TOKEN = -1
"""The source of an entry that is a token; other entries are from an earlier dictionary, numbered from 0."""

ROUNDING = 1e-6
"""Scores whose deviation is below this share of the largest score differ by rounding only."""


class Entries(NamedTuple):
    """The best entries of each of n vectors: tokens, or features of earlier dictionaries.

    Attributes:
        source: `TOKEN`, or the number of an earlier dictionary.
        ids: The token's id, or the feature's index.
        score: The score.
        z: The score's z-score in its pool.
        is_outlier: Whether the z-score passes the threshold.
    """

    source: Int[np.ndarray, "*n m"]
    ids: Int[np.ndarray, "*n m"]
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
        enriched: What stands for the embeddings of tokens on the side of encoders; None for the embeddings.
        pool: How many tokens a pool holds.
        feature_pool: How many features of an earlier dictionary a pool holds.
        token_threshold: The threshold of z-scores of tokens.
        feature_threshold: The threshold of z-scores of features.
    """

    space: EmbeddingSpace
    earlier: Sequence[Rows]
    k: int
    largest: bool
    enriched: Rows | None
    pool: int
    feature_pool: int
    token_threshold: float
    feature_threshold: float

    def tokens(self, x: Float[Tensor, "n d_model"], side: Side) -> Entries:
        """The best k tokens, and further tokens that are outliers."""
        if side == "read" and self.enriched is not None:
            vectors, rows = self._direction(x), self.enriched
        else:
            vectors, rows = self.space.vectors(x, side), self.space.rows(side)
        return self._entries(vectors, rows, TOKEN, self.pool, self.token_threshold, self.space.ids(side))

    def read(self, x: Float[Tensor, "n d_model"]) -> tuple[Entries, Entries]:
        """The best k tokens and earlier features that encoders read, by z-score; and the tokens alone, as `tokens` gives them.

        Entries with equal z-scores are in the order of their sources, tokens first.
        """
        tokens = self.tokens(x, "read")
        parts = [tokens.first(self.k)]
        for source, rows in enumerate(self.earlier):
            found = self._entries(self._direction(x), rows, source, self.feature_pool, self.feature_threshold)
            parts.append(found.first(self.k))
        entries = joined(parts, axis=1)
        order = np.argsort(-entries.z if self.largest else entries.z, axis=1, kind="stable")[:, : self.k]
        return Entries(*(np.take_along_axis(part, order, axis=1) for part in entries)), tokens

    def _direction(self, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """The vectors, normalised if scores are cosines."""
        return normalize(x, dim=1) if self.space.score == "cosine" else x

    def _entries(
        self,
        vectors: Float[Tensor, "n d_model"],
        rows: Rows,
        source: int,
        pool: int,
        threshold: float,
        ids: Int[Tensor, " n_rows"] | None = None,
    ) -> Entries:
        """The best k rows, exactly, and further rows that are outliers, by scores in single precision."""
        vectors, pool = vectors.to(rows.device), min(pool, rows.shape[0])
        k = min(self.k, pool)
        score, index = top_tokens(vectors, rows, k, largest=self.largest)
        pool_score, pool_index = best_scores(vectors, rows, pool, largest=self.largest)
        mean, deviation = pool_moments(pool_score)
        score, index = (torch.cat([exact, of_pool[:, k:]], 1) for exact, of_pool in
                        ((score, pool_score), (index, pool_index)))  # fmt: skip
        z = (score.double() - mean) / deviation
        is_outlier = z > threshold if self.largest else z < -threshold
        index = index.cpu() if ids is None else ids[index.cpu()]
        parts = (part.cpu().numpy() for part in (index, score, z.float(), is_outlier))
        return Entries(np.full(score.shape, source), *parts).first(max(k, int(is_outlier.sum(dim=1).max())))


def best_scores(
    vectors: Float[Tensor, "n d_model"], rows: Rows, k: int, *, largest: bool
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The best k scores of each vector and their rows, sorted, with the rounding of one matrix product."""
    x = upcast(vectors) if largest else -upcast(vectors)
    score, index = x.new_empty(len(x), 0), torch.empty(len(x), 0, dtype=torch.int64, device=x.device)
    for chunk in chunks(rows.shape[0], row_bytes(rows), scale=2):
        n_before = score.shape[1]
        candidates = torch.cat([score, x @ take(rows, chunk).to(x).T], 1)
        score, order = candidates.topk(min(k, candidates.shape[1]), dim=1)
        if n_before:
            index = torch.where(
                order < n_before, index.gather(1, order.clamp(max=n_before - 1)), order - n_before + chunk.start
            )
        else:
            index = order
    return signed(score, largest), index


def pool_moments(score: Float[Tensor, "n pool"]) -> tuple[Float[Tensor, "n 1"], Float[Tensor, "n 1"]]:
    r"""The mean and the sample standard deviation of each row, in float64; infinite if all scores are equal.

    .. math:: \bar s = \tfrac{1}{n} \textstyle\sum s, \qquad \sigma^2 = \tfrac{1}{n - 1} \textstyle\sum (s - \bar s)^2
    """
    values = float64(score)
    deviation = values.std(dim=1, keepdim=True) if values.shape[1] > 1 else torch.zeros_like(values)
    is_constant = deviation <= ROUNDING * values.abs().amax(dim=1, keepdim=True)
    return values.mean(dim=1, keepdim=True), deviation.masked_fill(is_constant, torch.inf)


def joined(parts: Sequence[Entries], axis: int) -> Entries:
    """Entries of several searches: more entries of the same vectors (axis 1), or entries of more vectors (axis 0)."""
    return Entries(*(np.concatenate(columns, axis=axis) for columns in zip(*parts, strict=True)))
