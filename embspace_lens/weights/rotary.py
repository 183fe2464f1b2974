"""Rotary positions: the rotation of queries and keys in each block, from the model's own tables.

No attribute of TransformerLens states which dimensions of a head are rotated together. The architectures listed here
were checked against the forward pass one by one; others raise an error.
"""

import re
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import errors
from ..search.tiles import float64
from ..tables.checks import check_integer
from .architectures import Block
from .host import Host
from .latent_attention import is_latent
from .modules import unwrap


def _causal_models(names: str) -> frozenset[str]:
    return frozenset(f"{name}ForCausalLM" for name in names.split())


ROTATE_HALF = _causal_models(
    """
    Apertus Arcee BitNet Exaone4 Falcon FlexOlmo Gemma Gemma2 Gemma3 Glm4Moe GPTNeoX GptOss Granite GraniteMoe
    HunYuanDenseV1 Jais2 Llama MiniMaxM2 Ministral3 Mistral Mixtral NanoChat Nemotron Olmo Olmo2 Olmo3 Olmoe Phi Phi3 Qwen2
    Qwen2Moe Qwen3 Qwen3Moe SeedOss SmolLM3 StableLm Starcoder2 VaultGemma
    """
) | {"qwen2_5_vl_text", "qwen2_vl_text", "qwen3_vl_text"}
"""Architectures that rotate the pairs of dimensions (i, i + n), for n pairs; and types of language models without one.

Qwen's language models with images have three positions for each token. In text these are equal.
"""

INTERLEAVED = _causal_models("CodeGen Cohere Cohere2 Ernie4_5 Ernie4_5_Moe Glm Glm4 GPTJ Llama4")
"""Architectures that rotate the pairs of dimensions (2i, 2i + 1)."""

REVERSED = _causal_models("NanoChat")
"""Architectures that rotate in the opposite direction."""

SLIDING_WINDOW_ONLY = _causal_models("Cohere2 Exaone4")
"""Architectures that rotate only in blocks with a sliding window; their other blocks have no positions."""

LENGTH_DEPENDENT = ("longrope",)
"""Types of rotary positions with frequencies that depend on the length of the text within the context window.

The frequencies of the type "dynamic" depend on it beyond the context window only.
"""


class Rotary(NamedTuple):
    """The rotation of a block's queries and keys.

    Attributes:
        frequencies: The angle per token of each rotated pair of dimensions.
        interleaved: Whether the pairs are (2i, 2i + 1); otherwise (i, i + n) for n pairs.
        scale: A factor of the scores.
    """

    frequencies: Float[Tensor, " n_pairs"]
    interleaved: bool
    scale: float

    def matrix(self, distance: int, d_head: int) -> Float[Tensor, "d_head d_head"]:
        """R(Δ) in float64: q R(Δ) kᵀ is the product of a query and a key that is `distance` tokens before it."""
        n_pairs = len(self.frequencies)
        if 2 * n_pairs > d_head:
            raise errors.too_many_rotated(2 * n_pairs, d_head)
        rotation = torch.eye(d_head, dtype=torch.float64)
        pair = torch.arange(n_pairs)
        first, second = (2 * pair, 2 * pair + 1) if self.interleaved else (pair, pair + n_pairs)
        cos, sin = (self.frequencies * distance).cos(), (self.frequencies * distance).sin()
        rotation[first, first] = rotation[second, second] = cos
        rotation[first, second], rotation[second, first] = sin, -sin
        return rotation * self.scale


def rotation_matrix(host: Host, block: Block, distance: int) -> Float[Tensor, "d_head d_head"]:
    """R(Δ) of a block, times the factor by which some models scale rotated scores.

    Raises:
        EmbspaceError: If the distance is not within the context window, or as `rotary_of`.
    """
    distance = check_integer("distance", distance, minimum=0, maximum=host.n_ctx - 1 if host.n_ctx else None)
    return rotary_of(host, block).matrix(distance, host.attention(block, "W_O").shape[1])


