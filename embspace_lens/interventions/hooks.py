"""Hooks for forward passes that ablate, scale or steer the components of a table."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from .. import errors
from ..space.embeddings import as_tensor
from ..tables.checks import check_choice, check_integer, check_number
from ..weights.effective import Weights
from ..weights.hook_points import stream_hook
from .components import parse_components, table_keys
from .feature_targets import Encoder, FeatureTarget
from .targets import Target, hook_targets

AblationMode = Literal["zero", "mean"]
MODES: tuple[AblationMode, ...] = ("zero", "mean")
StreamHook = Literal["hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out"]
STREAM_HOOKS: tuple[StreamHook, ...] = (
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
)
Hook = tuple[str, Callable[..., Any]]
"""A hook point and a function, as `run_with_hooks` takes them in `fwd_hooks`."""


def ablation_hooks(
    df: pd.DataFrame, mode: Any = "zero", *, model: Any, vectors: Any = None, positions: Any = None
) -> list[Hook]:
    r"""Ablate the components of a table in forward passes of the model.

    The activation :math:`a` of a component is replaced. It is a neuron's activation after the activation function, a head's z,
    a sub-head's entry of q, k, v or z, or a direction's coordinate of the residual stream after the block:

    .. math:: a \leftarrow 0, \qquad a \leftarrow \bar a, \qquad a \leftarrow \text{a given value}

    Args:
        df: Any table with `layer` and `neuron`, `head`, `head` and `subhead` (with `weight`), `direction` or `factor`. Repeated
            components count once.
        mode: `"zero"`; `"mean"`, over all positions of all examples of the same forward pass; or a tensor of values. Its shape
            is `[n_components]` (`[n_components, d_head]` for heads), in the sorted order of the components' keys, with optional
            leading dimensions for batch and position; or a single number. `activations` gives means over a corpus.
        model: The TransformerBridge or HookedTransformer that will run.
        vectors: For directions and factors: a mapping from their names to vectors, or a tensor with one row per factor. Or a
            dictionary of features (`Features`): the components are then the features in the column `feature_index`, and their
            activations are its codes. An edit adds the change of a code times the decoder row where the decoder writes.
        positions: Where to intervene, counted from 0 (from the end if negative); everywhere by default.

    Returns:
        Pairs of hook point and function, for `model.run_with_hooks(tokens, fwd_hooks=…)`. The model itself is not changed.

    Raises:
        EmbspaceError: If the table names no component of this model, if the model has no hook point at which an edit of a
            component takes effect (neurons in a mixture of experts of a bridge), or if the values have another shape.

    Example:
        >>> hooks = ablation_hooks(lens.neurons(layer=0, neuron=[3, 5]), model=model)
        >>> [name for name, _ in hooks]
        ['blocks.0.mlp.hook_post']

    References:
        Wang et al. (2023), Interpretability in the Wild, §2.2 (mean ablation). https://arxiv.org/abs/2211.00593
    """
    values = None
    if isinstance(mode, str):
        check_choice("mode", mode, MODES)
    else:
        values = as_tensor(mode, "mode")

    def edit(target: Target, value: Tensor) -> Tensor:
        activations = target.read(value)
        if values is not None:
            if values.ndim and target.shares_values(value):
                raise errors.shared_heads(target.hook)
            new = _values_of(values, target).to(activations)
            try:
                return new.expand_as(activations)
            except RuntimeError as reason:
                raise errors.mode_does_not_fit(tuple(new.shape), tuple(activations.shape), target.hook) from reason
        if mode == "zero":
            return torch.zeros_like(activations)
        leading = tuple(range(activations.ndim - (2 if target.kind == "head" else 1)))
        return activations.mean(dim=leading, keepdim=True).expand_as(activations)

    targets = _targets(model, df, vectors)
    if values is not None:
        _check_values(values, targets)
    return [hook for target in targets for hook in _hooks(target, edit, positions)]


def scaling_hooks(
    df: pd.DataFrame, factor: float, *, model: Any, vectors: Any = None, positions: Any = None
) -> list[Hook]:
    r"""Multiply the activations of the components of a table by a factor.

    .. math:: a \leftarrow c\, a

    Args:
        df: As for `ablation_hooks`.
        factor: c; 1 changes nothing, 0 is zero ablation, −1 reverses the sign.
        model: The model that will run.
        vectors: As for `ablation_hooks`.
        positions: As for `ablation_hooks`.

    Returns:
        Pairs of hook point and function, for `model.run_with_hooks(tokens, fwd_hooks=…)`.

    Raises:
        EmbspaceError: As `ablation_hooks`; or if the factor is not a finite number.

    Example:
        >>> hooks = scaling_hooks(lens.ov(layer=1, head=2, k=1), 0.5, model=model)
        >>> [name for name, _ in hooks]
        ['blocks.1.attn.hook_z']
    """
    scale = check_number("factor", factor)

    def edit(target: Target, value: Tensor) -> Tensor:
        return target.read(value) * scale

    return [hook for target in _targets(model, df, vectors) for hook in _hooks(target, edit, positions)]


def steering_hooks(
    vectors: Any,
    layer: int | Sequence[int],
    *,
    model: Any,
    scale: float = 1.0,
    hook: StreamHook = "hook_resid_post",
    positions: Any = None,
) -> list[Hook]:
    r"""Add vectors to the residual stream.

    .. math:: x_\mathrm{layer} \leftarrow x_\mathrm{layer} + c\, v

    Args:
        vectors: `[d_model]`, added at each of the layers; or `[n_layers, d_model]`, one per layer. Examples are rows of
            `weights.W_out(layer)`, of an SAE's decoder, of `Factors.directions`, or a difference of means.
        layer: After which blocks; −1 is the embedding.
        model: The model that will run.
        scale: c.
        hook: `"hook_resid_post"`, the residual stream after the block; or `"hook_resid_pre"`, `"hook_resid_mid"`,
            `"hook_attn_out"` or `"hook_mlp_out"` of the block.
        positions: As for `ablation_hooks`.

    Returns:
        Pairs of hook point and function, for `model.run_with_hooks(tokens, fwd_hooks=…)`.

    Raises:
        EmbspaceError: If vectors or layers have wrong shapes or values, or if the model discards edits at the hook point: an
            edit of a TransformerBridge's `"hook_resid_mid"` reaches only the MLP.

    Example:
        >>> hooks = steering_hooks(lens.weights.W_out(0)[3], 0, model=model, scale=4)
        >>> [name for name, _ in hooks]
        ['blocks.1.hook_resid_pre']

    References:
        Turner et al. (2023), Steering Language Models With Activation Engineering. https://arxiv.org/abs/2308.10248
    """
    hook = check_choice("hook", hook, STREAM_HOOKS)
    weights = Weights(model)
    layers = _layer_list(layer)
    added = as_tensor(vectors, "vectors") * check_number("scale", scale)
    added = added.expand(len(layers), -1) if added.ndim == 1 else added
    if added.ndim != 2 or len(added) != len(layers):
        raise errors.not_one_vector_per_layer(tuple(added.shape), len(layers))
    if added.shape[1] != weights.d_model:
        raise errors.bad_width(added.shape[1], weights.name, weights.d_model)
    if not torch.isfinite(added).all():
        raise errors.not_finite("the vectors given")

    def add(vector: Tensor) -> Callable[..., Tensor]:
        return lambda value, hook: _at_positions(positions, value, value + vector.to(value))

    return [(stream_hook(weights, index, hook), add(vector)) for index, vector in zip(layers, added, strict=True)]


def _targets(model: Any, df: pd.DataFrame, vectors: Any) -> list[Target]:
    keys = table_keys(df, of_features=isinstance(vectors, Encoder))
    return hook_targets(model, dict.fromkeys(parse_components(keys)), vectors)


def _hooks(target: Target, edit: Callable[[Target, Tensor], Tensor], positions: Any) -> list[Hook]:
    """Hooks that replace the activations of the target's components by what `edit` returns."""

    def hook(value: Tensor, hook: Any) -> Tensor:
        return _at_positions(positions, value, target.write(value, edit(target, value)))

    edited = (target.hook, hook)
    if isinstance(target, FeatureTarget) and target.source_hook != target.hook:
        return [(target.source_hook, target.capture), edited]
    return [edited]


