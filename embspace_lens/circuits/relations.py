"""What heads do, told from their parameters: which relations between words a head's W_OV carries out (MAPS)."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from ..errors import EmbspaceError
from ..files import read_json
from ..lens import EmbeddingLens
from ..search.tokens import top_tokens
from ..tables.checks import check_k
from ..tables.frames import tidy
from ..tables.selection import Select
from ..weights.first_mlp import first_mlp_output

FEWEST = 30  # pairs: from fewer, a share says little
EFFECTS = ("promotion", "suppression")

Pairs = Sequence[Sequence[str | int]]
"""Pairs of a source and a target, each a word or a token id."""


def relation_scores(
    lens: EmbeddingLens,
    relations: Mapping[str, Pairs],
    *,
    layer: Select = None,
    head: Select = None,
    k: int = 10,
    first_mlp: bool = True,
    n_shuffles: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Score how far each head carries out a relation: the share of pairs whose target it promotes, or suppresses.

    .. math:: \frac{1}{n} \sum_{(s, t)} \big[\, t \in \operatorname{top}_k (x_s W_{OV} W_U) \,\big], \qquad
              x_s = \begin{cases} W_E[s] & \text{in block 0} \\ \mathrm{MLP}_0(\mathrm{LN}_2(W_E[s])) & \text{after it} \end{cases}

    Suppression is the same for $-x_s W_{OV} W_U$. A word is the token with a space before it, where the vocabulary writes
    spaces. Common targets are promoted whatever the source is, so each score stands beside that of shuffled targets.

    Args:
        lens: The model; targets are ranked among the tokens that it reads, by its score.
        relations: By name, pairs of source and target; `read_relations` reads files of them.
        layer: Which blocks; all of them by default.
        head: Which query heads.
        k: Among how many tokens the target must be; the paper takes 1 for copying and 10 otherwise.
        first_mlp: With False, x_s is the embedding in every block.
        n_shuffles: How many shuffles of the targets the p-value rests on.
        seed: Of the shuffles.

    Returns:
        One row per (relation, layer, head, effect) with `relation_score`, `control`, `p_value`, `n` and `n_left_out`. Left
        out are pairs of which a word is not one token that the lens reads; of fewer than 30 pairs there is no score (NaN),
        and a warning. `control` is the mean over all shuffles. `p_value` is the share of shuffles in which the best of the
        table's heads scores as high as this one, so it needs no correction for the number of heads.

    Raises:
        EmbspaceError: If a relation holds no pairs, or the model has no such layer or head.

    Example:
        >>> pairs = [(token, token) for token in range(40)]
        >>> relation_scores(lens, {"copying": pairs}, layer=0, head=1)["effect"].tolist()
        ['promotion', 'suppression']

    References:
        Elhelo & Geva (2025), Inferring Functionality of Attention Heads from their Parameters, §3.1. https://arxiv.org/abs/2412.11965
        Westfall & Young (1993), Resampling-Based Multiple Testing (the p-value over the best of all heads).
    """
    k = check_k(k, lens.space.n_tokens)
    if isinstance(n_shuffles, bool) or not isinstance(n_shuffles, int | np.integer) or n_shuffles < 1:
        raise EmbspaceError(f"n_shuffles={n_shuffles!r} is not a positive number of shuffles.")
    if not isinstance(relations, Mapping):
        raise EmbspaceError(f"relations are a {type(relations).__name__}; give them by name, {{name: pairs}}.")
    layers, heads = lens.weights.select_layers(layer, "attn"), lens.weights.select_heads(head)
    found = [_Relation.of(lens, name, relations[name]) for name in sorted(relations)]
    scored = [relation for relation in found if len(relation) >= FEWEST]
    few = [f"{r.name} ({len(r)} of {len(r) + r.n_left_out})" for r in found if len(r) < FEWEST]
    if few:
        said = f"Fewer than {FEWEST} pairs are left of {', '.join(few)}: no score."
        if any(relation.n_left_out for relation in found if len(relation) < FEWEST):
            said += f" The others are not single tokens of {lens.name}."
        warnings.warn(said, UserWarning, stacklevel=2)
    tests = {
        (r.name, effect): _Test(r, len(layers) * len(heads), _shuffles(len(r), n_shuffles, seed))
        for r in scored
        for effect in EFFECTS
    }
    if scored:
        sources = torch.cat([relation.source for relation in scored]).unique()
        for place, (written, rows) in enumerate(_written(lens, sources, layers, heads, first_mlp)):
            for effect in EFFECTS:
                top = top_tokens(written, rows, k, largest=effect == "promotion")[1].cpu()
                top = lens.space.token_ids[top]
                for relation in scored:
                    tests[relation.name, effect].add(place, relation.hits(sources, top, lens.space.d_vocab))

    def blocks() -> Iterator[dict[str, Any]]:
        empty = np.full(len(layers) * len(heads), np.nan)
        for r in found:
            both = [tests.get((r.name, effect)) for effect in EFFECTS]
            yield {
                "relation": r.name,
                "layer": np.repeat(layers, len(heads) * 2),
                "head": np.tile(np.repeat(heads, 2), len(layers)),
                "effect": [*EFFECTS] * len(empty),
                "relation_score": np.stack([t.score if t else empty for t in both], 1).ravel(),
                "control": np.stack([t.control if t else empty for t in both], 1).ravel(),
                "p_value": np.stack([t.p_value if t else empty for t in both], 1).ravel(),
                "n": len(r),
                "n_left_out": r.n_left_out,
            }

    columns = ["relation", "layer", "head", "effect", "relation_score", "control", "p_value", "n", "n_left_out"]
    return tidy(columns, blocks() if layers and heads else [])