def rotary_of(host: Host, block: Block) -> Rotary:
    """The rotation of a block's queries and keys; without frequencies if the block does not rotate, but other blocks do.

    Raises:
        EmbspaceError: If the model has no rotary positions, or rotates in an unknown way.
    """
    config = host.from_config
    attn: Any = block.attn
    if is_latent(attn):
        raise errors.latent_rotation(host.name)
    if not host.is_bridge and host.cfg.positional_embedding_type == "rotary":
        return _from_tables(attn.rotary_sin, attn.rotary_cos, bool(host.cfg.rotary_adjacent_pairs))
    modules = _rotary_modules(host)
    native = next((module for module in modules if hasattr(module, "cos_cached")), None)
    if host.is_bridge and native is not None:
        return _from_tables(native.sin_cached, native.cos_cached, True)
    architecture = language_model(host)
    interleaved = architecture in INTERLEAVED
    if not host.is_bridge or config("alibi", False) or (not modules and not interleaved):
        raise errors.not_rotary(host.name)
    if not interleaved and architecture not in ROTATE_HALF:
        raise errors.unknown_rotation(host.name, architecture)
    if not rotates(host, block):
        return Rotary(torch.zeros(0, dtype=torch.float64), interleaved, 1.0)
    if not modules:  # GPT-J and CodeGen compute their frequencies in the forward pass
        n_rotated = int(config("rotary_dim"))
        exponents = torch.arange(0, n_rotated, 2, dtype=torch.float64) / n_rotated
        return Rotary(10000.0**-exponents, True, 1.0)
    rotary = _from_module(host.name, modules[0], _layer_type(host, block), interleaved)
    return rotary._replace(frequencies=-rotary.frequencies) if architecture in REVERSED else rotary


def rotates(host: Host, block: Block) -> bool:
    """Whether a block of a model with rotary positions rotates its queries and keys."""
    layer_type = _layer_type(host, block)
    in_windows_only = language_model(host) in SLIDING_WINDOW_ONLY and host.from_config("sliding_window") is not None
    if in_windows_only and layer_type is not None:
        return layer_type == "sliding_attention"
    rotating = host.from_config("no_rope_layers")  # 1 for a block that rotates
    return bool(rotating[block.layer]) if rotating else True


def _layer_type(host: Host, block: Block) -> str | None:
    """The type of a block's attention, if blocks have several types."""
    layer_types = host.from_config("layer_types")
    return layer_types[block.layer] if layer_types else None


def language_model(host: Host) -> str:
    """The architecture of the language model: of a model with images, the one that its configuration of texts names."""
    config = host.text_config
    if config is None:
        return host.architecture
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, config.model_type)


def _rotary_modules(host: Host) -> list[Any]:
    """The modules that hold the frequencies, without repeats and without those for images."""
    if not host.is_bridge:
        return []
    modules = (unwrap(module) for module in cast(nn.Module, host.model.original_model).modules())
    is_rotary = re.compile("^(?!.*(Vision|Pixtral)).*(RotaryEmbedding|NativeRotary)$")
    return list({id(module): module for module in modules if is_rotary.match(type(module).__name__)}.values())


def _from_module(model: str, module: Any, layer_type: str | None, interleaved: bool) -> Rotary:
    """The rotation from a transformers module."""
    has_types = isinstance(module.rope_type, dict)  # each type of block has its own frequencies
    rope_type = module.rope_type[layer_type] if has_types else module.rope_type
    if rope_type in LENGTH_DEPENDENT:
        raise errors.length_dependent_rotation(model, rope_type)
    prefix = f"{layer_type}_" if has_types else ""
    # A forward pass on a text longer than the context window changes inv_freq of the type "dynamic".
    name = f"{prefix}original_inv_freq" if rope_type == "dynamic" else f"{prefix}inv_freq"
    frequencies = float64(getattr(module, name).detach()).cpu()
    scale = float(getattr(module, f"{prefix}attention_scaling", 1.0))  # of queries and of keys
    return Rotary(frequencies, interleaved, scale**2)


def _from_tables(
    sin: Float[Tensor, "n_ctx n_rotated"], cos: Float[Tensor, "n_ctx n_rotated"], interleaved: bool
) -> Rotary:
    """The rotation from the sines and cosines at position 1."""
    angles = torch.atan2(float64(sin[1]), float64(cos[1])).cpu()
    return Rotary(angles[::2] if interleaved else angles[: len(angles) // 2], interleaved, 1.0)