def _at_positions(positions: Any, value: Tensor, edited: Tensor) -> Tensor:
    """The edited value at the positions, the original value elsewhere."""
    if positions is None:
        return edited
    if value.ndim < 3:
        raise errors.positions_in_expert()
    n_tokens = value.shape[1]
    is_edited = torch.zeros(n_tokens, dtype=torch.bool, device=value.device)
    try:
        is_edited[positions if isinstance(positions, slice) else torch.as_tensor(positions).reshape(-1)] = True
    except (IndexError, TypeError, ValueError, RuntimeError) as reason:
        raise errors.bad_positions(positions, n_tokens) from reason
    return torch.where(is_edited.view(1, -1, *[1] * (value.ndim - 2)), edited, value)


def _check_values(values: Tensor, targets: list[Target]) -> None:
    """Raise if the values are not finite, or not one per component."""
    if not torch.isfinite(values).all():
        raise errors.not_finite("the values given as mode")
    if values.ndim == 0:
        return
    n_components = sum(len(target.component_indices) for target in targets)
    are_heads = {target.kind == "head" for target in targets}
    axis = _component_axis(are_heads == {True})
    if len(are_heads) > 1 or values.ndim < -axis or values.shape[axis] != n_components:
        raise errors.bad_mode_shape(tuple(values.shape), n_components, are_heads == {True})


def _values_of(values: Tensor, target: Target) -> Tensor:
    """The values of one target's components."""
    if values.ndim == 0:
        return values
    return values.index_select(_component_axis(target.kind == "head"), torch.tensor(target.component_indices))


def _component_axis(are_heads: bool) -> int:
    """The dimension of `mode` that counts components; for heads, d_head is the next dimension."""
    return -2 if are_heads else -1


def _layer_list(layer: Any) -> list[int]:
    """One layer or several as a list of integers."""
    layers = layer.tolist() if hasattr(layer, "tolist") else layer  # tensors, arrays and their scalars
    layers = list(layers) if isinstance(layers, Iterable) and not isinstance(layers, str) else [layers]
    return [check_integer("layer", index, minimum=-1) for index in layers]
