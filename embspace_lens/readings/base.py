"""What every reading shares: the fields of a lens, searches as blocks of table columns, and their progress bar."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ..space.embedding_space import EmbeddingSpace
from ..space.vocabulary import Vocabulary
from ..weights.effective import Weights
from ..weights.host import AttentionWeight, MLPWeight
from ..weights.parameter_names import Side

DirectionWeight = Literal[MLPWeight, AttentionWeight]
AnyWeight = Literal["W_OV", "W_QK", DirectionWeight]

TOKEN_COLUMNS = ("token_index", "token_string", "score")
Block = dict[str, Any]
"""Columns of consecutive rows of a table, as `frames.tidy` takes them."""


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


def token_bar(lens: BaseLens, description: str, n_searches: int) -> tqdm:
    """A progress bar over the tokens of several searches; shown in a terminal, removed when done."""
    total = n_searches * lens.space.n_tokens
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
    """The best k tokens of n vectors as n·k rows; `row` is the index of the vector."""
    n_done = 0

    def update(done: int, total: int) -> None:
        nonlocal n_done
        if bar is not None:
            bar.update(done - n_done)
        n_done = done

    scores, token_ids = lens.space.top(x, side, k, largest=largest, progress=update)
    return {
        "row": np.repeat(np.arange(len(x)), k),
        "rank": np.tile(np.arange(k), len(x)),
        "token_index": token_ids.flatten().numpy(),
        "score": scores.flatten(),
    }


def interleave(parts: list[Block], keys: Block, *sort_by: str) -> Iterator[Block]:
    """Blocks of several weights (or sides) as one block, sorted by the columns `sort_by`, then by block, then by rank."""
    if not parts or not len(parts[0]["rank"]):
        return
    joined = {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}
    part_index = np.concatenate([np.full(len(part["rank"]), i) for i, part in enumerate(parts)])
    order = np.lexsort((joined["rank"], part_index, *(joined[name] for name in reversed(sort_by))))
    yield {name: values[order] for name, values in joined.items()} | keys
