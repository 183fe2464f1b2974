"""Hidden states of texts, batch by batch."""

import os
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from ..weights.configuration import device_of, model_name
from ..weights.hook_points import state_hook
from .batches import Overflow, TokenBatch, token_batches
from .runs import chosen_layers, collect_activations
from .state_cache import StateCache
from .texts import TextSource, texts_of


@dataclass(frozen=True)
class HiddenStates:
    """Hidden states of a batch, one token per row; without padding and special tokens.

    Attributes:
        example: The index of the token's text.
        pos: The token's position in the run, special tokens included.
        token_index: The token's id.
        states: The hidden states by layer.
    """

    example: Int[Tensor, " n"]
    pos: Int[Tensor, " n"]
    token_index: Int[Tensor, " n"]
    states: dict[int, Float[Tensor, "n d_model"]]


@torch.no_grad()
def hidden_states(
    model: Any,
    texts: TextSource,
    layers: int | Iterable[int] | None = None,
    *,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
    overflow: Overflow = "cut",
    column: str = "text",
    shards: str | os.PathLike[str] | None = None,
) -> Iterator[HiddenStates]:
    """Compute the hidden states of texts batch by batch, in bounded memory.

    Args:
        model: A TransformerLens model with a tokenizer.
        texts: A list, any iterable, a dataframe, a Hugging Face dataset, or a file; texts are read when they are needed.
        layers: The blocks after which states are taken; −1 is the embedding. All of them, and the embedding, by default.
        batch_tokens: The approximate number of tokens per batch.
        max_tokens: The largest number of tokens of a row; the context length by default.
        overflow: What happens to longer texts: `"cut"` or `"split"`, as in `token_batches`.
        column: The column that holds the texts, for a table or dataset.
        shards: A folder for the states, with one safetensors file per batch. States that are already
            in the folder are read and not computed again, so that an interrupted run can be resumed.

    Returns:
        One `HiddenStates` per batch. Texts of similar length share a batch, so the examples are not in order.

    Raises:
        EmbspaceError: If there is no such layer or no tokenizer, or the folder holds states of other texts or another model.

    Example:
        >>> [batch.states[0].shape[0] for batch in hidden_states(model, ["one two"], layers=[0])]
        [2]
    """
    source = texts_of(texts, column=column)
    batches = token_batches(model, source, batch_tokens=batch_tokens, max_tokens=max_tokens, overflow=overflow)
    compute = kept_states(model, layers, shards) if shards is not None else None
    n_texts = len(source) if isinstance(source, Sized) else None
    with tqdm(total=n_texts, desc="hidden states", unit="text", disable=None, leave=False) as bar:
        for index, batch in enumerate(batches):
            yield states_of(model, batch, layers) if compute is None else compute(index, batch)
            bar.update(int((batch.start == 0).sum()))


def weights_key(model: Any) -> str:
    """A digest of the model's name and of the first entries of each parameter, which differs between models."""
    entries = [parameter.flatten()[:1024].float().cpu().tolist() for parameter in model.parameters()]
    return sha256(repr((model_name(model), entries)).encode()).hexdigest()


def kept_states(
    model: Any, layers: int | Iterable[int] | None, folder: str | os.PathLike[str]
) -> Callable[[int, TokenBatch], HiddenStates]:
    """A function of a batch's index and the batch, which reads its hidden states from a folder or computes and stores them."""
    chosen = chosen_layers(model, layers)
    cache = StateCache(folder, f"{weights_key(model)}, layers {chosen}")

    def get(index: int, batch: TokenBatch) -> HiddenStates:
        tensors = cache.get(index, batch.tokens)
        if tensors is not None:
            return HiddenStates(**token_columns(batch), states={layer: tensors[str(layer)] for layer in chosen})
        hidden = states_of(model, batch, chosen)
        cache.put(index, batch.tokens, {str(layer): states for layer, states in hidden.states.items()})
        return hidden

    return get


@torch.no_grad()
def states_of(model: Any, batch: TokenBatch, layers: int | Iterable[int] | None = None) -> HiddenStates:
    """The hidden states of one batch; see `hidden_states`."""
    hooks = {layer: state_hook(model, layer) for layer in chosen_layers(model, layers)}
    activations = collect_activations(model, batch, list(hooks.values()))
    mask = batch.mask.to(device_of(model))
    return HiddenStates(
        **token_columns(batch), states={layer: activations[hook][mask] for layer, hook in hooks.items()}
    )


def token_columns(batch: TokenBatch) -> dict[str, Any]:
    """The text, position and id of each token of the texts, in the order of the states."""
    return {
        "example": batch.example[batch.mask.nonzero()[:, 0]],
        "pos": batch.pos[batch.mask],
        "token_index": batch.tokens[batch.mask],
    }
