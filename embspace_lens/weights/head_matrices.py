"""The matrices of heads, from weights whose heads TransformerLens does not split, or splits incorrectly."""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .modules import unwrap


def falcon_heads(
    parts: Sequence[Float[Tensor, "_ d_model d_head"]], name: str, n_groups: int
) -> Float[Tensor, "heads d_model d_head"]:
    """W_Q, W_K or W_V of Falcon's new decoder architecture. It stores, group by group, the queries, the key and the value.

    TransformerLens splits the fused rows as if all queries came first, then all keys, then all values.

    Args:
        parts: What TransformerLens calls W_Q, W_K and W_V: together they are the fused rows in their order.
        name: The weight.
        n_groups: The number of key-value heads.
    """
    fused = torch.cat([rearrange(part, "head d_model d_head -> head d_head d_model") for part in parts])
    groups = rearrange(fused, "(group part) d_head d_model -> group part d_model d_head", group=n_groups)
    if name == "W_Q":
        return rearrange(groups[:, :-2], "group part d_model d_head -> (group part) d_model d_head")
    return groups[:, -2 if name == "W_K" else -1]


def heads_of_linear_layers(attn: Any, name: str, n_heads: int) -> Tensor | None:
    """A weight from the linear layers of a block whose d_head differs from the configuration (Gemma 4)."""
    modules = getattr(attn, "_modules", {})
    linear = {key: getattr(unwrap(modules[key]), "weight", None) for key in "qkvo" if modules.get(key) is not None}
    q, o, weight = (linear.get(key) for key in ("q", "o", name[-1].lower()))
    if not (isinstance(q, Tensor) and isinstance(o, Tensor) and isinstance(weight, Tensor)) or weight.ndim != 2:
        return None
    d_head = o.shape[1] // n_heads
    has_gate = q.shape[0] == 2 * o.shape[1]  # Qwen3-Next: for each head its query, then the gate of its output
    if q.shape[0] != o.shape[1] and not has_gate:
        return None
    if name == "W_Q" and has_gate:
        query = rearrange(weight, "(head part d_head) d_model -> part head d_model d_head", part=2, d_head=d_head)
        return query[0]
    if name == "W_O":
        return rearrange(weight, "d_model (head d_head) -> head d_head d_model", d_head=d_head)
    if weight.shape[0] % d_head:
        return None
    return rearrange(weight, "(head d_head) d_model -> head d_model d_head", d_head=d_head)
