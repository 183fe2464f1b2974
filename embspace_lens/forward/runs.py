"""Forward passes over a batch: activations at hook points, residual states, logits."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import EmbspaceError
from ..weights.configuration import device_of, is_causal, n_layers
from ..weights.hook_points import state_hook
from .batches import TokenBatch


class StopForward(Exception):
    """Stops the forward pass once all requested hooks have fired."""


def chosen_layers(model: Any, layers: int | Iterable[int] | None) -> list[int]:
    """The layers asked for, each once, as numbers; by default −1, the embedding, and all blocks.

    Raises:
        EmbspaceError: If none are asked for.
    """
    if layers is None:
        return list(range(-1, n_layers(model)))
    chosen = list(dict.fromkeys(int(layer) for layer in ([layers] if isinstance(layers, int) else layers)))
    if not chosen:
        raise EmbspaceError("layers names no layer. Leave it out for all of them.")
    return chosen


def collect_activations(
    model: Any,
    batch: TokenBatch,
    names: Sequence[str],
    *,
    hooks: Sequence[tuple[str, Callable[..., Any]]] = (),
) -> dict[str, Tensor]:
    """Run the model as far as the last of the named hook points, and return what passed there.

    Args:
        model: A TransformerLens model.
        batch: Tokens.
        names: Hook points in TransformerLens's words, such as `blocks.0.mlp.hook_post`.
        hooks: Interventions, as `run_with_hooks` takes them; what is returned is as they leave it.

    Raises:
        EmbspaceError: If a hook point does not exist, or nothing passed it.
    """
    batch = batch.to(device_of(model))
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(value: Tensor, hook: Any) -> None:
            found[name] = value
            if len(found) == len(wanted):
                raise StopForward

        return hook

    wanted = list(dict.fromkeys(names))
    # A model that looks both ways must not see the padding; behind a causal one's tokens it makes no difference.
    mask = torch.arange(batch.tokens.shape[1], device=batch.tokens.device) < batch.length[:, None]
    arguments: Mapping[str, Any] = {} if is_causal(model) else {"attention_mask": mask.long()}
    try:
        model.run_with_hooks(batch.tokens, fwd_hooks=[*hooks, *((name, keep(name)) for name in wanted)], **arguments)
    except StopForward:
        pass  # all that was wanted is there
    except KeyError as reason:
        raise EmbspaceError(f"The model has no such hook point: {reason}") from reason
    missing = [name for name in wanted if name not in found]
    if missing:
        raise EmbspaceError(f"Nothing passed {', '.join(missing)}: this architecture does not use that hook point.")
    return found


def residual(model: Any, batch: TokenBatch, layer: int) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream after a block; −1 is before the first one."""
    name = state_hook(model, layer)
    return collect_activations(model, batch, [name])[name]


def resume(
    model: Any,
    batch: TokenBatch,
    state: Float[Tensor, "batch pos d_model"],
    layer: int,
    *,
    names: Sequence[str] = (),
    hooks: Sequence[tuple[str, Callable[..., Any]]] = (),
) -> tuple[Float[Tensor, "batch pos d_model"], dict[str, Tensor]]:
    """Go on from a given state at the entrance of block `layer` to the end of the last one.

    The blocks before it run on the tokens, for positions and masks are theirs to set up, and what they computed is dropped.

    Returns:
        The residual stream after the last block, and what passed the named hook points.
    """
    last = state_hook(model, n_layers(model) - 1)
    entrance = (f"blocks.{layer}.hook_resid_pre", lambda value, hook: state.to(value))
    found = collect_activations(model, batch, [*names, last], hooks=[entrance, *hooks])
    return found[last], found


def logits(
    model: Any, batch: TokenBatch, *, hooks: Sequence[tuple[str, Callable[..., Any]]] = ()
) -> Float[Tensor, "batch pos d_vocab"]:
    """Run the whole model, with interventions if there are any, to its predictions of every position."""
    batch = batch.to(device_of(model))
    mask = torch.arange(batch.tokens.shape[1], device=batch.tokens.device) < batch.length[:, None]
    arguments: Mapping[str, Any] = {} if is_causal(model) else {"attention_mask": mask.long()}
    return model.run_with_hooks(batch.tokens, fwd_hooks=list(hooks), **arguments)
