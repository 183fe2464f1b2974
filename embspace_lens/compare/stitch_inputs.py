"""Inputs of stitched models: numbers of blocks, classification heads and rows of tokens."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from .. import errors
from ..forward.batches import TokenBatch
from ..forward.pooling import PooledHead
from ..lens import EmbeddingLens
from ..tables.checks import check_integer
from ..weights.configuration import context_length, d_vocab


def check_depth(name: str, value: Any, lens: EmbeddingLens) -> int:
    """How many blocks of a model run, from 0 to all.

    Raises:
        EmbspaceError: If it is out of range.
    """
    return check_integer(name, value, minimum=0, maximum=lens.weights.n_layers, count_of=f"layers of {lens.name}")


def check_head(head: Any, donor: EmbeddingLens) -> PooledHead:
    """A classification head of the donor's width.

    Raises:
        EmbspaceError: If it is not a `PooledHead`, or has another width.
    """
    if not isinstance(head, PooledHead):
        raise errors.not_pooled_head(head)
    if head.d_model != donor.weights.d_model:
        raise errors.bad_width(head.d_model, donor.name, donor.weights.d_model, "the head's directions")
    return head


def clamp_tokens(batch: TokenBatch, model: Any) -> TokenBatch:
    """A batch with the recipient's token ids clamped to the donor's vocabulary.

    The donor embeds these ids, but translated states replace everything that it computes from them.
    """
    return replace(batch, tokens=batch.tokens.clamp(max=d_vocab(model) - 1))


def longest_row(models: Iterable[Any], max_tokens: int | None) -> int | None:
    """The longest row of tokens that fits the context windows of all models, and `max_tokens`; None without a limit."""
    limits = [max_tokens, *map(context_length, models)]
    return min([limit for limit in limits if limit], default=None)
