"""Quantised checkpoints are read as if they were stored with the values that they stand for."""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import reference
import torch
import zoo
from laws import same_tokens
from quantized_layouts import LAYOUTS, save_quantized
from safetensors.torch import load_file, save_file

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.checkpoints.checkpoint import Checkpoint, ranges_of
from embspace_lens.checkpoints.dequantization import dequantized, format_name, unquantized_config
from embspace_lens.checkpoints.quantized_formats import fp8, mxfp4
from embspace_lens.weights.booting import boot
from embspace_lens.weights.offloading import boot_offloaded

MODULE = "model.layers.0.mlp.down_proj"
WEIGHT = f"{MODULE}.weight"
MXFP4 = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}}


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
        lambda lens: lens.components().drop(columns=["dtype", "note"]),
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
    parameters = dequantized(stored(tmp_path, tensors), config)
    (weight,) = parameters.values()
    assert list(parameters) == [WEIGHT]
    assert weight.shape == (32, 48)
    assert weight.dtype == weight.read().dtype == values.dtype
    assert torch.equal(weight.read(), values)
    assert torch.equal(weight[3].read(), values[3])


@pytest.mark.parametrize("name", LAYOUTS)
def test_format_is_named_in_words(name):
    config = {"quantization_config": LAYOUTS[name].settings}
    assert format_name(config) == format_name({"text_config": config}) == LAYOUTS[name].name


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "fp8" else pytest.mark.full) for n in LAYOUTS])
def test_tables_equal_those_of_the_dequantized_model(name, tmp_path):
    config = settings_of(name)
    folder, plain = save_quantized("llama", tmp_path, LAYOUTS[name].encode)
    checkpoint = Checkpoint.of_folder(folder)
    parameters = dequantized(checkpoint, config)
    assert parameters.files is checkpoint.files and parameters.n_bytes == checkpoint.n_bytes
    assert parameters.n_parameters == Checkpoint.of_folder(plain).n_parameters
    before = checkpoint.files.bytes_read
    model = boot_offloaded(str(folder), parameters)
    assert checkpoint.files.bytes_read == before
    assert_equal_tables(EmbeddingLens(model), EmbeddingLens(boot(str(plain))))


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_moe"])
def test_tables_of_a_mixture_equal_those_of_the_dequantized_model(name, tmp_path):
    folder, plain = save_quantized(name, tmp_path, LAYOUTS["fp8"].encode)
    parameters = dequantized(Checkpoint.of_folder(folder), settings_of("fp8"))
    assert_equal_tables(EmbeddingLens(boot_offloaded(str(folder), parameters)), EmbeddingLens(boot(str(plain))))


def test_quantised_folders_are_read_by_name_and_their_components_name_the_format(tmp_path):
    folder, plain = save_quantized("llama", tmp_path, LAYOUTS["fp8"].encode)
    configuration = json.loads((folder / "config.json").read_text()) | settings_of("fp8")
    (folder / "config.json").write_text(json.dumps(configuration))
    lens = EmbeddingLens.from_pretrained(folder)
    assert lens.weights.is_offloaded and lens.name == folder.name
    pd.testing.assert_frame_equal(lens.neurons(k=2), EmbeddingLens.from_pretrained(plain).neurons(k=2))
    assert lens.components()["note"].str.contains("dequantised from FP8 in blocks of").all()
    with pytest.raises(EmbspaceError, match=r"is quantised: .*offload=True"):
        EmbeddingLens.from_pretrained(folder, offload=False)


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
            values[name] = reference.brute_mxfp4(blocks, scales).bfloat16()
        else:
            tensors[name] = tensor
    for each, content in ((folder, tensors), (plain, values)):
        save_file({key: x.contiguous() for key, x in content.items()}, each / "model.safetensors", {"format": "pt"})
    return folder, plain


