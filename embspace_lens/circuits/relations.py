"""Relation scores of heads (MAPS): how well a head's W_OV maps the source of each pair of a relation to its target."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..files import read_json
from ..lens import EmbeddingLens
from ..search.tiles import upcast
from ..search.tokens import top_tokens
from ..tables.checks import check_integer, check_k
from ..tables.frames import tidy
from ..tables.selection import Select
from ..weights.first_mlp import first_mlp_output
from .permutation_tests import Hits, MaximumTest, shuffled

MIN_PAIRS = 30  # a relation with fewer pairs has no score
Effect = Literal["promotion", "suppression"]
EFFECTS: tuple[Effect, ...] = ("promotion", "suppression")

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
    r"""Score how well each head implements a relation: the share of pairs whose target the head promotes, or suppresses.

    .. math:: \frac{1}{n} \sum_{(s, t)} \big[\, t \in \operatorname{top}_k (x_s W_{OV} W_U) \,\big], \qquad
              x_s = \begin{cases} W_E[s] & \text{in block 0} \\ \mathrm{MLP}_0(\mathrm{LN}_2(W_E[s])) & \text{in later blocks} \end{cases}

    For suppression, the scores are $-x_s W_{OV} W_U$. A word denotes the token with a leading space, if the vocabulary
    marks spaces. Frequent targets are promoted for any source, so each score is reported with the score of shuffled targets.

    Norms are folded as in the lens: the gain of the norm before attention into W_V, that of the final norm into W_U. The original
    reads the weights as stored: use a lens with `fold_ln=False`. In both cases the norm before the first MLP is applied as it is.

    Args:
        lens: The model's lens; targets are ranked by its score, among the tokens that it reads.
        relations: By name, pairs of source and target; `read_relations` reads them from files.
        layer: Which blocks; all by default.
        head: Which query heads.
        k: The target counts if it is among the top k tokens; the paper uses 1 for copying and 10 otherwise.
        first_mlp: With False, x_s is the embedding in every block.
        n_shuffles: The number of shuffles of the targets for the p-value.
        seed: Seed of the shuffles.

    Returns:
        One row per (relation, layer, head, effect), with `relation_score`, `control`, `p_value`, `n` and `n_left_out`. A pair
        is left out if one of its words is not a single token that the lens reads. With fewer than 30 pairs the scores are NaN,
        and the function warns. `control` is the expected score of shuffled targets. `p_value` is the share of shuffles in
        which the best of the table's heads scores at least as high as this head, so it needs no correction for the number of
        heads.

    Raises:
        EmbspaceError: If a relation has no pairs, or the model has no such layer or head.

    Example:
        >>> pairs = [(token, token) for token in range(40)]
        >>> relation_scores(lens, {"copying": pairs}, layer=0, head=1)["effect"].tolist()
        ['promotion', 'suppression']

    References:
        Elhelo & Geva (2025), Inferring Functionality of Attention Heads from their Parameters, §3.1. https://arxiv.org/abs/2412.11965
        Westfall & Young (1993), Resampling-Based Multiple Testing (the p-value of the maximum over heads).
    """
    k = check_k(k, lens.space.n_tokens)
    n_shuffles = check_integer("n_shuffles", n_shuffles, minimum=1)
    if not isinstance(relations, Mapping):
        raise errors.not_relations(relations)
    layers, heads = lens.weights.select_layers(layer, "attn"), lens.weights.select_heads(head)
    n_heads = len(layers) * len(heads)
    parsed = [_Relation.parse(lens, name, relations[name]) for name in sorted(relations)]
    scored = [relation for relation in parsed if len(relation) >= MIN_PAIRS]
    _warn_of_small_relations(lens, [relation for relation in parsed if len(relation) < MIN_PAIRS])
    tests: dict[tuple[str, Effect], MaximumTest] = {}
    for relation in scored:
        targets = relation.shuffled_targets(n_shuffles, seed)
        tests |= {(relation.name, effect): MaximumTest(n_heads, targets) for effect in EFFECTS}
    if scored:
        sources = torch.cat([relation.source for relation in scored]).unique()
        for head_index, (vectors, rows) in enumerate(_head_outputs(lens, sources, layers, heads, first_mlp)):
            for effect in EFFECTS:
                top = top_tokens(vectors, rows, k, largest=effect == "promotion")[1].cpu()
                token_ids = lens.space.token_ids[top]
                for relation in scored:
                    tests[relation.name, effect].add(head_index, relation.hits(sources, token_ids, lens.space.d_vocab))

    def blocks() -> Iterator[dict[str, Any]]:
        no_score = np.full((n_heads, len(EFFECTS)), np.nan)
        for relation in parsed:
            values = dict.fromkeys(("relation_score", "control", "p_value"), no_score)
            if len(relation) >= MIN_PAIRS:
                of_effects = [tests[relation.name, effect] for effect in EFFECTS]
                values = {
                    "relation_score": np.stack([test.score for test in of_effects], axis=1),
                    "control": np.stack([test.control for test in of_effects], axis=1),
                    "p_value": np.stack([test.p_value for test in of_effects], axis=1),
                }
            yield {name: column.ravel() for name, column in values.items()} | {
                "relation": relation.name,
                "layer": np.repeat(layers, len(heads) * len(EFFECTS)),
                "head": np.tile(np.repeat(heads, len(EFFECTS)), len(layers)),
                "effect": [*EFFECTS] * n_heads,
                "n": len(relation),
                "n_left_out": relation.n_left_out,
            }

    columns = ["relation", "layer", "head", "effect", "relation_score", "control", "p_value", "n", "n_left_out"]
    return tidy(columns, blocks() if n_heads else [])


def read_relations(*paths: str | os.PathLike[str]) -> dict[str, list[tuple[str, str]]]:
    """Read relations from JSON files.

    A file holds a list of pairs, and its name is the relation's name; or it holds lists of pairs by name.

    Args:
        *paths: Files, or folders of files.

    Returns:
        Pairs of words by the relation's name.

    Raises:
        EmbspaceError: If a file cannot be read, no file holds a relation, or two relations have the same name. An entry that
            is not a list of pairs is left out, with a warning.

    Example:
        >>> read_relations("antonyms.json")["antonyms"][0]  # doctest: +SKIP
        ('love', 'hate')
    """
    relations: dict[str, list[tuple[str, str]]] = {}
    left_out: list[tuple[Path, str]] = []
    for path in map(Path, paths):
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not files:
            raise errors.no_json_files(path)
        for file in files:
            data = read_json(file)
            for name, pairs in (data if isinstance(data, dict) else {file.stem: data}).items():
                if name in relations:
                    raise errors.repeated_relation(file, name)
                if not isinstance(pairs, list) or not pairs or not all(map(_is_pair_of_words, pairs)):
                    left_out.append((file, name))
                else:
                    relations[name] = [(source, target) for source, target in pairs]
    if left_out and not relations:
        raise errors.not_relation_file(left_out[0][0])
    for file, name in left_out:
        warnings.warn(f"{file}: the relation {name!r} is not a list of pairs of words, and is left out.", stacklevel=2)
    return relations


def unread_words(lens: EmbeddingLens, pairs: Pairs) -> list[str]:
    """The words of pairs that are not single tokens of a lens, in the order of the pairs; `relation_scores` leaves their pairs out.

    Args:
        lens: The lens.
        pairs: Pairs of source and target.

    Example:
        >>> unread_words(lens, [("w2", "w3"), ("w2", "no word")])
        ['no word']
    """
    readable = set(lens.space.token_ids.tolist())
    words = dict.fromkeys(word for pair in pairs for word in pair)
    return [str(word) for word in words if lens.vocabulary.word(word, "unread_words()") not in readable]


def _is_pair_of_words(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(word, str) for word in pair)


def source_vectors(
    lens: EmbeddingLens, tokens: Int[Tensor, " n"], layers: Sequence[int], first_mlp: bool
) -> Callable[[int], Float[Tensor, "n d_model"]]:
    """A function from a layer to the vectors x_s of tokens: embeddings in block 0, outputs of the first MLP in later blocks."""
    W_E = lens.weights.W_E
    embedded = upcast(W_E[tokens.to(W_E.device)])
    enriched = first_mlp_output(lens.weights, embedded) if first_mlp and any(layers) else embedded
    return lambda layer: enriched if layer else embedded


def _head_outputs(
    lens: EmbeddingLens, tokens: Int[Tensor, " n"], layers: list[int], heads: list[int], first_mlp: bool
) -> Iterator[tuple[Float[Tensor, "n d_head"], Float[Tensor, "n_tokens d_head"]]]:
    """By head, x_s W_V and (W_O W_U)ᵀ: their products are x_s W_OV W_U, through d_head instead of d_model dimensions."""
    sources, unembedding = source_vectors(lens, tokens, layers, first_mlp), lens.space.rows("write")
    with tqdm(total=len(layers) * len(heads), desc="relations", unit="head", disable=None, leave=False) as progress:
        for layer in layers:
            form = lens.weights.W_OV(layer)
            for head in heads:
                W_V, W_O = form.A[head], form.B[head]
                vectors = (sources(layer).to(W_V) @ W_V).to(unembedding.device)
                rows = unembedding.scores(W_O.to(unembedding.device, unembedding.dtype)).T.contiguous()
                yield vectors, rows
                progress.update()


@dataclass(frozen=True)
class _Relation:
    """The pairs of a relation whose words are single tokens."""

    name: str
    source: Int[Tensor, " n"]
    target: Int[Tensor, " n"]
    n_left_out: int

    def __len__(self) -> int:
        return len(self.source)

    @classmethod
    def parse(cls, lens: EmbeddingLens, name: str, pairs: Pairs) -> "_Relation":
        if isinstance(pairs, str) or not len(pairs) or any(isinstance(p, str) or np.shape(p) != (2,) for p in pairs):
            raise errors.no_pairs(name)
        readable = set(lens.space.token_ids.tolist())
        tokens = [[lens.vocabulary.word(word, "relation_scores()") for word in pair] for pair in pairs]
        single = [(source, target) for source, target in tokens if source in readable and target in readable]
        source, target = torch.tensor(single, dtype=torch.long).view(-1, 2).T.contiguous()
        return cls(str(name), source, target, len(pairs) - len(single))

    @cached_property
    def _columns(self) -> tuple[Int[Tensor, " n_targets"], Int[Tensor, " n"]]:
        """The distinct targets, and the index of each pair's target among them."""
        targets, column = self.target.unique(return_inverse=True)
        return targets, column

    def shuffled_targets(self, n_shuffles: int, seed: int) -> Int[Tensor, "n n_shuffles"]:
        """The indices of the targets in random orders, one per column."""
        return shuffled(self._columns[1], n_shuffles, seed)

    def hits(self, sources: Int[Tensor, " m"], top: Int[Tensor, "m k"], d_vocab: int) -> "Hits":
        """Which targets are among the top tokens for the source of each pair."""
        targets, column = self._columns
        column_of = torch.full((d_vocab,), len(targets))  # tokens that are no target share the last column
        column_of[targets] = torch.arange(len(targets))
        return Hits(column_of[top[torch.searchsorted(sources, self.source)]], column, len(targets))


def _warn_of_small_relations(lens: EmbeddingLens, relations: list[_Relation]) -> None:
    if not relations:
        return
    counts = [f"{r.name} ({len(r)} of {len(r) + r.n_left_out})" for r in relations]
    message = f"Fewer than {MIN_PAIRS} pairs are left of {', '.join(counts)}: no score."
    if any(relation.n_left_out for relation in relations):
        message += f" The words of the others are not single tokens of {lens.name}."
    warnings.warn(message, UserWarning, stacklevel=3)
