"""From W_QK to attention scores: the norm's scale, biases, the factor before the softmax, and the attention mask."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..checkpoints.lazy_tensor import loaded
from ..search.tiles import upcast
from .configuration import is_causal
from .effective import Weights
from .modules import attribute

AttentionBias = Literal["b_Q", "b_K"]


def attention_scale(weights: Weights, layer: int, d_head: int) -> float:
    """The factor of the products of queries and keys before the softmax, 1/√d_head in most models."""
    return weights.host.score_scale(layer, d_head)


def attention_bias(weights: Weights, layer: int, head: int, name: AttentionBias) -> Float[Tensor, "*d_head"]:
    """The bias of a head's queries or keys, with the bias of the norm before attention; 0 without a bias."""
    host = weights.host
    block = host.blocks[layer]
    weight = host.attention(block, "W_Q" if name == "b_Q" else "W_K")
    stored = loaded(attribute(block.attn, name, f"{name} of block {layer}", host.name))
    biases = [stored.detach().float().reshape(-1, weight.shape[-1])] if isinstance(stored, Tensor) else []
    if block.before_attn.bias is not None:
        weight = upcast(loaded(weight))
        biases.append((block.before_attn.bias.to(weight) @ weight).float())
    if not biases:
        return torch.zeros((), dtype=torch.float32)
    n_heads = max(map(len, biases))
    # Biases of grouped queries have one row per query head or one per key-value head.
    bias = torch.stack([b.repeat_interleave(n_heads // len(b), dim=0).to(weight.device) for b in biases]).sum(dim=0)
    return bias[head // (weights.n_heads // n_heads)]


def visible(
    weights: Weights, layer: int, dest: Int[Tensor, "*dest_pos"], src: Int[Tensor, "*src_pos"]
) -> Bool[Tensor, "..."]:
    """Whether a query at position `dest` attends to a key at position `src`, by the causal mask and a local window."""
    if not is_causal(weights.model):
        return torch.ones_like(dest - src, dtype=torch.bool)
    window = _attention_window(weights, layer)
    return (src <= dest) & (src > dest - window) if window else src <= dest


def normalize(weights: Weights, layer: int, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    """Residual vectors divided by the scale of the norm before attention; times its gain if weights are not folded."""
    norm = weights.host.blocks[layer].before_attn
    if not norm.name:
        return x
    centred = x - x.mean(dim=-1, keepdim=True) if norm.centres else x
    gain = 1.0 if weights.fold_ln or norm.gain is None else norm.gain.to(x)
    return gain * centred / (centred.square().mean(dim=-1, keepdim=True) + weights.host.eps).sqrt()


def _attention_window(weights: Weights, layer: int) -> int | None:
    """The number of positions to which a query attends, its own included; None for all (GPT-Neo's local blocks)."""
    host = weights.host
    kinds = host.from_config("attention_layers" if host.is_bridge else "attn_types")
    return int(host.from_config("window_size")) if kinds and kinds[layer] == "local" else None