@pytest.mark.full
def test_tables_of_gpt_oss_equal_those_of_the_dequantized_model(gpt_oss):
    folder, plain = gpt_oss
    parameters = dequantized(Checkpoint.of_folder(folder), MXFP4)
    model = boot_offloaded(str(folder), parameters)
    # A model in memory holds these weights in float32, with other strides: its sums are rounded in another order.
    assert_equal_tables(EmbeddingLens(model), EmbeddingLens(boot_offloaded(str(plain), Checkpoint.of_folder(plain))))
    a, b = (EmbeddingLens(each).neurons(k=2) for each in (model, boot(str(plain))))
    same_tokens(a, b, tolerance=1e-6)


def packed_experts(n_rows: int = 8) -> dict[str, torch.Tensor]:
    blocks = torch.randint(0, 256, (3, n_rows, 2, 16), dtype=torch.uint8)
    return {"experts.w_blocks": blocks, "experts.w_scales": torch.randint(100, 140, (3, n_rows, 2), dtype=torch.uint8)}


def test_stack_of_experts_in_mxfp4_has_the_values_of_the_definition(tmp_path):
    parts = packed_experts()
    stack = dequantized(stored(tmp_path, parts), MXFP4)["experts.w"]
    assert stack.shape == (3, 64, 8) and stack.dtype == stack.read().dtype == torch.bfloat16
    assert torch.equal(stack.read().double(), reference.brute_mxfp4(*parts.values()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_one_expert_reads_only_its_bytes(dtype, tmp_path):
    checkpoint = stored(tmp_path, packed_experts())
    before = checkpoint.files.bytes_read
    stack = dequantized(checkpoint, MXFP4)["experts.w"].to(dtype)
    expert = stack[1]
    assert checkpoint.files.bytes_read == before
    values = expert.read()
    n_bytes = 8 * 2 * (16 + 1)
    assert checkpoint.files.bytes_read - before == n_bytes
    assert sum(stop - start for _, start, stop in ranges_of(expert)) == n_bytes
    assert torch.equal(values, stack.read()[1])
    assert torch.equal(expert[5].read(), values[5])


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

    parts = packed_experts()
    assert torch.equal(mxfp4.unpacked(*parts.values()), convert_moe_packed_tensors(*parts.values()))
    weight, scale = torch.randn(40, 48).to(torch.float8_e4m3fn), torch.rand(2, 2)
    assert torch.equal(fp8.multiplied(weight, scale, [20, 24]), Fp8Dequantize(None)._dequantize_one(weight, scale))


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_that_bitsandbytes_quantized_has_the_values_of_bitsandbytes(kind, nested, dtype, tmp_path):
    functional = pytest.importorskip("bitsandbytes").functional
    weight = torch.randn(6, 64 * 100).to(dtype)
    packed, state = functional.quantize_4bit(weight, quant_type=kind, compress_statistics=nested, blocksize=64)
    parts = {f"{WEIGHT}.{part}": tensor for part, tensor in state.as_dict(packed=True).items()}
    config = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    values = dequantized(stored(tmp_path, parts | {WEIGHT: packed}), config)[WEIGHT].read()
    assert torch.equal(values, functional.dequantize_4bit(packed, state))


def test_weight_in_awq_has_the_values_of_compressed_tensors():
    converters = pytest.importorskip("compressed_tensors.entrypoints.convert.converters.autoawq")
    from compressed_tensors.compressors import BaseCompressor

    parts, values = LAYOUTS["awq"].encode(MODULE, torch.empty(32, 48))
    converter = converters.AutoAWQConverter(group_size=16)
    (group,) = converter.update_config(None).config_groups.values()
    state = {name.removeprefix(f"{MODULE}."): x for name, x in converter.process(parts).items()}
    assert torch.equal(
        BaseCompressor.get_value_from_registry("pack-quantized").decompress(state, group)["weight"], values
    )


@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if layout.package == "compressed_tensors"])
def test_layout_equals_the_one_that_compressed_tensors_writes(name):
    settings = settings_of(name)["quantization_config"]
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    parts, values = LAYOUTS[name].encode(MODULE, torch.empty(32, 48))
    parts = {key.removeprefix(f"{MODULE}."): tensor for key, tensor in parts.items()}
    plain = {"weight": values, "weight_scale": parts["weight_scale"]}
    if "weight_zero_point" in parts:
        plain["weight_zero_point"] = torch.zeros(parts["weight_scale"].shape, dtype=torch.int8)
    compressor = BaseCompressor.get_value_from_registry(settings["format"])
    written = compressor.compress(plain, QuantizationScheme.model_validate(settings["config_groups"]["group_0"]))
    assert {key: (x.shape, x.dtype) for key, x in written.items()} == {
        key: (x.shape, x.dtype) for key, x in parts.items()
    }


