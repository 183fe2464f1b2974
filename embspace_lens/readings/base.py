"""What every reading shares: the fields of a lens, searches as blocks of table columns, and their progress bar."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from ..space.embedding_space import SIDES, EmbeddingSpace
from ..space.vocabulary import Vocabulary
from ..tables.checks import check_k
from ..weights.effective import Weights
from ..weights.host import AttentionWeight, MLPWeight
from ..weights.parameter_names import Side

DirectionWeight = Literal[MLPWeight, AttentionWeight]
AnyWeight = Literal["W_OV", "W_QK", DirectionWeight]

Block = dict[str, Any]
"""Columns of consecutive rows of a table, as `frames.tidy` takes them."""

NOT_APPLICABLE = -1


@dataclass(frozen=True, repr=False, eq=False)
class BaseLens:
    """One model's weights, an embedding space, and the tokens' strings: all that a reading needs.

    Attributes:
        weights: The effective weights, `weights.W_Q(layer)` … `weights.W_OV(layer)`.
        space: The embedding space, for tensors rather than tables.
        vocabulary: The tokens as strings.
    """

    weights: Weights
    space: EmbeddingSpace
    vocabulary: Vocabulary

    @property
    def name(self) -> str:
        """The model's name."""
        return self.weights.name

    @property
    def mask(self) -> str:
        """The name of the token mask; `all` if every token is read."""
        return self.space.mask

    @property
    def model(self) -> Any:
        """The TransformerLens model; for a difference of two models, the model before tuning."""
        return self.weights.model

    @property
    def expert_column(self) -> list[str]:
        """`["expert"]` for a model with mixtures of experts, `[]` for others."""
        return ["expert"] if self.weights.has_experts else []


def entry_columns(lens: BaseLens, sides: Iterable[Side] = SIDES, prefix: str = "") -> list[str]:
    """The columns of what directions of these sides are read as: of tokens, of features, or of both."""
    has_features = {lens.space.features(side) is not None for side in sides}
    tokens = [f"{prefix}token_index", f"{prefix}token_string"] if False in has_features else []
    return [*tokens, *([f"{prefix}feature_index", f"{prefix}feature_label"] if True in has_features else [])]


def entry_block(lens: BaseLens, side: Side, ids: Int[np.ndarray, " n"], prefix: str = "") -> Block:
    """The ids of one side's tokens or features as columns; −1 and empty for those of the other kind."""
    if not lens.space.has_features:
        return {f"{prefix}token_index": ids}
    features, none = lens.space.features(side), np.full(len(ids), NOT_APPLICABLE)
    if features is None:
        labels = np.full(len(ids), "", dtype=object)
        return {f"{prefix}token_index": ids, f"{prefix}feature_index": none, f"{prefix}feature_label": labels}
    labels = np.where(ids < 0, "", features.strings[ids])
    return {f"{prefix}token_index": none, f"{prefix}feature_index": ids, f"{prefix}feature_label": labels}


def check_list_length(lens: BaseLens, k: int, sides: Iterable[Side] = SIDES) -> int:
    """Check that every list of k tokens or features can be filled.

    Raises:
        EmbspaceError: If k is not a positive integer, or larger than the number of tokens or features of a side.
    """
    side = min(sides, key=lambda side: len(lens.space.ids(side)))
    kind = "tokens" if lens.space.features(side) is None else "features"
    return check_k(k, len(lens.space.ids(side)), f"{kind} that this lens reads")


def token_bar(lens: BaseLens, description: str, sides: Iterable[Side]) -> tqdm:
    """A progress bar over the tokens (or features) of searches on these sides; shown in a terminal, removed when done."""
    total = sum(len(lens.space.ids(side)) for side in sides)
    return tqdm(total=total, desc=description, unit="token", unit_scale=True, disable=None, leave=False)


def token_block(
    lens: BaseLens,
    x: Float[Tensor, "n d_model"],
    side: Side,
    k: int,
    *,
    largest: bool = True,
    bar: tqdm | None = None,
) -> Block:
    """The best k tokens (or features) of n vectors as n·k rows; `row` is the index of the vector."""
    n_done = 0

    def update(done: int, total: int) -> None:
        nonlocal n_done
        if bar is not None:
            bar.update(done - n_done)
        n_done = done

    scores, ids = lens.space.top(x, side, k, largest=largest, progress=update)
    return {
        "row": np.repeat(np.arange(len(x)), k),
        "rank": np.tile(np.arange(k), len(x)),
        "score": scores.flatten().numpy(),
        **entry_block(lens, side, ids.flatten().numpy()),
    }


def interleave(parts: list[Block], keys: Block, *sort_by: str) -> Iterator[Block]:
    """Blocks of several weights (or sides) as one block, sorted by the columns `sort_by`, then by block, then by rank."""
    if not parts or not len(parts[0]["rank"]):
        return
    joined = {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}
    part_index = np.concatenate([np.full(len(part["rank"]), i) for i, part in enumerate(parts)])
    order = np.lexsort((joined["rank"], part_index, *(joined[name] for name in reversed(sort_by))))
    yield {name: values[order] for name, values in joined.items()} | keys
