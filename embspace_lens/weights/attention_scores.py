"""What stands between W_QK and attention scores: norms, biases, the scale, and which positions a query sees."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .configuration import is_causal
from .effective import Weights


def attention_scale(weights: Weights, layer: int, d_head: int) -> float:
    """The factor by which products of queries and keys are multiplied before the softmax."""
    return weights.host.attention_scale(layer, d_head)


def attention_bias(weights: Weights, layer: int, head: int, name: str) -> Float[Tensor, "*d_head"]:
    """What a head adds to its queries (`"b_Q"`) or keys (`"b_K"`), the norm's bias included; 0 for nothing."""
    bias = weights.host.attention_bias(weights.host.blocks[layer], name)
    return torch.zeros(()) if bias is None else bias[head // (weights.n_heads // len(bias))]


def visible(weights: Weights, layer: int, dest: Int[Tensor, "*dims"], src: Int[Tensor, "*src"]) -> Bool[Tensor, "..."]:
    """Whether a query at position `dest` attends to a key at position `src`: causal masks and local windows."""
    if not is_causal(weights.model):
        return torch.ones_like(dest - src, dtype=torch.bool)
    window = weights.host.attention_window(layer)
    return (src <= dest) & (src > dest - window) if window else src <= dest


def normalize(weights: Weights, layer: int, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    """Residual vectors divided by the scale of the norm in front of attention, times its gain where weights are not folded."""
    norm = weights.host.blocks[layer].before_attn
    if not norm.name:
        return x
    centred = x - x.mean(dim=-1, keepdim=True) if norm.centres else x
    gain = 1.0 if weights.fold_ln or norm.gain is None else norm.gain.to(x)
    return gain * centred / (centred.square().mean(dim=-1, keepdim=True) + weights.host.eps).sqrt()
