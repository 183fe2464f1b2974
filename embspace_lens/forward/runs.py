"""Forward passes over a batch: activations at hook points, the residual stream, logits."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .. import errors
from ..weights.configuration import device_of, is_causal, n_layers
from ..weights.hook_points import state_hook
from .batches import TokenBatch

Hook = tuple[str, Callable[..., Any]]
"""A hook point and a function of its value, as `run_with_hooks` takes them."""


class StopForward(Exception):
    """Stops the forward pass once all requested hooks have fired."""


def chosen_layers(model: Any, layers: int | Iterable[int] | None) -> list[int]:
    """The selected layers without repeats; by default −1, the embedding, and all blocks.

    Raises:
        EmbspaceError: If no layer is selected.
    """
    if layers is None:
        return list(range(-1, n_layers(model)))
    chosen = list(dict.fromkeys(int(layer) for layer in ([layers] if isinstance(layers, int) else layers)))
    if not chosen:
        raise errors.no_layers()
    return chosen


def collect_activations(
    model: Any, batch: TokenBatch, names: Sequence[str], *, hooks: Sequence[Hook] = ()
) -> dict[str, Tensor]:
    """Run the model up to the last of the named hook points, and return their activations.

    Args:
        model: A TransformerLens model.
        batch: The tokens.
        names: TransformerLens's names of hook points, such as `blocks.0.mlp.hook_post`.
        hooks: Interventions, as `run_with_hooks` takes them. They apply before the activations are taken.

    Raises:
        EmbspaceError: If a hook point does not exist, or did not fire.
    """
    requested = list(dict.fromkeys(names))
    activations: dict[str, Tensor] = {}

    def save_as(name: str) -> Callable[..., None]:
        def save(value: Tensor, hook: Any) -> None:
            activations[name] = value
            if len(activations) == len(requested):
                raise StopForward

        return save

    try:
        _run(model, batch, [*hooks, *((name, save_as(name)) for name in requested)])
    except StopForward:
        pass
    except KeyError as reason:
        raise errors.unknown_hook_point(reason) from reason
    missing = [name for name in requested if name not in activations]
    if missing:
        raise errors.hook_did_not_fire(missing)
    return activations


def residual(model: Any, batch: TokenBatch, layer: int) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream after a block; −1 is the embedding."""
    name = state_hook(model, layer)
    return collect_activations(model, batch, [name])[name]


def resume(
    model: Any,
    batch: TokenBatch,
    state: Float[Tensor, "batch pos d_model"],
    layer: int,
    *,
    names: Sequence[str] = (),
    hooks: Sequence[Hook] = (),
) -> tuple[Float[Tensor, "batch pos d_model"], dict[str, Tensor]]:
    """Run the blocks from `layer` on with `state` as their input residual stream.

    The earlier blocks run on the tokens, because TransformerLens computes positions and masks from them; their output is replaced.

    Returns:
        The residual stream after the last block, and the activations at the named hook points.
    """
    last = state_hook(model, n_layers(model) - 1)
    replace = (f"blocks.{layer}.hook_resid_pre", lambda value, hook: state.to(value))
    activations = collect_activations(model, batch, [*names, last], hooks=[replace, *hooks])
    return activations[last], activations


def logits(model: Any, batch: TokenBatch, *, hooks: Sequence[Hook] = ()) -> Float[Tensor, "batch pos d_vocab"]:
    """The logits of every position, with interventions if there are any."""
    return _run(model, batch, hooks)


def _run(model: Any, batch: TokenBatch, hooks: Sequence[Hook]) -> Any:
    batch = batch.to(device_of(model))
    # A bidirectional model must not attend to the padding. In a causal model no token can, because the padding is on the right.
    if is_causal(model):
        return model.run_with_hooks(batch.tokens, fwd_hooks=list(hooks))
    mask = torch.arange(batch.tokens.shape[1], device=batch.tokens.device) < batch.length[:, None]
    return model.run_with_hooks(batch.tokens, fwd_hooks=list(hooks), attention_mask=mask.long())
