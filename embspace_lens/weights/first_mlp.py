"""The output of the first MLP: one module of the model is called, and no forward pass is run."""

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import errors
from ..checkpoints.lazy_tensor import materialized
from ..search.tiles import upcast
from .architectures import ADDS_RESIDUAL
from .effective import Weights
from .host import Host
from .modules import unwrap


@torch.no_grad()
def first_mlp_output(weights: Weights, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    r"""Apply the first block's MLP to residual vectors, with the norms around it.

    .. math:: x' = \mathrm{MLP}_0(\mathrm{LN}_2(x))

    The first MLP enriches token embeddings: x' is closer than the embedding to what later heads read at that token.

    Args:
        weights: The model's weights.
        x: Residual vectors, usually token embeddings.

    Returns:
        What the MLP adds to the residual stream for each vector, in float32 at least.

    Raises:
        EmbspaceError: If the first block has no MLP that can be called by itself.

    References:
        Elhelo & Geva (2025), Inferring Functionality of Attention Heads from their Parameters, §3.1. https://arxiv.org/abs/2412.11965
    """
    host = weights.host
    mlp: Any = host.blocks[0].mlp if host.blocks else None
    if mlp is None:
        raise errors.no_first_mlp(host.name)
    block = cast(Any, host.model.blocks)[0]
    stored_mlp = mlp
    before, after = _norm_modules(host, block._modules)
    if host.is_bridge and unwrap(mlp) is unwrap(block):
        # OPT and XGLM have no module for the MLP. The bridge's module holds its two layers, and cannot be called.
        mlp = _compose_layers(host, mlp, unwrap(block))
    with materialized(stored_mlp), materialized(before), materialized(after):
        parameter = next(stored_mlp.parameters())
        state = before(x[None].to(parameter.device, parameter.dtype))
        output = mlp(state, torch.zeros_like(state)) if host.architecture in ADDS_RESIDUAL else mlp(state)
        output = output[0] if isinstance(output, tuple) else output  # gpt-oss also returns the router's scores
        return upcast(after(output).reshape(x.shape).to(x.device))


def _norm_modules(host: Host, modules: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """The norm before the MLP and the norm after it, as modules."""
    block = host.blocks[0]
    # In a post-norm block, ln1 normalizes the residual stream itself, and the MLP reads the result.
    before = "ln1" if host.is_post_norm else block.before_mlp.name
    after = block.after_mlp.name
    if after and after not in modules:
        after = after.removesuffix("_post")  # its name in TransformerLens 3.9
    identity = nn.Identity()
    return modules[before] if before else identity, modules[after] if after else identity


def _compose_layers(host: Host, mlp: Any, block: Any) -> Callable[[Tensor], Tensor]:
    """The MLP as a function, from its two layers and the block's activation function."""
    activation = getattr(block, "activation_fn", None)
    if activation is None:
        raise errors.first_mlp_not_callable(host.name)
    return lambda x: mlp._modules["out"](activation(mlp._modules["in"](x)))
