"""Checkpoints with the shapes of large Llama models and random weights, for benchmarks; they are not part of the project.

python tests/benchmarks/large_checkpoint.py 8b FOLDER       16 GB, every block with the same numbers
python tests/benchmarks/large_checkpoint.py 70b FOLDER      141 GB in files with holes: only the embeddings and block 40 take space
"""

import json
import struct
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, PreTrainedTokenizerFast

D_VOCAB = 128_256
SHAPES = {
    "8b": dict(hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32),
    "70b": dict(hidden_size=8192, intermediate_size=28_672, num_hidden_layers=80, num_attention_heads=64),
    "405b": dict(hidden_size=16_384, intermediate_size=53_248, num_hidden_layers=126, num_attention_heads=128),
}
FILLED_BLOCK = {"70b": 40}
"""The only block that takes space on the disk; with the 8 B shape, all do."""


def config_of(shape: str) -> LlamaConfig:
    options: dict[str, Any] = SHAPES[shape] | dict(vocab_size=D_VOCAB, num_key_value_heads=8, torch_dtype="bfloat16")
    return LlamaConfig(
        **options, max_position_embeddings=8192, rope_theta=500_000.0, architectures=["LlamaForCausalLM"]
    )


def block_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of one block's weights, as stored."""
    d_model, d_mlp = int(config.hidden_size), int(config.intermediate_size)
    d_head = d_model // int(config.num_attention_heads)
    d_kv = int(config.num_key_value_heads or 0) * d_head
    return {
        "input_layernorm.weight": (d_model,),
        "post_attention_layernorm.weight": (d_model,),
        "self_attn.q_proj.weight": (d_model, d_model),
        "self_attn.k_proj.weight": (d_kv, d_model),
        "self_attn.v_proj.weight": (d_kv, d_model),
        "self_attn.o_proj.weight": (d_model, d_model),
        "mlp.gate_proj.weight": (d_mlp, d_model),
        "mlp.up_proj.weight": (d_mlp, d_model),
        "mlp.down_proj.weight": (d_model, d_mlp),
    }


def outer_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    wide = (int(config.vocab_size), int(config.hidden_size))
    return {"model.embed_tokens.weight": wide, "lm_head.weight": wide, "model.norm.weight": wide[1:]}


def header(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """The header of a safetensors file of bfloat16 tensors."""
    entries, position = {}, 0
    for name, shape in shapes.items():
        end = position + 2 * torch.Size(shape).numel()
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def random_weight(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    values = torch.empty(shape, dtype=torch.bfloat16)
    for rows in values.split(4096):
        rows.copy_(torch.randn(rows.shape, generator=generator) * 0.02)
    return values


def write_shard(path: Path, tensors: dict[str, Tensor] | None, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file; without tensors, with a hole in their place."""
    with path.open("wb") as file:
        file.write(header(shapes))
        for name, shape in shapes.items():
            if tensors is None:
                file.seek(2 * torch.Size(shape).numel(), 1)
            else:
                file.write(memoryview(tensors[name].view(torch.uint8).numpy()))
        file.truncate()


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of words, so that every id has a string."""
    words = {"<unk>": 0} | {f"w{i}": i for i in range(1, D_VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<unk>").save_pretrained(folder)


def write_checkpoint(shape: str, folder: Path) -> None:
    """Write a checkpoint with one file per block."""
    folder.mkdir(parents=True, exist_ok=True)
    config, generator = config_of(shape), torch.Generator().manual_seed(0)
    config.save_pretrained(folder)
    write_tokenizer(folder)
    shapes = block_shapes(config)
    block = {name: random_weight(each, generator) for name, each in shapes.items()}
    weight_map: dict[str, str] = {}
    for layer in tqdm(range(int(config.num_hidden_layers)), desc="blocks"):
        file, prefix = f"model-{layer:05}.safetensors", f"model.layers.{layer}."
        is_filled = layer == FILLED_BLOCK.get(shape, layer)
        named = {prefix + name: tensor for name, tensor in block.items()}
        write_shard(folder / file, named if is_filled else None, {prefix + name: each for name, each in shapes.items()})
        weight_map |= dict.fromkeys(named, file)
    del block
    outer = outer_shapes(config)
    for name, each in outer.items():
        file = f"model-{name.split('.')[-2]}.safetensors"
        write_shard(folder / file, {name: random_weight(each, generator)}, {name: each})
        weight_map[name] = file
    sizes = [torch.Size(each).numel() for each in shapes.values()]
    total = 2 * (sum(sizes) * int(config.num_hidden_layers) + sum(torch.Size(each).numel() for each in outer.values()))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in SHAPES:
        sys.exit(__doc__)
    write_checkpoint(sys.argv[1], Path(sys.argv[2]))
