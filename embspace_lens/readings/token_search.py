"""Which components read or write a token, several tokens, or a direction."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from ..space.embedding_space import SIDES
from ..space.embeddings import as_tensor
from ..tables.checks import check_integer
from ..tables.frames import tidy
from ..tables.selection import Select, weight_names
from ..weights.indices import weight_indices
from ..weights.parameter_names import ATTENTION, CIRCUITS, MLP, Side, WeightIndex, side_of, sublayer_of
from .base import NOT_APPLICABLE, AnyWeight, BaseLens, Block, entry_block, entry_columns
from .pair_search import CIRCUIT_SIDES, ENDS, pair_columns, pair_search

KEYS = ("layer", "expert", "head", "neuron", "subhead")


@dataclass(frozen=True)
class Target:
    """What a search is for: one token or feature, the mean of several, or a vector of the residual stream.

    Attributes:
        ids: The ids of the tokens or features of each side; a side that has none of them is not searched. Empty for a vector.
        vector: The vector; None for tokens and features.
        reasons: Why a side has none of the tokens or features.
    """

    ids: Mapping[Side, tuple[int, ...]] = field(default_factory=dict)
    vector: Float[Tensor, " d_model"] | None = None
    reasons: Mapping[Side, errors.EmbspaceError] = field(default_factory=dict)

    def is_on(self, side: Side) -> bool:
        """Whether directions of this side have a score."""
        return self.vector is not None or side in self.ids

    def index(self, side: Side) -> int:
        """The id of a single token or feature; −1 for several, or a vector."""
        ids = self.ids.get(side, ())
        return ids[0] if len(ids) == 1 else NOT_APPLICABLE

    def label(self, lens: BaseLens, side: Side) -> str:
        """The token's text or the feature's label; those of several, joined; or "vector"."""
        features = lens.space.features(side)
        strings = lens.vocabulary.strings if features is None else features.strings
        texts = [str(strings[i]) for i in self.ids.get(side, ())]
        return texts[0] if len(texts) == 1 else "+".join(text.strip() or text for text in texts) or "vector"

    def columns(self, lens: BaseLens, side: Side) -> Block:
        """The columns of what is searched for; those that do not apply are −1 and empty."""
        kind = "token" if lens.space.features(side) is None else "feature"
        block = {
            "token_index": NOT_APPLICABLE,
            "token_string": "",
            "feature_index": NOT_APPLICABLE,
            "feature_label": "",
        }
        name = "string" if kind == "token" else "label"
        return block | {f"{kind}_index": self.index(side), f"{kind}_{name}": self.label(lens, side)}

    def row(self, lens: BaseLens, side: Side) -> Float[Tensor, " d_model"]:
        """The vector whose inner products with directions of that side are the scores."""
        if self.vector is None:
            return lens.space.embedding_of(self.ids[side], side)
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
        return _listed_target(lens, [values])
    if not isinstance(values, Tensor | np.ndarray | list):
        raise errors.not_a_target(token)
    if not len(values):
        raise errors.no_tokens_to_search()
    if not _holds_floats(values):
        return _listed_target(lens, values if isinstance(values, list) else values.tolist())
    vector = as_tensor(values, "token")
    if vector.ndim != 1:
        raise errors.not_one_vector(tuple(vector.shape))
    if len(vector) != lens.space.d_model:
        raise errors.bad_target_width(len(vector), lens.name, lens.space.d_model)
    if not torch.isfinite(vector).all():
        raise errors.not_finite("the vector given")
    return Target(vector=vector)


def _listed_target(lens: BaseLens, values: list[Any]) -> Target:
    """The target for tokens or features, on each side that has them all.

    Raises:
        EmbspaceError: If no side has.
    """
    found: dict[Side, tuple[int, ...]] = {}
    reasons: dict[Side, errors.EmbspaceError] = {}
    for side in SIDES:
        features = lens.space.features(side)
        index = lens.vocabulary.index if features is None else features.index
        try:
            found[side] = tuple(index(value) for value in values)
        except errors.EmbspaceError as reason:
            reasons[side] = reason
    if not found:
        raise reasons["read"]
    return Target(found, reasons=reasons)


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
    blocks, unsupported = [], {}
    for name in tqdm(names, desc="search", unit="weight", disable=None, leave=False):
        if weight is None and not lens.weights.layers_with(sublayer_of(name)):
            continue
        side = CIRCUIT_SIDES[name][1] if name in CIRCUITS else side_of(name)
        if not target.is_on(side):  # a label of the other side's dictionary
            if weight is not None:
                raise target.reasons[side]
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
        strings = lens.vocabulary.array
        for end in ("dest_", "src_"):
            best[f"{end}token_string"] = strings.take(best[f"{end}token_index"], allow_fill=True, fill_value="")
        searched = target.columns(lens, side)
        if name in CIRCUITS:  # the searched end of each pair
            end = ENDS[name][1]
            best |= {f"{end}{column}": np.full(len(best["rank"]), value) for column, value in searched.items()}
        blocks.append(best | {"weight": name} | searched)
    if unsupported:
        _report_unsupported(lens, unsupported, nothing_else=not blocks)
    columns = [
        "layer",
        *lens.expert_column,
        "head",
        "neuron",
        "subhead",
        "weight",
        "rank",
        *entry_columns(lens),
        "score",
    ]
    return tidy([*columns, *pair_columns(lens), "token_rank"], blocks, kind="search")


def _report_unsupported(lens: BaseLens, unsupported: dict[str, errors.UnsupportedError], *, nothing_else: bool) -> None:
    """Warn that weights were left out; or raise, if there are no others."""
    if nothing_else:
        raise next(iter(unsupported.values()))
    reasons = dict.fromkeys(error.reason for error in unsupported.values())
    names, verb = ", ".join(unsupported), "is" if len(unsupported) == 1 else "are"
    message = f"search leaves out {names} of {lens.name}, which {verb} not supported: {'; '.join(reasons)}."
    warnings.warn(message, UserWarning, stacklevel=4)


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
    end, none = ENDS[name][0], np.full(len(order), NOT_APPLICABLE)
    pairs = _no_pairs(len(order)) | entry_block(lens, CIRCUIT_SIDES[name][0], torch.cat(partners)[order].numpy(), end)
    return (
        dict(zip(KEYS, np.array(keys).T[:, order.numpy()]))
        | pairs
        | {"rank": np.arange(len(order)), "score": score[order], "token_rank": none}
    )


def _no_pairs(n: int) -> Block:
    """The columns of pairs for rows that are none."""
    none, empty = np.full(n, NOT_APPLICABLE), np.full(n, "", dtype=object)
    columns = {"token_index": none, "feature_index": none, "feature_label": empty}
    return {f"{end}{column}": values for end in ("dest_", "src_") for column, values in columns.items()}


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
    best = torch.cat([x.to(vectors[0].device) for x in vectors])[order.to(vectors[0].device)]
    found = {"rank": np.arange(len(order)), "score": score[order], "token_rank": np.full(len(order), NOT_APPLICABLE)}
    if target.index(side) != NOT_APPLICABLE:
        found["token_rank"] = _ranks(lens, best, side, target.index(side), largest)
    return key | _no_pairs(len(order)) | found


def _ranks(
    lens: BaseLens, x: Float[Tensor, "n d_model"], side: Side, token: int, largest: bool
) -> Int[np.ndarray, " n"]:
    """For each direction, how many tokens score higher than the given one (with `largest` False, lower)."""
    scores = lens.space.rows(side).scores(x if largest else -x).cpu()
    own = scores[:, torch.searchsorted(lens.space.ids(side), token)]
    return (scores > own[:, None]).sum(dim=1).numpy()