def test_unquantized_checkpoint_is_returned_unchanged(tmp_path):
    checkpoint = stored(tmp_path, {WEIGHT: torch.ones(2, 2)})
    assert dequantized(checkpoint, {"hidden_size": 2}) is checkpoint
    assert format_name({"hidden_size": 2}) == ""


def test_configuration_loses_only_its_quantization():
    settings = {"quant_method": "fp8"}
    config = {"a": 1, "quantization_config": settings, "text_config": {"b": 2, "compression_config": settings}}
    assert unquantized_config(config) == {"a": 1, "text_config": {"b": 2}}
    assert config["quantization_config"] is settings


FIX = "Is a file missing, or is config.json of another model?"
PLAIN = "Use a checkpoint of the model in bf16."


@pytest.mark.parametrize(
    ("settings", "format_name"),
    [
        ({"quant_method": "gptq", "bits": 4}, "GPTQ"),
        ({"quant_method": "hqq"}, "HQQ"),
        ({"bits": 4}, "AN UNKNOWN FORMAT"),
    ],
)
def test_unknown_format_is_refused_by_name(settings, format_name, tmp_path):
    message = (
        f"Checkpoints in {format_name} are not read. Use a checkpoint of the model in bf16, or in one of FP8, MXFP8, MXFP4, "
        "compressed-tensors, bitsandbytes, AWQ, GGUF."
    )
    with pytest.raises(EmbspaceError) as error:
        dequantized(stored(tmp_path, {WEIGHT: torch.ones(2, 2)}), {"quantization_config": settings})
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("name", "part", "asked"),
    [
        ("fp8", "weight_scale_inv", "weight_scale_inv"),
        ("fbgemm_fp8", "weight_scale", "weight_scale"),
        ("int8_per_row", "weight_scale", "weight_scale"),
        ("int4", "weight_scale", "weight_scale"),
        ("int4", "weight_shape", "weight_shape"),
        ("int4", "weight_packed", "weight_packed"),
        ("int4_with_zero_points", "weight_zero_point", "weight_zero_point"),
        ("nf4", "weight.absmax", "weight.absmax"),
        ("nf4", "weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__nf4"),
        ("nf4_nested", "weight.nested_absmax", "weight.nested_absmax"),
        ("bnb_int8", "SCB", "SCB"),
        ("awq", "scales", "scales"),
        ("awq", "qzeros", "qzeros"),
    ],
)
def test_missing_part_of_a_weight_is_named(name, part, asked, tmp_path):
    config = settings_of(name)
    with pytest.raises(EmbspaceError) as error:
        dequantized(one_weight(name, tmp_path, **{part: None}), config)
    missing = f"its checkpoint holds no {MODULE}.{asked}, which its values depend on. {FIX}"
    assert str(error.value) == f"{WEIGHT} is stored in {LAYOUTS[name].name}, but {missing}"


def test_missing_scales_of_experts_are_named(tmp_path):
    parts = packed_experts()
    del parts["experts.w_scales"]
    with pytest.raises(
        EmbspaceError, match="experts.w is stored in MXFP4, but its checkpoint holds no experts.w_scales"
    ):
        dequantized(stored(tmp_path, parts), MXFP4)