def read_relations(*paths: str | os.PathLike[str]) -> dict[str, list[tuple[str, str]]]:
    """Read relations from JSON: a list of pairs, named as its file, or lists of pairs by name.

    Args:
        *paths: Files, or folders of them.

    Returns:
        Pairs of words by the relation's name.

    Raises:
        EmbspaceError: If a file cannot be read or holds something else, or two relations have one name.

    Example:
        >>> read_relations("antonyms.json")["antonyms"][0]  # doctest: +SKIP
        ('love', 'hate')
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for path in map(Path, paths):
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not files:
            raise EmbspaceError(f"{path} holds no .json file.")
        for file in files:
            data = read_json(file)
            for name, pairs in (data if isinstance(data, dict) else {file.stem: data}).items():
                whole = isinstance(pairs, list) and all(
                    isinstance(p, list) and len(p) == 2 and all(isinstance(word, str) for word in p) for p in pairs
                )
                if not whole or not pairs:
                    raise EmbspaceError(f"{file} holds no relation: give [[source, target], …], or those by name.")
                if name in found:
                    raise EmbspaceError(f"{file} holds {name!r} a second time. Give each relation a name of its own.")
                found[name] = [(source, target) for source, target in pairs]
    return found


def sources_of(
    lens: EmbeddingLens, tokens: Int[Tensor, " n"], layers: Sequence[int], first_mlp: bool
) -> Callable[[int], Float[Tensor, "n d_model"]]:
    """What the heads of a block see of tokens: embeddings in block 0, and behind the first MLP after it."""
    table = lens.weights.W_E
    embedded = table[tokens.to(table.device)]
    embedded = embedded.float() if embedded.dtype != torch.float64 else embedded
    enriched = first_mlp_output(lens.weights, embedded) if first_mlp and any(layers) else embedded
    return lambda layer: enriched if layer else embedded


def _written(
    lens: EmbeddingLens, tokens: Tensor, layers: list[int], heads: list[int], first_mlp: bool
) -> Iterator[tuple[Float[Tensor, "n d_head"], Float[Tensor, "n_tokens d_head"]]]:
    """Head by head, x_s W_V and the tokens' rows seen through W_O: their products are x_s W_OV W_U at a fraction of its cost."""
    seen, unembed = sources_of(lens, tokens, layers, first_mlp), lens.space.rows("write")
    with tqdm(total=len(layers) * len(heads), desc="relations", unit="head", disable=None, leave=False) as progress:
        for layer in layers:
            form = lens.weights.W_OV(layer)
            for head in heads:
                into, out_of = form.A[head], form.B[head]
                written = (seen(layer).to(into) @ into).to(unembed.device)
                yield written, unembed.scores(out_of.to(unembed.device, unembed.dtype)).T.contiguous()
                progress.update()


@dataclass(frozen=True)
class _Relation:
    """The pairs of a relation that are single tokens."""

    name: str
    source: Int[Tensor, " n"]
    target: Int[Tensor, " n"]
    n_left_out: int

    def __len__(self) -> int:
        return len(self.source)

    @classmethod
    def of(cls, lens: EmbeddingLens, name: str, pairs: Pairs) -> "_Relation":
        if isinstance(pairs, str) or not len(pairs) or any(isinstance(p, str) or np.shape(p) != (2,) for p in pairs):
            raise EmbspaceError(
                f"The relation {name!r} holds no pairs. Give [(source, target), …], words or token ids."
            )
        read = set(lens.space.token_ids.tolist())
        both = [[lens.vocabulary.word(word, "relation_scores()") for word in pair] for pair in pairs]
        kept = [(s, t) for s, t in both if s in read and t in read]
        source, target = torch.tensor(kept, dtype=torch.long).view(-1, 2).T.contiguous()
        return cls(str(name), source, target, len(pairs) - len(kept))

    def hits(self, sources: Int[Tensor, " m"], top: Int[Tensor, "m k"], d_vocab: int) -> Bool[Tensor, "n n"]:
        """Entry (i, j): whether the target of pair j is among the top tokens for the source of pair i."""
        targets, column = self.target.unique(return_inverse=True)
        column_of = torch.full((d_vocab,), len(targets))
        column_of[targets] = torch.arange(len(targets))
        found = torch.zeros(len(self), len(targets) + 1, dtype=torch.bool)
        found.scatter_(1, column_of[top[torch.searchsorted(sources, self.source)]], True)
        return found[:, column]


class _Test:
    """One relation and one effect: every head's score, and the best of all heads in each shuffle."""

    def __init__(self, relation: _Relation, n_heads: int, shuffles: Int[Tensor, "n_shuffles n"]) -> None:
        self.score, self.control = np.zeros(n_heads), np.zeros(n_heads)
        self._hits, self._n = np.zeros(n_heads, dtype=np.int64), len(relation)
        self._shuffles, self._best = shuffles, torch.zeros(len(shuffles), dtype=torch.long)

    def add(self, place: int, hits: Bool[Tensor, "n n"]) -> None:
        self._hits[place] = int(hits.diagonal().sum())
        self.score[place], self.control[place] = self._hits[place] / self._n, hits.double().mean().item()
        if hits.any():
            shuffled = hits.flatten()[torch.arange(self._n) * self._n + self._shuffles].sum(1)
            self._best = torch.maximum(self._best, shuffled)

    @property
    def p_value(self) -> np.ndarray:
        """The true order of the targets counts as one of the shuffles, so that no value is zero."""
        as_high = (self._best.numpy()[None] >= self._hits[:, None]).sum(1)
        return (1 + as_high) / (1 + len(self._best))


def _shuffles(n: int, n_shuffles: int, seed: int) -> Int[Tensor, "n_shuffles n"]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n_shuffles, n, generator=generator).argsort(dim=1)
