"""Hook points: the names at which a forward pass exposes the residual stream, neurons and heads.

Some hook points of TransformerLens never fire, or an edit of them has no effect. They are listed here.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import errors
from .configuration import n_layers
from .effective import Weights
from .experts import NO_EXPERT

SUBHEAD_HOOKS = {"W_Q": "hook_q", "W_K": "hook_k", "W_V": "hook_v", "W_O": "hook_z"}
# In these architectures the hook point of the residual stream after the last block does not fire.
NO_RESID_POST = {"OpenAIGPTLMHeadModel"}


def state_hook(model: Any, layer: int) -> str:
    """The hook point of the residual stream after a block; −1 is the embedding.

    For all but the last block, this is `hook_resid_pre` of the next block, so that the forward pass can stop there.

    Raises:
        EmbspaceError: If the model has no such block.
    """
    last = n_layers(model) - 1
    if not -1 <= layer <= last:
        raise errors.out_of_range("layer", layer, "the model", last + 1, "layers")
    return f"blocks.{layer + 1}.hook_resid_pre" if layer < last else f"blocks.{layer}.hook_resid_post"


def head_hook(weights: Weights, layer: int, weight: str = "W_O") -> str:
    """The hook point of a block's queries, keys, values or head outputs z.

    Raises:
        EmbspaceError: If the model has no such block, or the block has no attention that can be read.
    """
    hook = f"blocks.{layer}.attn.{SUBHEAD_HOOKS[weight]}"
    weights.W_O(layer)  # attention that cannot be read has other shapes at its hook points
    if weights.host.has_latent_attention:
        raise errors.latent_hooks(hook, weights.name)
    if weights.host.splits_falcon_incorrectly:
        raise errors.falcon_hooks(hook, weights.name)
    return _existing(weights, hook)


def pattern_hook(weights: Weights, layer: int) -> str:
    """The hook point of a block's attention, `[batch, head, query, key]`.

    Raises:
        EmbspaceError: If the model has no such block, or the block has no attention that can be read.
    """
    weights.W_O(layer)
    if weights.host.splits_falcon_incorrectly:
        raise errors.falcon_hooks(f"blocks.{layer}.attn.hook_pattern", weights.name)
    return _existing(weights, f"blocks.{layer}.attn.hook_pattern")


def neuron_hook(weights: Weights, layer: int, expert: int = NO_EXPERT) -> str:
    """The hook point of the activations of a block's neurons.

    Raises:
        EmbspaceError: If the model has no such block, or its mixture of experts has no hook point for neurons.
    """
    if weights.experts(layer) == [NO_EXPERT]:
        return _existing(weights, f"blocks.{layer}.mlp.hook_post")
    # The experts of a HookedTransformer are modules with hook points. The mixture of a bridge is one module, and its
    # hook_post holds the MLP's output.
    hook = f"blocks.{layer}.mlp.experts.{expert}.hook_post"
    if not has_hook(weights.model, hook):
        raise errors.no_neuron_hook(weights.name, layer)
    return hook


def preactivation_hook(weights: Weights, layer: int, weight: str) -> str:
    """The hook point of what a block's neurons read through W_in or W_gate, before the activation function.

    Raises:
        EmbspaceError: If the model has no such block or hook point.
    """
    linear = weight == "W_in" and weights.is_gated(layer)
    return _existing(weights, f"blocks.{layer}.mlp.hook_pre{'_linear' if linear else ''}")


def mlp_input_hook(weights: Weights, layer: int, weight: str) -> tuple[str, Callable[[Tensor], Tensor]]:
    """A hook point before the MLP, and the function of its value that the block's effective W_in or W_gate reads.

    Raises:
        EmbspaceError: If the model has no such block or hook point.
    """
    norm = weights.norm(weight, layer)
    if not norm.name:
        return _existing(weights, f"blocks.{layer}.mlp.hook_in"), lambda value: value
    hook = _existing(weights, f"blocks.{layer}.{norm.name}.hook_normalized")  # before gain and bias

    def stored_input(value: Tensor) -> Tensor:
        value = value if norm.gain is None else value * norm.gain
        return value if norm.bias is None else value + norm.bias

    return hook, (lambda value: value) if weights.fold_ln else stored_input


def stream_hook(weights: Weights, layer: int, hook: str = "hook_resid_post") -> str:
    """The hook point of the residual stream, or of a sublayer's output, at which an edit takes full effect.

    Args:
        weights: The model's weights.
        layer: The block; −1 is the embedding for `hook_resid_post`.
        hook: The hook point's name within a block.

    Raises:
        EmbspaceError: If the model has no such block or hook point, or edits of it have no effect.
    """
    if hook == "hook_resid_mid" and weights.host.is_bridge:
        raise errors.resid_mid_of_bridge()
    if hook == "hook_resid_post":
        name = state_hook(weights.model, layer)
        if name.endswith("hook_resid_post") and weights.host.architecture in NO_RESID_POST:
            raise errors.no_resid_post(weights.name, layer)
    else:
        if not 0 <= layer < weights.n_layers:
            raise errors.out_of_range("layer", layer, weights.name, weights.n_layers, "layers")
        if hook in ("hook_attn_out", "hook_resid_mid"):
            weights.select_layers([layer], "attn")
        name = f"blocks.{layer}.{hook}"
    return _existing(weights, name)


def has_hook(model: Any, hook: str) -> bool:
    """Whether the model has a hook point of this name."""
    return hook in model.hook_dict


def _existing(weights: Weights, hook: str) -> str:
    if not has_hook(weights.model, hook):
        raise errors.no_hook(weights.name, hook)
    return hook
