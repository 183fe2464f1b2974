"""The final norm of a model, applied to residual vectors: one module is called, and no forward pass is run."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..checkpoints.lazy_tensor import materialized
from ..search.tiles import upcast
from .effective import Weights


@torch.no_grad()
def apply_final_norm(weights: Weights, x: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n d_model"]:
    r"""Normalise residual vectors as the model does before the unembedding, with the gain and the bias.

    .. math:: \mathrm{LN}_f(x) = \frac{x - \bar x}{\sqrt{\operatorname{var}(x) + \epsilon}} \odot \gamma + \beta

    Args:
        weights: The model's weights.
        x: Residual vectors.

    Returns:
        The normalised vectors, in float32 at least; x itself for a model without a final norm.
    """
    host = weights.host
    name = host.final_norm.name
    if not name:
        return x
    norm: Any = host.model._modules[name]
    with materialized(norm):
        parameter = next(norm.parameters(), x)
        state = x.reshape(1, -1, x.shape[-1]).to(parameter.device, parameter.dtype)
        return upcast(norm(state).reshape(x.shape))
