"""What a token looks like behind the first MLP: one module of the host is called, the model is not run."""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import EmbspaceError
from ..search.tiles import upcast
from .effective import Weights
from .host import Host
from .modules import unwrap


@torch.no_grad()
def first_mlp_output(weights: Weights, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    r"""Send residual vectors through the first block's MLP, with the norms around it.

    .. math:: x' = \mathrm{MLP}_0(\mathrm{LN}_2(x))

    Early MLPs enrich embeddings: what later heads see of a token is closer to x' than to its embedding.

    Args:
        weights: The model's weights.
        x: Residual vectors, token embeddings as a rule.

    Returns:
        What the MLP adds to the stream for each of them, in float32 at least.

    Raises:
        EmbspaceError: If the first block has no MLP that can be called alone.

    References:
        Elhelo & Geva (2025), Inferring Functionality of Attention Heads from their Parameters, §3.1. https://arxiv.org/abs/2412.11965
    """
    host = weights.host
    call: Any = host.blocks[0].mlp if host.blocks else None
    if call is None:
        raise EmbspaceError(f"{host.name} has no MLP in its first block. Give first_mlp=False.")
    block = cast(Any, host.model.blocks)[0]
    parameter = next(call.parameters())
    before, after = _norms(host, block._modules)
    if host.is_bridge and unwrap(call) is unwrap(block):
        # OPT and XGLM have no module for their MLP: the bridge's names its two layers, and is never called.
        call = _layers(host, call, unwrap(block))
    state = before(x[None].to(parameter.device, parameter.dtype))
    # Bloom and MPT add the residual stream inside; gpt-oss returns its router's scores as well.
    adds = host.architecture in ("BloomForCausalLM", "MptForCausalLM", "MPTForCausalLM")
    out = call(state, torch.zeros_like(state)) if adds else call(state)
    out = after(out[0] if isinstance(out, tuple) else out).reshape(x.shape).to(x.device)
    return upcast(out)


def _norms(host: Host, modules: Any) -> tuple[Any, Any]:
    """The norm in front of the MLP and the one between it and the stream, as modules."""
    block = host.blocks[0]
    # Behind a post-norm sublayer the stream itself is normalised, and the MLP reads that.
    before = "ln1" if host.is_post_norm else block.before_mlp.name
    after = block.after_mlp.name
    if after and after not in modules:
        after = after.removesuffix("_post")  # what TransformerLens 3.9 calls it
    nothing = torch.nn.Identity()
    return modules[before] if before else nothing, modules[after] if after else nothing


def _layers(host: Host, mlp: Any, layer: Any) -> Any:
    activation = getattr(layer, "activation_fn", None)
    if activation is None:
        raise EmbspaceError(f"{host.name}'s first MLP cannot be called alone. Give first_mlp=False.")
    return lambda x: mlp._modules["out"](activation(mlp._modules["in"](x)))
