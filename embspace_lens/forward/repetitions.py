"""Random sequences, repeated once: the batches on which induction is measured."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from .. import errors
from ..tables.checks import check_integer
from ..weights.configuration import context_length, is_causal, model_name, prepends_bos
from .batches import TokenBatch

MAX_LENGTH = 32  # the default length of a sequence in a model with a long context
MIN_LENGTH = 2


def random_sequences(
    model: Any, token_ids: Int[Tensor, " n"], n_sequences: int, length: int | None, seed: int
) -> Int[Tensor, "n_sequences length"]:
    """Sequences of distinct random tokens, none of which is special, short enough to be repeated in the context window.

    Args:
        model: A causal TransformerLens model.
        token_ids: The tokens to choose from.
        n_sequences: The number of sequences.
        length: Their length in tokens; by default the largest that fits, at most 32.
        seed: Seed of the choice.

    Raises:
        EmbspaceError: If the model is bidirectional, or the length is too large for it or for the number of tokens.
    """
    if not is_causal(model):
        raise errors.causal_needed(model_name(model))
    n_sequences = check_integer("n_sequences", n_sequences, minimum=2)
    special = torch.tensor(getattr(getattr(model, "tokenizer", None), "all_special_ids", []), dtype=torch.long)
    words = token_ids[~torch.isin(token_ids, special)]
    room = ((context_length(model) or 2 * MAX_LENGTH + 1) - len(_start(model))) // 2
    largest = min(room, len(words))
    if largest < MIN_LENGTH:
        raise errors.no_room_for_repetition(model_name(model), room, len(words))
    if length is None:
        length = min(largest, MAX_LENGTH)
    length = check_integer("length", length, minimum=MIN_LENGTH, maximum=largest)
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([words[torch.randperm(len(words), generator=generator)[:length]] for _ in range(n_sequences)])


def second_after_first(
    model: Any, first: Int[Tensor, "n_sequences length"], second: Int[Tensor, "n_sequences length"]
) -> TokenBatch:
    """A batch of texts with two halves, after the token that begins texts if the model has one."""
    start = torch.tensor(_start(model), dtype=torch.long).expand(len(first), -1)
    tokens = torch.cat([start, first, second], dim=1)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, : start.shape[1]] = False
    example = torch.arange(len(tokens))
    length = torch.full((len(tokens),), tokens.shape[1])
    return TokenBatch(example, torch.zeros_like(example), tokens, mask, length)


def rows_of(batch: TokenBatch, rows: slice) -> TokenBatch:
    """Some rows of a batch."""
    return TokenBatch(*(getattr(batch, name)[rows] for name in batch.__dataclass_fields__))


def _start(model: Any) -> list[int]:
    """The id of the token that TransformerLens prepends to texts, if any."""
    bos = getattr(getattr(model, "tokenizer", None), "bos_token_id", None)
    return [bos] if bos is not None and prepends_bos(model) else []
