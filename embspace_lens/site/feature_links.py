"""Virtual weights of every feature: to the features of other dictionaries, directly and through heads."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ..errors import EmbspaceError
from ..features.dictionary import Features
from ..features.stream_order import check_direct, layers_between
from ..search.tiles import Rows, chunks, take
from ..search.tokens import top_tokens
from ..space.embedding_space import EmbeddingSpace
from ..space.feature_rows import read_rows, written_rows

N_LINKS, N_HEADS, N_MOVED = 20, 5, 3
EMBEDDING = "hook_embed"

Link = tuple[int, float]
"""The number of a feature, or the id of a token, and the weight."""


class Moves(NamedTuple):
    """What one head moves to or from a feature.

    Attributes:
        head: Layer and head.
        is_token: Whether the links are tokens.
        links: The strongest weights.
    """

    head: tuple[int, int]
    is_token: bool
    links: list[Link]


class FeatureLinks:
    """Virtual weights between dictionaries, feature by feature.

    Features are numbered through all dictionaries in their order. Weights are inner products of weights, with the linear part of
    norms folded in, whatever the lens's score is.

    Args:
        dictionaries: The dictionaries.
        lens: The lens of the model on which they were trained.

    Attributes:
        first: The number of each dictionary's first feature.
        earlier: For each dictionary, the numbers of those that write before it reads.
    """

    def __init__(self, dictionaries: Sequence[Features], lens: Any) -> None:
        self.dictionaries, self.lens = dictionaries, lens
        self.first = [sum(map(len, dictionaries[:i])) for i in range(len(dictionaries))]
        self.written = [written_rows(lens.weights, features) for features in dictionaries]
        self.read = [read_rows(lens.weights, features) for features in dictionaries]
        n = range(len(dictionaries))
        self.earlier = [[s for s in n if s != t and self._is_earlier(s, t)] for t in n]

    def _is_earlier(self, s: int, t: int) -> bool:
        try:
            check_direct(self.dictionaries[s], self.dictionaries[t], self.lens.weights)
        except EmbspaceError:
            return False
        return True

    def direct_in(self, t: int, k: int = N_LINKS) -> list[list[Link]]:
        """For each feature of a dictionary, the features of earlier dictionaries with the strongest weights to it, of both signs."""
        return self._linked(self.read[t], [(self.first[s], self.written[s]) for s in self.earlier[t]], k)

    def direct_out(self, s: int, k: int = N_LINKS) -> list[list[Link]]:
        """For each feature of a dictionary, the features of later dictionaries with the strongest weights from it."""
        later = [t for t, earlier in enumerate(self.earlier) if s in earlier]
        return self._linked(self.written[s], [(self.first[t], self.read[t]) for t in later], k)

    def _linked(self, vectors: Rows, others: Sequence[tuple[int, Rows]], k: int) -> list[list[Link]]:
        links: list[list[Link]] = []
        for chunk in chunks(vectors.shape[0], 4 * vectors.shape[1]):
            rows = take(vectors, chunk)
            links += _strongest(rows, others, k) if others else [[] for _ in rows]
        return links

    def heads_in(self, t: int) -> list[list[Moves]]:
        """For each feature of a dictionary, the heads through which the strongest weights to it run.

        The sources are the features of earlier dictionaries with attention between, or tokens if there are none.
        """
        target = self.dictionaries[t]
        sources = [(s, self.dictionaries[s]) for s in self.earlier[t]]
        paths = [(self.first[s], self.written[s], self._layers(source, target)) for s, source in sources]
        tokens = _at(target, EMBEDDING)
        return self._moves(self.read[t], paths, (self._tokens.read, self._layers(tokens, target)), is_in=True)

    def heads_out(self, s: int) -> list[list[Moves]]:
        """For each feature of a dictionary, the heads through which the strongest weights from it run, to features or tokens."""
        source = self.dictionaries[s]
        targets = [(t, self.dictionaries[t]) for t, earlier in enumerate(self.earlier) if s in earlier]
        paths = [(self.first[t], self.read[t], self._layers(source, target)) for t, target in targets]
        end = _at(source, f"blocks.{self.lens.weights.n_layers - 1}.hook_resid_post")
        return self._moves(self.written[s], paths, (self._tokens.write, self._layers(source, end)), is_in=False)

    @property
    def _tokens(self) -> EmbeddingSpace:
        """The lens's tokens, scored by inner products."""
        space = self.lens.space
        return EmbeddingSpace(self.lens.weights, space=space.kind, token_ids=space.token_ids)

    def _layers(self, source: Features, target: Features) -> list[int]:
        """The blocks whose attention lies between two dictionaries; none if that is unknown."""
        try:
            return layers_between(source, target, "ov", self.lens.weights, None)
        except EmbspaceError:
            return []

    def _moves(
        self,
        vectors: Rows,
        paths: Sequence[tuple[int, Rows, list[int]]],
        tokens: tuple[Rows, list[int]],
        *,
        is_in: bool,
    ) -> list[list[Moves]]:
        """For each vector, the heads with the strongest weights to other rows, as features or, without any, as tokens."""
        paths = [path for path in paths if path[2]]
        is_token = not paths
        if is_token:
            paths = [(0, *tokens)]
        rows = take(vectors, slice(0, vectors.shape[0]))
        moves: list[list[Moves]] = [[] for _ in rows]
        layers = sorted({layer for _, _, between in paths for layer in between})
        n_heads = self.lens.weights.n_heads
        with tqdm(total=len(layers) * n_heads, desc="heads", unit="head", disable=None, leave=False) as bar:
            for layer in layers:
                circuits = self.lens.weights.circuits("W_OV", layer)
                for head in range(n_heads):
                    left, right = circuits[head]
                    near, far = (right, left) if is_in else (left, right)
                    others = [(first, _Projected(other, far)) for first, other, between in paths if layer in between]
                    for links, strongest in zip(moves, _strongest(rows @ near.to(rows), others, N_MOVED), strict=True):
                        links.append(Moves((layer, head), is_token, strongest))
                    moves = [_best_heads(links) for links in moves]
                    bar.update()
        if is_token:
            ids = self.lens.space.token_ids.tolist()
            moves = [[move._replace(links=[(ids[i], w) for i, w in move.links]) for move in each] for each in moves]
        return moves


