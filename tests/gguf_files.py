"""GGUF files of small models, written as llama.cpp's converter writes them, with a tokenizer in the metadata.

`write_gguf` undoes nothing with transformers: names come from the table of the package gguf, and the changes of values that
llama.cpp's convert_hf_to_gguf.py makes are written out here, with their inverses. It returns the weights that a reader must
find, which the slow dequantisers of `reference.py` compute from the bytes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from reference import DEQUANTIZERS

gguf: Any = pytest.importorskip("gguf")

ARCHITECTURES = {
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "gemma3_text": "gemma3",
}
"""The names of architectures in GGUF files, where they differ from transformers' model types."""
TOKENS = ["<|endoftext|>", "Ġthe", "ab", *(chr(i) for i in range(33, 127))]
RANDOM_BLOCKS = {"Q4_K": (256, 144), "Q6_K": (256, 210)}
"""Types that the package gguf does not quantise to: how many numbers and bytes a block holds."""
HALVES = {"Q4_0": (0,), "Q8_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,)}
"""Where a block holds numbers in half precision."""
UNQUANTIZED = {"F32", "F16", "BF16"}

Change = tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]


def write_gguf(
    path: Path,
    model: Any,
    types: dict[str, str],
    split: int = 1,
    vectors: dict[str, np.ndarray] | None = None,
    **metadata: Any,
) -> dict[str, torch.Tensor]:
    """Write a model to a GGUF file, or to several.

    Args:
        path: The file; with `split`, its name without "-00001-of-00002".
        model: A Hugging Face model.
        types: The type of each matrix by a part of its name in the file, such as {"ffn_down": "Q6_K", "": "Q4_K"}; the
            first part that fits. Vectors are F32.
        split: How many files there are.
        vectors: More tensors, which are F32.
        **metadata: More metadata of the architecture, such as expert_count=4.

    Returns:
        The weights of the model as they are in the file, by their names in transformers.
    """
    config = model.config
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    names = gguf.get_tensor_name_map(
        next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), config.num_hidden_layers
    )
    rng = np.random.default_rng(0)
    tied = set(model._tied_weights_keys or ()) if config.tie_word_embeddings else set()
    tensors: dict[str, tuple[np.ndarray, Any]] = {}
    weights: dict[str, torch.Tensor] = {}
    for name, weight in model.state_dict().items():
        if name in tied:
            continue
        values = weight.float().numpy()
        parts = [("", values)]
        if name.endswith("experts.gate_up_proj"):
            parts = [(f"{half}_proj", part) for half, part in zip(("gate", "up"), np.split(values, 2, axis=1))]
        read = []
        for part_name, part in parts:
            stem, suffix = name, ".weight"
            if part_name:
                stem = name.replace("gate_up_proj", part_name)
            elif name.endswith((".weight", ".bias")):
                stem, suffix = name.rsplit(".", 1)[0], "." + name.rsplit(".", 1)[1]
            # BLOOM is converted from the model without its unembedding
            gguf_name = f"{names.get_name(stem) or names.get_name(stem.removeprefix('transformer.'))}{suffix}"
            forward, backward = change(architecture, gguf_name, config)
            stored = np.ascontiguousarray(forward(part))
            matches = [kind for fragment, kind in types.items() if fragment in gguf_name]
            kind = matches[0] if matches and stored.ndim > 1 and suffix == ".weight" else "F32"
            data = pack(stored, kind, rng)
            tensors[gguf_name] = data, gguf.GGMLQuantizationType[kind]
            read.append(backward(DEQUANTIZERS[kind](data, stored.shape)))
        weights[name] = torch.from_numpy(np.ascontiguousarray(np.concatenate(read, axis=1) if parts[0][0] else read[0]))
    tensors |= {name: (vector, gguf.GGMLQuantizationType.F32) for name, vector in (vectors or {}).items()}
    shards = (
        [path]
        if split == 1
        else [path.with_name(f"{path.stem}-{i:05}-of-{split:05}.gguf") for i in range(1, split + 1)]
    )
    for i, shard in enumerate(shards):
        writer = gguf.GGUFWriter(shard, architecture)
        if split > 1:
            writer.add_uint16("split.no", i)
            writer.add_uint16("split.count", split)
        if i == 0:
            add_metadata(writer, config, architecture, metadata)
        for name in list(tensors)[i::split]:
            writer.add_tensor(name, tensors[name][0], raw_dtype=tensors[name][1])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return weights


def pack(values: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """The bytes of a tensor; random ones for the types that the package gguf does not quantise to."""
    if kind not in RANDOM_BLOCKS:
        return gguf.quantize(values, gguf.GGMLQuantizationType[kind])
    elements, size = RANDOM_BLOCKS[kind]
    blocks = rng.integers(0, 256, (values.size // elements, size), dtype=np.uint8)
    for start in HALVES[kind]:
        blocks[:, start : start + 2] = rng.uniform(1e-4, 1e-3, (len(blocks), 1)).astype(np.float16).view(np.uint8)
    return blocks.reshape(*values.shape[:-1], -1)


def change(architecture: str, name: str, config: Any) -> Change:
    """What llama.cpp's converter does to the values of a tensor, and its inverse."""
    if architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
        heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
        order = np.arange(heads * config.head_dim).reshape(heads, 2, config.head_dim // 2).swapaxes(1, 2).reshape(-1)
        return lambda x: x[order], lambda x: x[np.argsort(order)]
    if architecture == "bloom" and ".attn_qkv." in name:
        width = config.hidden_size
        order = np.arange(3 * width).reshape(config.n_head, 3, -1).swapaxes(0, 1).reshape(-1)
        return lambda x: x[order], lambda x: x[np.argsort(order)]
    if architecture in ("gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        return lambda x: x + np.float32(1), lambda x: x - np.float32(1)
    if architecture == "gpt2" and name.endswith(
        (".attn_qkv.weight", ".attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    ):
        return lambda x: x.T, lambda x: x.T
    if name.endswith("ffn_gate_inp_shexp.weight"):
        return lambda x: x[0], lambda x: x[None]
    return lambda x: x, lambda x: x


def add_metadata(writer: Any, config: Any, architecture: str, metadata: dict[str, Any]) -> None:
    """The metadata of a model and of its tokenizer."""
    heads, width = config.num_attention_heads, config.hidden_size
    writer.add_context_length(getattr(config, "max_position_embeddings", 2048))
    writer.add_embedding_length(width)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or 4 * width)
    writer.add_head_count(heads)
    if architecture not in ("gpt2", "bloom"):
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_rope_dimension_count(getattr(config, "head_dim", None) or width // heads)
        writer.add_rope_freq_base(10_000.0)
    epsilons = ("rms_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon", "layer_norm_eps")
    (writer.add_layer_norm_rms_eps if hasattr(config, "rms_norm_eps") else writer.add_layer_norm_eps)(
        next(getattr(config, name) for name in epsilons if hasattr(config, name))
    )
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    for key, value in metadata.items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(f"{architecture}.{key}", value)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(["a b"])
    writer.add_token_types([3 if token == TOKENS[0] else 1 for token in TOKENS])
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)


def saved(folder: Path, model: Any, weights: dict[str, torch.Tensor], tokenizer: Any) -> Path:
    """The folder of a model with other weights, as transformers saves it."""
    model.load_state_dict(weights, strict=False)
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def model_of(config: transformers.PretrainedConfig) -> Any:
    """A model with random weights, and gains of norms that are not 1."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model
