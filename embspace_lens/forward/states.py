"""Hidden states of texts, streamed batch by batch."""

import os
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from ..weights.configuration import device_of
from ..weights.hook_points import state_hook
from .batches import TokenBatch, token_batches
from .runs import chosen_layers, collect_activations
from .state_cache import Shards
from .texts import texts_of


@dataclass(frozen=True)
class HiddenStates:
    """Hidden states of a batch's own tokens, flat: row i of every tensor is one token.

    Attributes:
        example: Which text it is in.
        pos: Its place there, in tokens.
        token_index: Its vocabulary id.
        states: By layer, `[n, d_model]`.
    """

    example: Int[Tensor, " n"]
    pos: Int[Tensor, " n"]
    token_index: Int[Tensor, " n"]
    states: dict[int, Float[Tensor, "n d_model"]]


@torch.no_grad()
def hidden_states(
    model: Any,
    texts: Any,
    layers: Sequence[int] | None = None,
    *,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
    overflow: str = "cut",
    column: str = "text",
    shards: str | os.PathLike[str] | None = None,
) -> Iterator[HiddenStates]:
    """Stream the hidden states of texts: of their own tokens alone, batch by batch, in bounded memory.

    Args:
        model: A TransformerLens model with a tokenizer.
        texts: A list, any iterable, a Hugging Face dataset, or a file; read as it is needed.
        layers: After which blocks; −1 is the embedding. All of them, and the embedding, by default.
        batch_tokens: About how many tokens run at once.
        max_tokens: The longest row; the model's context by default.
        overflow: As for `token_batches`.
        column: The column of texts, of a table or dataset.
        shards: A folder in which they are kept, one safetensors file a batch. What is there already, of a run that was stopped or that
            is read again, is not computed a second time.

    Returns:
        One `HiddenStates` a batch. Texts of similar length run together, so examples come in no particular order.

    Raises:
        EmbspaceError: If there is no such layer, no tokenizer, or the folder holds the states of other texts or another model.

    Example:
        >>> [h.states[0].shape[0] for h in hidden_states(model, ["one two"], layers=[0])]
        [2]
    """
    found = texts_of(texts, column=column)
    batches = token_batches(model, found, batch_tokens=batch_tokens, max_tokens=max_tokens, overflow=overflow)
    kept = None if shards is None else kept_states(model, layers, shards)
    total = len(found) if isinstance(found, Sized) else None
    with tqdm(total=total, desc="hidden states", unit="text", disable=None, leave=False) as bar:
        for number, batch in enumerate(batches):
            yield states_of(model, batch, layers) if kept is None else kept(number, batch)
            bar.update(int((batch.start == 0).sum()))


def weights_key(model: Any) -> str:
    """What tells a model from another of the same name: a digest of the first entries of each of its parameters."""
    entries = [parameter.flatten()[:1024].float().cpu().tolist() for parameter in model.parameters()]
    return sha256(repr((str(getattr(model.cfg, "model_name", "")), entries)).encode()).hexdigest()


def kept_states(
    model: Any, layers: Sequence[int] | None, folder: str | os.PathLike[str]
) -> Callable[[int, TokenBatch], HiddenStates]:
    """A function of a batch and its number: its hidden states, from a folder if they are there, else computed and put there."""
    chosen = chosen_layers(model, layers)
    shards = Shards(folder, f"{weights_key(model)}, layers {chosen}")

    def get(number: int, batch: TokenBatch) -> HiddenStates:
        found = shards.get(number, batch.tokens)
        if found is not None:
            example, pos, token_index = (found.pop(name) for name in ("example", "pos", "token_index"))
            return HiddenStates(example, pos, token_index, {int(layer): states for layer, states in found.items()})
        part = states_of(model, batch, chosen)
        known = {"example": part.example, "pos": part.pos, "token_index": part.token_index}
        shards.put(number, batch.tokens, known | {str(layer): states for layer, states in part.states.items()})
        return part

    return get


@torch.no_grad()
def states_of(model: Any, batch: TokenBatch, layers: Sequence[int] | None = None) -> HiddenStates:
    """The hidden states of one batch, as `hidden_states` streams them."""
    chosen = chosen_layers(model, layers)
    name_of = {layer: state_hook(model, layer) for layer in chosen}
    found = collect_activations(model, batch, list(name_of.values()))
    own = batch.mask.to(device_of(model))
    return HiddenStates(
        example=batch.example[batch.mask.nonzero()[:, 0]],
        pos=batch.own_pos[batch.mask],
        token_index=batch.tokens[batch.mask],
        states={layer: found[name][own] for layer, name in name_of.items()},
    )
