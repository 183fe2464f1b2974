"""Which components read or write a token, several tokens, or a direction."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from .. import errors
from ..search.tiles import PART_SCALE, chunks
from ..space.embeddings import as_tensor
from ..tables.checks import check_integer
from ..tables.frames import tidy
from ..tables.selection import Select, weight_names
from ..weights.indices import weight_indices
from ..weights.parameter_names import ATTENTION, CIRCUITS, MLP, Side, WeightIndex, side_of, sublayer_of
from .base import TOKEN_COLUMNS, AnyWeight, BaseLens, Block
from .heads import PAIR_COLUMNS
from .pair_search import CIRCUIT_SIDES, pair_search

KEYS = ("layer", "expert", "head", "neuron", "subhead")
NO_TOKEN = -1


@dataclass(frozen=True)
class Target:
    """What a search is for: one token, the mean of several, or a vector of the residual stream.

    Attributes:
        tokens: The ids of the tokens; empty for a vector.
        vector: The vector; None for tokens.
    """

    tokens: tuple[int, ...] = ()
    vector: Float[Tensor, " d_model"] | None = None

    @property
    def token_index(self) -> int:
        """The id of a single token; −1 for several tokens or a vector."""
        return self.tokens[0] if len(self.tokens) == 1 else NO_TOKEN

    def label(self, lens: BaseLens) -> str:
        """The token's text; the texts of several tokens, joined; or "vector"."""
        texts = [str(lens.vocabulary.strings[token]) for token in self.tokens]
        return texts[0] if len(texts) == 1 else "+".join(text.strip() or text for text in texts) or "vector"

    def row(self, lens: BaseLens, side: Side) -> Float[Tensor, " d_model"]:
        """The vector whose inner products with directions of that side are the scores."""
        if self.vector is None:
            return lens.space.embedding_of(self.tokens, side)
        rows = lens.space.rows(side)
        vector = self.vector.to(rows.device, rows.dtype)
        return normalize(vector, dim=0) if lens.space.score == "cosine" else vector


def search_target(lens: BaseLens, token: Any) -> Target:
    """The target that a user gives: a string, an id, a sequence of these, or a vector: numbers of which one is a float.

    Raises:
        EmbspaceError: If it is none of these, or the vector is not finite or has another width.
    """
    values = token.to_numpy(copy=True) if isinstance(token, pd.Series | pd.Index) else token
    if isinstance(values, Sequence) and not isinstance(values, str):
        values = [_scalar(value) for value in values]
    values = _scalar(values)
    if values is None or isinstance(values, str | int | float):
        single: Any = values
        return Target((lens.vocabulary.index(single),))
    if not isinstance(values, Tensor | np.ndarray | list):
        raise errors.not_a_target(token)
    if not len(values):
        raise errors.no_tokens_to_search()
    if not _holds_floats(values):
        tokens: list[Any] = values if isinstance(values, list) else values.tolist()
        return Target(tuple(lens.vocabulary.index(each) for each in tokens))
    vector = as_tensor(values, "token")
    if vector.ndim != 1:
        raise errors.not_one_vector(tuple(vector.shape))
    if len(vector) != lens.space.d_model:
        raise errors.bad_target_width(len(vector), lens.name, lens.space.d_model)
    if not torch.isfinite(vector).all():
        raise errors.not_finite("the vector given")
    return Target(vector=vector)


def _scalar(value: Any) -> Any:
    """A scalar of numpy or torch as Python's number or string; other values are returned as they are."""
    is_scalar = isinstance(value, np.generic) or (isinstance(value, Tensor | np.ndarray) and value.ndim == 0)
    return value.item() if is_scalar else value


def _holds_floats(values: Tensor | np.ndarray | list[Any]) -> bool:
    """Whether values are the entries of a vector, and not the ids of tokens."""
    if isinstance(values, Tensor):
        return values.is_floating_point()
    if isinstance(values, np.ndarray):
        return values.dtype.kind == "f"
    return all(isinstance(value, int | float) for value in values) and any(isinstance(value, float) for value in values)


def search_token(
    lens: BaseLens,
    token: Any,
    layer: Select = None,
    *,
    weight: AnyWeight | Sequence[AnyWeight] | None = None,
    k: int = 10,
    largest: bool = True,
) -> pd.DataFrame:
    """Find the components that score a token highest; see `EmbeddingLens.search`."""
    names = weight_names(weight, (*MLP, *ATTENTION, *CIRCUITS))
    k = check_integer("k", k, minimum=1)
    target = search_target(lens, token)
    text, strings = target.label(lens), lens.vocabulary.array
    blocks, unsupported = [], {}
    for name in tqdm(names, desc="search", unit="weight", disable=None, leave=False):
        if weight is None and not lens.weights.layers_with(sublayer_of(name)):
            continue
        find = _best_heads if name in CIRCUITS else _best_directions
        try:
            indices = weight_indices(lens.weights, name, layer, required=weight is not None or name != "W_gate")
            if not indices:
                continue
            best = find(lens, name, indices, target, k, largest)
        except errors.UnsupportedError as error:
            if weight is not None:
                raise
            unsupported[name] = error
            continue
        for end in ("dest", "src"):
            best[f"{end}_token_string"] = strings.take(best[f"{end}_token_index"], allow_fill=True, fill_value="")
        if name in CIRCUITS:  # the searched token's end of each pair
            best[f"{_searched_end(name)}_token_string"] = [text] * len(best["rank"])
        blocks.append(best | {"weight": name, "token_index": target.token_index, "token_string": text})
    if unsupported:
        _report_unsupported(lens, unsupported, nothing_else=not blocks)
    columns = ["layer", *lens.expert_column, "head", "neuron", "subhead", "weight", "rank", *TOKEN_COLUMNS]
    return tidy([*columns, *PAIR_COLUMNS, "token_rank"], blocks, kind="search")


