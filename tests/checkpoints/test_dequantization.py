"""Quantised checkpoints are read as if they were stored with the values that they stand for."""

from pathlib import Path
from typing import Any

import pytest
import reference
import torch
import zoo
from quantized_layouts import LAYOUTS, save_quantized
from safetensors.torch import load_file, save_file

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.checkpoints.checkpoint import Checkpoint, ranges_of
from embspace_lens.checkpoints.dequantization import dequantized, format_name, unquantized_config
from embspace_lens.weights.booting import boot, boot_offloaded

MODULE = "model.layers.0.mlp.down_proj"
WEIGHT = f"{MODULE}.weight"


def settings_of(name: str) -> dict[str, Any]:
    layout = LAYOUTS[name]
    if layout.package is not None:
        pytest.importorskip(layout.package)
    return {"quantization_config": layout.settings}


def stored(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    save_file({name: x.contiguous() for name, x in tensors.items()}, tmp_path / "model.safetensors")
    return Checkpoint.of_folder(tmp_path)


def one_weight(name: str, tmp_path: Path, **changes: Any) -> Checkpoint:
    """A checkpoint of one weight; `changes` replace its parts, or remove them."""
    tensors, _ = LAYOUTS[name].encode(MODULE, 0.2 * torch.randn(32, 48))
    for part, tensor in changes.items():
        tensors.pop(f"{MODULE}.{part}") if tensor is None else tensors.update({f"{MODULE}.{part}": tensor})
    return stored(tmp_path, tensors)


def assert_equal_tables(a: EmbeddingLens, b: EmbeddingLens) -> None:
    readings = [
        lambda lens: lens.neurons(k=2),
        lambda lens: lens.subheads(k=2),
        lambda lens: lens.ov(k=2),
        lambda lens: lens.qk(k=2),
        lambda lens: lens.singular(k=2),
        lambda lens: lens.search(5),
        lambda lens: lens.components().drop(columns="dtype"),
    ]
    for read in readings:
        outcomes = []
        for lens in (a, b):
            try:
                outcomes.append(read(lens).to_csv())
            except EmbspaceError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("name", LAYOUTS)
def test_weight_has_the_values_of_the_definition(name, tmp_path):
    config = settings_of(name)
    tensors, values = LAYOUTS[name].encode(MODULE, 0.2 * torch.randn(32, 48))
    weight = dequantized(stored(tmp_path, tensors), config)[WEIGHT]
    assert weight.shape == (32, 48)
    assert weight.dtype == weight.read().dtype == values.dtype
    assert torch.equal(weight.read(), values)
    assert torch.equal(weight[3].read(), values[3])


@pytest.mark.parametrize("name", LAYOUTS)
def test_format_is_named_in_words(name):
    config = {"quantization_config": LAYOUTS[name].settings}
    assert format_name(config) == format_name({"text_config": config}) == LAYOUTS[name].name


@pytest.mark.parametrize("name", LAYOUTS)
def test_tables_equal_those_of_the_dequantized_model(name, tmp_path):
    config = settings_of(name)
    folder, plain = save_quantized("llama", tmp_path, LAYOUTS[name].encode)
    checkpoint = Checkpoint.of_folder(folder)
    parameters = dequantized(checkpoint, config)
    before = checkpoint.files.bytes_read
    model = boot_offloaded(str(folder), parameters)
    assert checkpoint.files.bytes_read == before
    assert_equal_tables(EmbeddingLens(model), EmbeddingLens(boot(str(plain))))


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_moe"])
def test_tables_of_a_mixture_equal_those_of_the_dequantized_model(name, tmp_path):
    folder, plain = save_quantized(name, tmp_path, LAYOUTS["fp8"].encode)
    parameters = dequantized(Checkpoint.of_folder(folder), settings_of("fp8"))
    assert_equal_tables(EmbeddingLens(boot_offloaded(str(folder), parameters)), EmbeddingLens(boot(str(plain))))


@pytest.fixture
def gpt_oss(tmp_path):
    """Folders of a model whose experts are in MXFP4, and of the same model with their values."""
    model = zoo._build("gpt_oss", *zoo._TABLE["gpt_oss"][:2], zoo._TABLE["gpt_oss"][2] | {"intermediate_size": 64})
    folder, plain = tmp_path / "quantized" / "model", tmp_path / "plain" / "model"
    for each in (folder, plain):
        model.save_pretrained(each)
        zoo.tokenizer().save_pretrained(each)
    tensors, values = {}, load_file(folder / "model.safetensors")
    for name, tensor in list(values.items()):
        if name.endswith(("gate_up_proj", "down_proj")):
            n_experts, n_inputs, n_outputs = tensor.shape
            blocks = torch.randint(0, 256, (n_experts, n_outputs, n_inputs // 32, 16), dtype=torch.uint8)
            scales = torch.randint(123, 126, blocks.shape[:-1], dtype=torch.uint8)
            tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            values[name] = reference.brute_mxfp4(blocks, scales).float()
        else:
            tensors[name] = tensor
    for each, content in ((folder, tensors), (plain, values)):
        save_file({key: x.contiguous() for key, x in content.items()}, each / "model.safetensors", {"format": "pt"})
    return folder, plain


MXFP4 = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}}


def test_tables_of_gpt_oss_equal_those_of_the_dequantized_model(gpt_oss):
    folder, plain = gpt_oss
    parameters = dequantized(Checkpoint.of_folder(folder), MXFP4)
    assert_equal_tables(EmbeddingLens(boot_offloaded(str(folder), parameters)), EmbeddingLens(boot(str(plain))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_expert_reads_only_its_bytes(dtype, gpt_oss):
    checkpoint = Checkpoint.of_folder(gpt_oss[0])
    before = checkpoint.files.bytes_read
    stack = dequantized(checkpoint, MXFP4)["model.layers.0.mlp.experts.gate_up_proj"].to(dtype)
    expert = stack[1]
    assert checkpoint.files.bytes_read == before
    values = expert.read()
    n_bytes = values.numel() // 2 + values.numel() // 32
    assert checkpoint.files.bytes_read - before == n_bytes
    assert sum(stop - start for _, start, stop in ranges_of(expert)) == n_bytes
    assert torch.equal(values, stack.read()[1])


def test_one_expert_of_a_stack_in_fp8_reads_only_its_bytes(tmp_path):
    weight = torch.randn(3, 40, 48).to(torch.float8_e4m3fn)
    scale = torch.rand(3, 2, 2)
    checkpoint = stored(tmp_path, {"experts.up_proj": weight, "experts.up_proj_scale_inv": scale})
    stack = dequantized(checkpoint, settings_of("fp8"))["experts.up_proj"]
    before = checkpoint.files.bytes_read
    assert torch.equal(stack[2].read(), reference.brute_fp8(weight[2], scale[2], (20, 24)))
    assert checkpoint.files.bytes_read - before == 40 * 48 + 4 * 4


def test_values_equal_those_of_transformers():
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    from embspace_lens.checkpoints.quantized_formats import fp8, mxfp4

    blocks = torch.randint(0, 256, (3, 8, 2, 16), dtype=torch.uint8)
    scales = torch.randint(100, 140, (3, 8, 2), dtype=torch.uint8)
    assert torch.equal(mxfp4.unpacked(blocks, scales), convert_moe_packed_tensors(blocks, scales))
    weight, scale = torch.randn(40, 48).to(torch.float8_e4m3fn), torch.rand(2, 2)
    assert torch.equal(fp8.multiplied(weight, scale, [20, 24]), Fp8Dequantize(None)._dequantize_one(weight, scale))


def test_unquantized_checkpoint_is_returned_unchanged(tmp_path):
    checkpoint = stored(tmp_path, {WEIGHT: torch.ones(2, 2)})
    assert dequantized(checkpoint, {"hidden_size": 2}) is checkpoint
    assert format_name({"hidden_size": 2}) == ""


def test_configuration_loses_only_its_quantization():
    settings = {"quant_method": "fp8"}
    config = {"a": 1, "quantization_config": settings, "text_config": {"b": 2, "compression_config": settings}}
    assert unquantized_config(config) == {"a": 1, "text_config": {"b": 2}}
    assert config["quantization_config"] is settings
