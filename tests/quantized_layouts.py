"""Weights in the layouts of quantised checkpoints, each with the values that it stands for by the format's definition."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import reference
import torch
import zoo
from safetensors.torch import load_file, save_file
from torch import Tensor

Encode = Callable[[str, Tensor], tuple[dict[str, Tensor], Tensor]]
"""The name of a module and its weight → the tensors that are stored for it, and the values that they stand for."""


class Layout(NamedTuple):
    settings: dict[str, Any]
    encode: Encode
    name: str
    package: str | None = None


def fp8(block: list[int], suffix: str = "weight_scale_inv", scale_dtype: torch.dtype = torch.float32) -> Encode:
    """Blocks of values relative to the largest value of E4M3, 448."""

    def encode(module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        height, width = (n or size for n, size in zip(block, weight.shape))
        n_rows, n_columns = math.ceil(weight.shape[0] / height), math.ceil(weight.shape[1] / width)
        scale = torch.empty(n_rows, n_columns)
        stored = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
        for i in range(n_rows):
            for j in range(n_columns):
                part = slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width)
                scale[i, j] = weight[part].abs().max() / 448
                if scale_dtype != torch.float32:
                    scale[i, j] = 2.0 ** math.ceil(math.log2(scale[i, j]))
                stored[part] = (weight[part] / scale[i, j]).to(torch.float8_e4m3fn)
        if scale_dtype == torch.uint8:
            scale = (scale.log2() + 127).to(torch.uint8)
        scale = scale.to(scale_dtype)
        values = reference.brute_fp8(stored, scale, (height, width))
        return {f"{module}.weight": stored, f"{module}.{suffix}": scale}, values

    return encode


def fp8_per_tensor(module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    parts, values = fp8([0, 0])(module, weight)
    scale = f"{module}.weight_scale_inv"
    return parts | {scale: parts[scale].reshape(()), f"{module}.activation_scale": torch.tensor(0.1)}, values


def compressed(
    n_bits: int = 8,
    block: tuple[int, int] = (1, 0),
    floating: bool = False,
    packed: bool = False,
    symmetric: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    scale_shape: Callable[[Tensor], Tensor] = lambda scale: scale,
) -> Encode:
    """Random codes, with scales that give values as large as those of the weight."""

    def encode(module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        n_rows, n_columns = weight.shape
        shared = tuple(n or size for n, size in zip(block, weight.shape))
        generator = torch.Generator().manual_seed(len(module) + n_rows)
        grid = (math.ceil(n_rows / shared[0]), math.ceil(n_columns / shared[1]))
        largest = 2 ** (n_bits - 1)
        scale = ((0.5 + torch.rand(grid, generator=generator)) * 0.4 / (448 if floating else largest)).to(dtype)
        parts = {"weight_scale": scale_shape(scale)}
        zeros = None
        if floating:
            stored = (torch.randn(weight.shape, generator=generator) * 100).to(torch.float8_e4m3fn)
            codes = [[reference.float8_e4m3(byte) for byte in row] for row in stored.view(torch.uint8).tolist()]
            parts["weight"] = stored
        else:
            if not symmetric:
                zeros = torch.randint(-largest, largest, grid, generator=generator, dtype=torch.int8)
                parts["weight_zero_point"] = pack_rows(zeros.T, n_bits).T.contiguous() if packed else zeros
            stored = torch.randint(-largest, largest, weight.shape, generator=generator, dtype=torch.int8)
            codes = stored.tolist()
            parts["weight"] = stored
        if packed:
            words = pack_rows(parts.pop("weight"), n_bits)
            parts |= {"weight_packed": words, "weight_shape": torch.tensor(weight.shape)}
            fields = [reference.brute_bit_fields(row, n_bits, n_columns) for row in words.tolist()]
            assert codes == [[field - largest for field in row] for row in fields]
        values = reference.brute_scaled_integers(codes, zeros, scale, shared)
        return {f"{module}.{part}": tensor for part, tensor in parts.items()}, values

    return encode


def pack_rows(values: Tensor, n_bits: int) -> Tensor:
    """Rows of signed integers as words of 32 bits, without gaps, the first value in the lowest bits."""
    rows = []
    for row in values.tolist():
        number = sum((value + 2 ** (n_bits - 1)) << n_bits * i for i, value in enumerate(row))
        n_words = math.ceil(len(row) * n_bits / 32)
        words = [number >> 32 * i & 0xFFFFFFFF for i in range(n_words)]
        rows.append([word - 2**32 if word >= 2**31 else word for word in words])
    return torch.tensor(rows, dtype=torch.int32)


def scheme(stored_format: str, activations: bool = False, **weights: Any) -> dict[str, Any]:
    """The settings that llm-compressor writes into config.json."""
    group: dict[str, Any] = {"targets": ["Linear"], "output_activations": None, "input_activations": None}
    group["weights"] = {"dynamic": False, "observer": "minmax", "type": "int", "symmetric": True} | weights
    if activations:
        kind = {"num_bits": 8, "type": weights.get("type", "int")}
        group["input_activations"] = {"dynamic": True, "strategy": "token", "symmetric": True} | kind
    return {
        "quant_method": "compressed-tensors", "format": stored_format, "config_groups": {"group_0": group}, "ignore": ["lm_head"],
        "quantization_status": "compressed", "kv_cache_scheme": None, "global_compression_ratio": None,
    }  # fmt: skip


def bnb_four_bits(
    kind: str, nested: bool = False, dtype: str = "float32", storage: torch.dtype = torch.uint8
) -> Encode:
    """Random codes in blocks of 64, as `bitsandbytes.nn.Params4bit` is saved."""

    def encode(module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        generator = torch.Generator().manual_seed(len(module) + len(weight))
        n = weight.numel()
        packed = torch.randint(0, 256, (n // 2, 1), generator=generator, dtype=torch.uint8)
        absmax = 0.2 + 0.4 * torch.rand(math.ceil(n / 64), generator=generator)
        code_book = {"nf4": reference.NF4, "fp4": reference.FP4}[kind]
        state = {"quant_type": kind, "blocksize": 64, "dtype": dtype, "shape": list(weight.shape)}
        parts = {"quant_map": torch.tensor(code_book)}
        if nested:
            codes = torch.randint(0, 256, absmax.shape, generator=generator, dtype=torch.uint8)
            code_map, offset = torch.linspace(-1, 1, 256), 0.375
            blocks = 0.1 + 0.1 * torch.rand(math.ceil(len(codes) / 256), generator=generator)
            parts |= {"absmax": codes, "nested_absmax": blocks, "nested_quant_map": code_map}
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
            absmax = torch.stack([code_map[int(c)] * blocks[i // 256] + offset for i, c in enumerate(codes)])
        else:
            parts["absmax"] = absmax
        parts[f"quant_state.bitsandbytes__{kind}"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        values = reference.brute_four_bits(packed, absmax.tolist(), code_book, 64, n).reshape(weight.shape)
        stored = {f"{module}.weight.{part}": tensor for part, tensor in parts.items()}
        return stored | {f"{module}.weight": packed.flatten().view(storage)[:, None]}, values.to(getattr(torch, dtype))

    return encode


def bnb_int8(module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """LLM.int8: rows relative to their largest value, which 127 stands for."""
    largest = weight.abs().amax(dim=1)
    stored = (weight / largest[:, None] * 127).round().to(torch.int8)
    reciprocal = torch.tensor(1 / 127)
    values = torch.stack(
        [
            torch.stack([torch.tensor(float(code)) * top * reciprocal for code in row])
            for row, top in zip(stored.tolist(), largest)
        ]
    )
    row_format = torch.tensor(0, dtype=torch.uint8)
    return {f"{module}.weight": stored, f"{module}.SCB": largest, f"{module}.weight_format": row_format}, values


def awq(module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Random codes in groups of 16 inputs."""
    n_outputs, n_inputs = weight.shape
    generator = torch.Generator().manual_seed(len(module) + n_outputs)
    lowest, highest = -(2**31), 2**31
    words, zeros = (
        torch.randint(lowest, highest, (n, n_outputs // 8), generator=generator).to(torch.int32)
        for n in (n_inputs, n_inputs // 16)
    )
    scales = (0.02 + 0.02 * torch.rand(n_inputs // 16, n_outputs, generator=generator)).half()
    parts = {f"{module}.qweight": words, f"{module}.qzeros": zeros, f"{module}.scales": scales}
    return parts, reference.brute_awq(words, zeros, scales, 16)


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "modules_to_not_convert": ["lm_head"]}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_use_double_quant": False}
LAYOUTS = {
    "fp8": Layout(FP8 | {"weight_block_size": [20, 24]}, fp8([20, 24]), "FP8 in blocks of 20 × 24"),
    "fp8_e8m0": Layout(
        FP8 | {"weight_block_size": [20, 24], "scale_fmt": "ue8m0"},
        fp8([20, 24], scale_dtype=torch.float8_e8m0fnu),
        "FP8 in blocks of 20 × 24",
    ),
    "fp8_per_tensor": Layout(FP8 | {"activation_scheme": "static"}, fp8_per_tensor, "FP8 per tensor"),
    "mxfp8": Layout({"quant_method": "mxfp8"}, fp8([1, 32], scale_dtype=torch.uint8), "MXFP8"),
    "fbgemm_fp8": Layout({"quant_method": "fbgemm_fp8"}, fp8([1, 0], "weight_scale"), "FP8 per row"),
    "int8_per_row": Layout(
        scheme("int-quantized", activations=True, num_bits=8, strategy="channel"),
        compressed(),
        "compressed-tensors int8 per row",
        "compressed_tensors",
    ),
    "int8_with_zero_points": Layout(
        scheme("naive-quantized", num_bits=8, strategy="group", group_size=16, symmetric=False),
        compressed(block=(1, 16), symmetric=False, dtype=torch.float32),
        "compressed-tensors int8 in groups of 16",
        "compressed_tensors",
    ),
    "float8_per_row": Layout(
        scheme("float-quantized", activations=True, num_bits=8, type="float", strategy="channel"),
        compressed(floating=True),
        "compressed-tensors FP8 per row",
        "compressed_tensors",
    ),
    "float8_per_tensor": Layout(
        scheme("float-quantized", activations=True, num_bits=8, type="float", strategy="tensor"),
        compressed(floating=True, block=(0, 0), scale_shape=lambda scale: scale.reshape(1)),
        "compressed-tensors FP8 per tensor",
        "compressed_tensors",
    ),
    "float8_in_blocks": Layout(
        scheme("naive-quantized", num_bits=8, type="float", strategy="block", block_structure=[20, 24]),
        compressed(floating=True, block=(20, 24)),
        "compressed-tensors FP8 in blocks of 20 × 24",
        "compressed_tensors",
    ),
    "int4": Layout(
        scheme("pack-quantized", num_bits=4, strategy="group", group_size=16),
        compressed(4, (1, 16), packed=True),
        "compressed-tensors int4 in groups of 16",
        "compressed_tensors",
    ),
    "int4_with_zero_points": Layout(
        scheme("pack-quantized", num_bits=4, strategy="group", group_size=16, symmetric=False),
        compressed(4, (1, 16), packed=True, symmetric=False),
        "compressed-tensors int4 in groups of 16",
        "compressed_tensors",
    ),
    "int8_packed_per_row": Layout(
        scheme("pack-quantized", num_bits=8, strategy="channel"),
        compressed(8, packed=True),
        "compressed-tensors int8 per row",
        "compressed_tensors",
    ),
    "nf4": Layout(BNB | {"bnb_4bit_quant_type": "nf4"}, bnb_four_bits("nf4"), "bitsandbytes NF4"),
    "nf4_in_bfloat16": Layout(
        BNB | {"bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": "bfloat16"},
        bnb_four_bits("nf4", dtype="bfloat16", storage=torch.bfloat16),
        "bitsandbytes NF4",
    ),
    "nf4_nested": Layout(
        BNB | {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        bnb_four_bits("nf4", nested=True),
        "bitsandbytes NF4, scales quantised too",
    ),
    "fp4": Layout(BNB | {"bnb_4bit_quant_type": "fp4"}, bnb_four_bits("fp4"), "bitsandbytes FP4"),
    "bnb_int8": Layout({"quant_method": "bitsandbytes", "load_in_8bit": True}, bnb_int8, "bitsandbytes int8"),
    "awq": Layout(
        {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"},
        awq,
        "AWQ int4 in groups of 16",
    ),
}


def save_quantized(architecture: str, folder: Path, encode: Encode) -> tuple[Path, Path]:
    """Save a model of the zoo twice: its projections quantised, and with the values that these stand for.

    Returns:
        The folder of the quantised checkpoint, whose config.json has no quantization_config, and the other folder.
    """
    quantized, plain = folder / "quantized" / "model", folder / "plain" / "model"
    model = zoo.ZOO[architecture]()
    for each in (quantized, plain):
        model.save_pretrained(each)
        zoo.tokenizer().save_pretrained(each)
    stored, values = {}, {}
    for name, tensor in load_file(quantized / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            parts, values[name] = encode(name.removesuffix(".weight"), tensor)
            stored |= parts
        else:
            stored[name] = values[name] = tensor
    for each, tensors in ((quantized, stored), (plain, values)):
        save_file({name: x.contiguous() for name, x in tensors.items()}, each / "model.safetensors", {"format": "pt"})
    return quantized, plain