class _Projected:
    """Rows times a matrix, made on demand."""

    def __init__(self, rows: Rows, matrix: Float[Tensor, "d_model d_head"]) -> None:
        self.rows, self.matrix = rows, matrix
        self.shape, self.device = (rows.shape[0], matrix.shape[1]), rows.device

    def __getitem__(self, index: slice | Tensor, /) -> Float[Tensor, "_n _d"]:
        rows = take(self.rows, index)
        return rows @ self.matrix.to(rows)


def _strongest(vectors: Float[Tensor, "n d"], others: Sequence[tuple[int, Rows]], k: int) -> list[list[Link]]:
    """For each vector, the k rows of all the others with the largest inner products by absolute value, exactly.

    Args:
        vectors: The vectors.
        others: Rows, and the number of the first.
        k: How many.
    """
    scores, numbers = [], []
    for first, rows in others:
        for largest in (True, False):
            score, index = top_tokens(vectors.to(rows.device), rows, min(k, rows.shape[0]), largest=largest)
            is_of_sign = (score > 0) if largest else (score < 0)  # a row of few may be among the largest and the lowest
            scores.append(torch.where(is_of_sign, score, 0.0).cpu())
            numbers.append(index.cpu() + first)
    score, number = torch.cat(scores, dim=1), torch.cat(numbers, dim=1)
    order = score.abs().sort(dim=1, descending=True, stable=True).indices[:, :k]
    rows = zip(number.gather(1, order).tolist(), score.gather(1, order).tolist(), strict=True)
    return [[(i, value) for i, value in zip(*row, strict=True) if value] for row in rows]


def _best_heads(moves: list[Moves]) -> list[Moves]:
    """The heads with the strongest weights."""
    moves = [move for move in moves if move.links]
    return sorted(moves, key=lambda move: -abs(move.links[0][1]))[:N_HEADS]


def _at(features: Features, hook: str) -> Features:
    """The dictionary at another point of the stream."""
    return replace(features, hook=hook, output_hook="", layer=None)