def _report_unsupported(lens: BaseLens, unsupported: dict[str, errors.UnsupportedError], *, nothing_else: bool) -> None:
    """Warn that weights were left out; or raise, if there are no others."""
    if nothing_else:
        raise next(iter(unsupported.values()))
    reasons = dict.fromkeys(error.reason for error in unsupported.values())
    names, verb = ", ".join(unsupported), "is" if len(unsupported) == 1 else "are"
    message = f"search leaves out {names} of {lens.name}, which {verb} not supported: {'; '.join(reasons)}."
    warnings.warn(message, UserWarning, stacklevel=4)


def _searched_end(name: str) -> str:
    """The end of a pair where the searched token is: promoted by W_OV, attended to (the key) in W_QK."""
    return "dest" if name == "W_OV" else "src"


def _best_heads(lens: BaseLens, name: str, indices: list[WeightIndex], target: Target, k: int, largest: bool) -> Block:
    """The k heads, over all layers, whose best pair with the target has the highest (or lowest) score."""
    row = target.row(lens, CIRCUIT_SIDES[name][1])
    scores, partners, keys = [], [], []
    for index in indices:
        score, partner = pair_search(lens, name, index.layer).top_partners(row, largest=largest)
        scores.append(score)
        partners.append(partner)
        keys += [(index.layer, index.expert, head, -1, -1) for head in range(len(score))]
    score = torch.cat(scores)
    order = torch.argsort(score, descending=largest, stable=True)[:k]
    n = len(order)
    searched = _searched_end(name)
    other = "src" if searched == "dest" else "dest"
    pairs = {
        f"{searched}_token_index": np.full(n, target.token_index),
        f"{other}_token_index": torch.cat(partners)[order].numpy(),
    }
    return (
        dict(zip(KEYS, np.array(keys).T[:, order.numpy()]))
        | pairs
        | {"rank": np.arange(n), "score": score[order], "token_rank": np.full(n, -1)}
    )


def _best_directions(
    lens: BaseLens, name: str, indices: list[WeightIndex], target: Target, k: int, largest: bool
) -> Block:
    """The k directions of one weight, over all layers, that score the target highest (or lowest)."""
    side = side_of(name)
    row_of_target = target.row(lens, side)
    scores, keys, vectors = [], [], []
    for index in indices:
        rows = lens.weights.direction_rows(name, *index)
        d_head = rows.shape[1] if name in ATTENTION else 1
        for chunk in chunks(len(rows), 4 * lens.space.d_model * d_head, scale=PART_SCALE):
            flat = lens.space.vectors(rows[chunk].flatten(0, -2), side)
            score = flat @ row_of_target
            row = torch.argsort(score, descending=largest, stable=True)[:k]
            scores.append(score[row].cpu())
            vectors.append(flat[row])
            row, none = row.cpu().numpy() + chunk.start * d_head, np.full(len(row), -1)
            unit = (row // d_head, none, row % d_head) if name in ATTENTION else (none, row, none)
            keys.append(np.stack([np.full(len(row), index.layer), np.full(len(row), index.expert), *unit]))
    score = torch.cat(scores)
    order = torch.argsort(score, descending=largest, stable=True)[:k]
    key = dict(zip(KEYS, np.concatenate(keys, axis=1)[:, order.numpy()]))
    none = np.full(len(order), NO_TOKEN)
    best = torch.cat([x.to(vectors[0].device) for x in vectors])[order.to(vectors[0].device)]
    found = {"rank": np.arange(len(order)), "score": score[order], "token_rank": none}
    if target.token_index != NO_TOKEN:
        found["token_rank"] = _ranks(lens, best, side, target.token_index, largest)
    return key | {"dest_token_index": none, "src_token_index": none} | found


def _ranks(
    lens: BaseLens, x: Float[Tensor, "n d_model"], side: Side, token: int, largest: bool
) -> Int[np.ndarray, " n"]:
    """For each direction, how many tokens score higher than the given one (with `largest` False, lower)."""
    scores = lens.space.rows(side).scores(x if largest else -x).cpu()
    own = scores[:, torch.searchsorted(lens.space.token_ids, token)]
    return (scores > own[:, None]).sum(dim=1).numpy()