@pytest.mark.parametrize(
    ("name", "part", "tensor", "needed"),
    [
        ("fp8", "weight_scale_inv", torch.ones(3, 2), (2, 2)),
        ("fp8_per_tensor", "weight_scale_inv", torch.ones(2, 2), (32, 1)),
        ("fbgemm_fp8", "weight_scale", torch.ones(32), (32, 1)),
        ("int8_per_row", "weight_scale", torch.ones(32, 3).bfloat16(), (32, 1)),
        ("float8_per_tensor", "weight_scale", torch.ones(32, 1).bfloat16(), (1,)),
        ("float8_in_blocks", "weight_scale", torch.ones(1, 2).bfloat16(), (2, 2)),
        ("int4", "weight_packed", torch.ones(32, 5).int(), (32, 6)),
        ("int4", "weight_scale", torch.tensor(1.0).bfloat16(), (32, 3)),
        ("int4_with_zero_points", "weight_zero_point", torch.ones(32, 3).int(), (4, 3)),
        ("nf4", "weight.absmax", torch.ones(23), (24,)),
        ("nf4_nested", "weight.nested_absmax", torch.ones(2), (1,)),
        ("bnb_int8", "SCB", torch.ones(48), (32,)),
        ("awq", "scales", torch.ones(2, 32).half(), (3, 32)),
        ("awq", "qzeros", torch.ones(3, 3).int(), (3, 4)),
    ],
)
def test_part_whose_shape_does_not_fit_its_weight_is_named(name, part, tensor, needed, tmp_path):
    config = settings_of(name)
    with pytest.raises(EmbspaceError) as error:
        dequantized(one_weight(name, tmp_path, **{part: tensor}), config)
    shapes = f"has shape {tuple(tensor.shape)}, but {WEIGHT} in {LAYOUTS[name].name} needs {needed}."
    assert str(error.value) == f"{MODULE}.{part} {shapes} Is config.json of another model?"


@pytest.mark.parametrize(
    ("part", "tensor", "message"),
    [
        ("w_scales", torch.ones(3, 8, 1).byte(), r"has shape (3, 8, 1), but experts.w in MXFP4 needs (3, 8, 2)"),
        (
            "w_blocks",
            torch.ones(3, 8, 2, 8).byte(),
            r"has shape (3, 8, 2, 8), but experts.w in MXFP4 needs (3, 8, 2, 16)",
        ),
    ],
)
def test_part_whose_shape_does_not_fit_its_experts_is_named(part, tensor, message, tmp_path):
    with pytest.raises(EmbspaceError) as error:
        dequantized(stored(tmp_path, packed_experts() | {f"experts.{part}": tensor}), MXFP4)
    assert f"experts.{part} {message}" in str(error.value)


UNNAMED = LAYOUTS["int4"].settings["config_groups"]["group_0"] | {"targets": ["re:.*attn.*"]}


def changed(name: str, **settings: Any) -> dict[str, Any]:
    return LAYOUTS[name].settings | settings


@pytest.mark.parametrize(
    ("name", "settings", "parts", "setting"),
    [
        ("int4", {"format": "nvfp4-pack-quantized"}, {}, "the format nvfp4-pack-quantized"),
        ("int4", {"format": "dense"}, {}, "the format dense"),
        ("int4", {"config_groups": {}}, {}, "no config_groups"),
        ("int4", {"config_groups": {"g": UNNAMED}}, {}, f"no group of settings for {MODULE}"),
        ("int4", {"transform_config": {"config_groups": {"R1": {}}}}, {}, "rotated weights (transform_config)"),
        ("int4", {"sparsity_config": {"format": "sparse-24-bitmask"}}, {}, "sparse weights (sparse-24-bitmask)"),
        ("int4", {}, {"weight_g_idx": torch.ones(48).int()}, "columns reordered by activations (g_idx)"),
        ("int4", {}, {"weight_global_scale": torch.ones(1)}, "two levels of scales"),
        ("awq", {"version": "gemv"}, {}, "4 bits in the layout gemv"),
        ("awq", {"bits": 8}, {}, "8 bits in the layout gemm"),
    ],
)
def test_setting_that_is_not_read_is_refused(name, settings, parts, setting, tmp_path):
    settings_of(name)
    config = {"quantization_config": changed(name, **settings)}
    with pytest.raises(EmbspaceError) as error:
        dequantized(one_weight(name, tmp_path, **parts), config)
    assert str(error.value) == f"Checkpoints in {format_name(config)} with {setting} are not read. {PLAIN}"


