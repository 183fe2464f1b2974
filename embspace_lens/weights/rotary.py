"""Rotary positions: by how much a model turns queries and keys, from its own tables, block by block.

Which numbers of a head are turned together is stated by no attribute of the host: the architectures below were checked
against the forward pass, one by one, and others are refused. With `host`, all that knows the host's attributes.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import errors
from ..search.tiles import float64
from .architectures import Block
from .host import Host
from .modules import unwrap

# Pairs (i, i + n): the first half of the turned numbers with the second.
HALVES = {
    f"{name}ForCausalLM"
    for name in (
        *(
            "Apertus",
            "Arcee",
            "BitNet",
            "Exaone4",
            "Falcon",
            "Gemma",
            "Gemma2",
            "Gemma3",
            "Glm4Moe",
            "GPTNeoX",
            "GptOss",
        ),
        *(
            "Granite",
            "GraniteMoe",
            "Jais2",
            "Llama",
            "Ministral3",
            "Mistral",
            "Mixtral",
            "Nemotron",
            "Olmo",
            "Phi",
            "Phi3",
        ),
        *(
            "FlexOlmo",
            "MiniMaxM2",
            "Olmo2",
            "Olmo3",
            "Olmoe",
            "Qwen2",
            "Qwen2Moe",
            "Qwen3",
            "Qwen3Moe",
            "SeedOss",
            "SmolLM3",
            "StableLm",
            "Starcoder2",
            "VaultGemma",
        ),
    )
}
# Pairs (2i, 2i + 1): neighbours.
NEIGHBOURS = {
    f"{name}ForCausalLM" for name in ("CodeGen", "Cohere", "Cohere2", "Ernie4_5", "Ernie4_5_Moe", "Glm", "Glm4", "GPTJ")
}
# Only blocks with a sliding window turn; the others see no positions.
SLIDING_ALONE = {"Cohere2ForCausalLM", "Exaone4ForCausalLM"}
BY_LENGTH = ("dynamic", "longrope")  # frequencies that depend on the text's length


class Rotary(NamedTuple):
    """Angles per token, one for each pair of numbers of a head; which numbers are a pair; and a factor on the scores."""

    frequencies: Float[Tensor, " n_pairs"]
    neighbours: bool
    scale: float

    def matrix(self, distance: int, d_head: int) -> Float[Tensor, "d_head d_head"]:
        """R(Δ) with q R(Δ) kᵀ the product of a query and a key `distance` tokens before it, in float64."""
        n = len(self.frequencies)
        if 2 * n > d_head:
            raise errors.unsupported("Its rotation", f"{2 * n} numbers are turned and a head has {d_head}")
        turned = torch.eye(d_head, dtype=torch.float64)
        pair = torch.arange(n)
        a, b = (2 * pair, 2 * pair + 1) if self.neighbours else (pair, pair + n)
        cos, sin = (self.frequencies * distance).cos(), (self.frequencies * distance).sin()
        turned[a, a], turned[b, b], turned[a, b], turned[b, a] = cos, cos, sin, -sin
        return turned * self.scale


def rotary_of(host: Host, block: Block) -> Rotary:
    """How a block turns its queries and keys; by nothing, where it does not and others of the model do.

    Raises:
        EmbspaceError: If the model has no rotary positions, or turns in a way that is not known here.
    """
    config = host.from_config
    attn: Any = block.attn
    if not host.is_bridge and host.cfg.positional_embedding_type == "rotary":
        return _from_tables(attn.rotary_sin, attn.rotary_cos, bool(host.cfg.rotary_adjacent_pairs))
    modules = _modules(host)
    native = next((module for module in modules if hasattr(module, "cos_cached")), None)
    if host.is_bridge and native is not None:
        return _from_tables(native.sin_cached, native.cos_cached, True)
    neighbours = host.architecture in NEIGHBOURS
    if not host.is_bridge or config("alibi", False) or (not modules and not neighbours):
        raise errors.unsupported(
            f"A distance in {host.name}",
            "it has no rotary positions. circuits.position_qk reads learned position embeddings",
        )
    if not neighbours and host.architecture not in HALVES:
        raise errors.unsupported(
            f"A distance in {host.name}", f"how {host.architecture} turns its queries and keys is not known here"
        )
    kind = (config("layer_types") or [None] * (block.layer + 1))[block.layer]
    turns = (config("no_rope_layers") or [1] * (block.layer + 1))[block.layer]
    if host.architecture in SLIDING_ALONE and config("sliding_window") is not None and kind is not None:
        turns = kind == "sliding_attention"
    if not turns:
        return Rotary(torch.zeros(0, dtype=torch.float64), neighbours, 1.0)
    if not modules:  # GPT-J and CodeGen make their table in the forward pass
        width = int(config("rotary_dim"))
        return Rotary(10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width), True, 1.0)
    module = modules[0]
    by_kind = isinstance(module.rope_type, dict)  # one set of frequencies for each kind of block
    rope_type = module.rope_type[kind] if by_kind else module.rope_type
    if rope_type in BY_LENGTH:
        raise errors.unsupported(
            f"A distance in {host.name}", f"its rotation ({rope_type}) depends on how long the text is"
        )
    prefix = f"{kind}_" if by_kind else ""
    frequencies = float64(getattr(module, f"{prefix}inv_freq").detach()).cpu()
    scale = float(getattr(module, f"{prefix}attention_scaling", 1.0))
    return Rotary(frequencies, neighbours, scale**2)


def _modules(host: Host) -> list[Any]:
    """The modules that hold angles, each once."""
    if not host.is_bridge:
        return []
    inner: nn.Module = host.model.original_model  # pyright: ignore[reportAssignmentType]
    found = {
        id(module): module
        for module in (unwrap(part) for part in inner.modules())
        if type(module).__name__.endswith(("RotaryEmbedding", "NativeRotary"))
    }
    return list(found.values())


def _from_tables(sin: Tensor, cos: Tensor, neighbours: bool) -> Rotary:
    """From the sines and cosines of position 1."""
    angles = torch.atan2(float64(sin[1]), float64(cos[1])).cpu()
    return Rotary(angles[::2] if neighbours else angles[: len(angles) // 2], neighbours, 1.0)