def test_setting_that_the_package_does_not_know_is_refused(tmp_path):
    settings_of("int4")
    group = LAYOUTS["int4"].settings["config_groups"]["group_0"]
    group = group | {"weights": group["weights"] | {"num_bits": "many"}}
    config = {"quantization_config": changed("int4", config_groups={"group_0": group})}
    with pytest.raises(EmbspaceError, match=r"with these settings: .*num_bits .* are not read"):
        dequantized(one_weight("int4", tmp_path), config)


def test_weight_in_another_precision_than_its_format_is_refused(tmp_path):
    checkpoint = stored(tmp_path, {WEIGHT: torch.ones(2, 2).to(torch.int8)})
    message = f"{WEIGHT} is stored as int8, which is not read in a checkpoint in FP8 in blocks of 20 × 24. {PLAIN}"
    with pytest.raises(EmbspaceError) as error:
        dequantized(checkpoint, settings_of("fp8"))
    assert str(error.value) == message


def test_shape_that_the_checkpoint_states_is_checked_when_the_weight_is_read(tmp_path):
    config = settings_of("int4")
    weight = dequantized(one_weight("int4", tmp_path, weight_shape=torch.tensor([32, 47])), config)[WEIGHT]
    with pytest.raises(EmbspaceError, match=r"has shape \(32, 48\), but .*weight_shape in .* needs \(32, 47\)"):
        weight.read()


def test_int8_weight_in_another_layout_is_refused_when_it_is_read(tmp_path):
    checkpoint = one_weight("bnb_int8", tmp_path, weight_format=torch.tensor(1, dtype=torch.uint8))
    weight = dequantized(checkpoint, settings_of("bnb_int8"))[WEIGHT]
    with pytest.raises(
        EmbspaceError, match="bitsandbytes int8 with weights that are not stored row by row are not read"
    ):
        weight.read()


@pytest.mark.parametrize("state", [b"{", b"[]", b'{"shape": [32, 48], "blocksize": 64, "dtype": "nn"}'])
def test_damaged_state_is_named(state, tmp_path):
    part = "weight.quant_state.bitsandbytes__nf4"
    checkpoint = one_weight("nf4", tmp_path, **{part: torch.tensor(list(state), dtype=torch.uint8)})
    with pytest.raises(
        EmbspaceError, match="bitsandbytes__nf4 is truncated or damaged: it is not a quantization state"
    ):
        dequantized(checkpoint, settings_of("nf4"))


def test_missing_package_is_named(tmp_path, monkeypatch):
    checkpoint = one_weight("int4", tmp_path)
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    with pytest.raises(EmbspaceError) as error:
        dequantized(checkpoint, {"quantization_config": LAYOUTS["int4"].settings})
    start = "Checkpoints in compressed-tensors int4 in groups of 16 need the package compressed_tensors"
    assert str(error.value).startswith(start)
    assert str(error.value).endswith("pip install 'embspace-lens[quantized]'.")


def test_module_is_read_by_the_group_that_names_it(tmp_path):
    config = settings_of("int4")
    parts, values = LAYOUTS["int4"].encode("layers.0.experts.1.up_proj", torch.empty(32, 48))
    others, other_values = LAYOUTS["float8_per_row"].encode("layers.0.self_attn.q_proj", torch.empty(32, 48))
    (int4,), (float8,) = (LAYOUTS[name].settings["config_groups"].values() for name in ("int4", "float8_per_row"))
    groups = {
        "group_0": float8 | {"format": "float-quantized"},
        "group_1": int4 | {"targets": ["re:.*experts.*"], "format": "pack-quantized"},
    }
    config = {"quantization_config": changed("int4", format="mixed-precision", config_groups=groups)}
    tensors = dequantized(stored(tmp_path, parts | others), config)
    assert torch.equal(tensors["layers.0.experts.1.up_proj.weight"].read(), values)
    assert torch.equal(tensors["layers.0.self_attn.q_proj.weight"].read(), other_values)
    assert format_name(config) == "compressed-tensors FP8 per row and int4 in groups of 16"
