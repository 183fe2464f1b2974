"""GGUF checkpoints are read as the model with the dequantised weights, and only the tensors that a table needs are read."""

import functools
import re
import sys
from pathlib import Path
from typing import Any

import gguf_files  # skips this module where the package gguf is not installed
import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from gguf_files import gguf, model_of, saved, write_gguf
from reference import DEQUANTIZERS

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.checkpoints.checkpoint import ranges_of
from embspace_lens.checkpoints.gguf_checkpoint import gguf_in, open_gguf
from embspace_lens.checkpoints.gguf_file import dequantized
from embspace_lens.checkpoints.lazy_tensor import LazyTensor
from embspace_lens.weights.booting import boot
from embspace_lens.weights.offloading import boot_gguf

SIZES: dict[str, Any] = dict(
    vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=24, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    pad_token_id=0,
)  # fmt: skip
TIED = SIZES | dict(tie_word_embeddings=True, head_dim=16)
GPT: dict[str, Any] = dict(vocab_size=97, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
EXPERTS: dict[str, Any] = dict(moe_intermediate_size=32, num_experts=3, num_experts_per_tok=2)
EXPERT_KEYS = dict(expert_count=3, expert_used_count=2, expert_feed_forward_length=32)
LLAMA = transformers.LlamaConfig(
    **SIZES | dict(hidden_size=256, intermediate_size=256, head_dim=64, num_hidden_layers=1)
)
K_QUANTS = {"ffn_down": "Q6_K", "attn_v": "Q6_K", "token_embd": "Q8_0", "": "Q4_K"}

# A configuration, the types of matrices by a part of their names, and more metadata.
CASES: dict[str, tuple[Any, dict[str, str], dict[str, int]]] = {
    "llama": (LLAMA, K_QUANTS, {}),
    "gpt2": (transformers.GPT2Config(**GPT, n_embd=64, n_positions=24), {"": "F16"}, {}),
    "qwen2": (transformers.Qwen2Config(**SIZES), {"": "Q8_0"}, {}),
    "qwen3": (transformers.Qwen3Config(**SIZES, head_dim=32), {"": "Q4_0"}, {}),
    "qwen2moe": (
        transformers.Qwen2MoeConfig(**SIZES, **EXPERTS, shared_expert_intermediate_size=64),
        {"gate_inp": "F32", "": "Q4_0"},
        EXPERT_KEYS | dict(expert_shared_feed_forward_length=64),
    ),
    "qwen3moe": (
        transformers.Qwen3MoeConfig(**SIZES, **EXPERTS, head_dim=32, norm_topk_prob=True),
        {"gate_inp": "F32", "": "Q8_0"},
        EXPERT_KEYS,
    ),
    "gemma2": (transformers.Gemma2Config(**TIED), {"": "BF16"}, {}),
    "gemma3": (transformers.Gemma3TextConfig(**TIED), {"": "Q8_0"}, {}),
    "bloom": (transformers.BloomConfig(**GPT, hidden_size=64), {"": "F16"}, {}),
    "phi3": (transformers.Phi3Config(**SIZES), {"": "Q8_0"}, {}),
    "starcoder2": (transformers.Starcoder2Config(**SIZES), {"": "Q8_0"}, {}),
    "nemotron": (transformers.NemotronConfig(**SIZES), {"": "Q8_0"}, {}),
    "stablelm": (transformers.StableLmConfig(**SIZES), {"": "Q8_0"}, {}),
}
READINGS = {
    "neurons": lambda lens: lens.neurons(k=2),
    "subheads": lambda lens: lens.subheads(k=2),
    "ov": lambda lens: lens.ov(k=2),
    "qk": lambda lens: lens.qk(k=2),
    "qk at a distance": lambda lens: lens.qk(k=2, distance=3),
    "singular": lambda lens: lens.singular(k=2),
    "search": lambda lens: lens.search(5),
    "components": lambda lens: lens.components().drop(columns=["dtype", "note"]),  # they state the format of the file
}


@functools.cache
def case_model(name: str) -> Any:
    return model_of(CASES[name][0])


def written(name: str, folder: Path, **options: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    """A GGUF file, and the weights in it."""
    _, types, metadata = CASES[name]
    path = folder / f"{name}.gguf"
    return path, write_gguf(path, case_model(name), types, **metadata, **options)


def reading(lens: EmbeddingLens, name: str) -> pd.DataFrame | str:
    try:
        return READINGS[name](lens)
    except EmbspaceError as error:  # such as: this model has no rotary positions
        return str(error)


def assert_same_tables(lens: EmbeddingLens, other: EmbeddingLens, exact: bool = True) -> None:
    """The tables of two models; with `exact`, to the last bit."""
    tolerance: dict[str, Any] = dict(check_exact=True) if exact else dict(rtol=1e-5, atol=1e-6)
    for name in READINGS:
        table, expected = reading(lens, name), reading(other, name)
        if isinstance(expected, str):
            assert table == expected
        else:
            pd.testing.assert_frame_equal(table, expected, obj=name, **tolerance)


def in_memory(folder: Path, name: str, weights: dict[str, torch.Tensor], tokenizer: Any) -> EmbeddingLens:
    return EmbeddingLens(boot(str(saved(folder / "in_memory" / name, case_model(name), weights, tokenizer))))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full if name in ("qwen3moe", "gemma3") else ()) for name in CASES]
)
def test_tables_equal_those_of_the_dequantised_model_in_memory(name, tmp_path):
    path, weights = written(name, tmp_path)
    model = boot_gguf(path)
    exact = not {"F16", "BF16"} & set(CASES[name][1].values())  # these stay in half precision until they are multiplied
    assert_same_tables(EmbeddingLens(model), in_memory(tmp_path, name, weights, model.tokenizer), exact)


def test_files_and_folders_are_read_by_name_and_their_components_name_the_format(tmp_path):
    path, _ = written("llama", tmp_path)
    expected = EmbeddingLens(boot_gguf(path)).neurons(k=2)
    for name in (path, str(path.parent)):
        lens = EmbeddingLens.from_pretrained(name)
        pd.testing.assert_frame_equal(lens.neurons(k=2), expected)
    assert lens.components()["note"].str.contains(r"dequantised from GGUF \(").all()
    with pytest.raises(EmbspaceError, match="offload=True"):
        EmbeddingLens.from_pretrained(path, offload=False)
    (tmp_path / "damaged").mkdir()
    damaged = tmp_path / "damaged" / "model.gguf"
    damaged.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(EmbspaceError, match="truncated or damaged"):
        EmbeddingLens.from_pretrained(damaged)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2moe", "gemma2"])
def test_parameters_equal_those_that_transformers_loads(name, tmp_path):
    path, _ = written(name, tmp_path)
    checkpoint = open_gguf(path)
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(tmp_path, gguf_file=path.name, config=checkpoint.config, dtype=torch.float32)
    parameters = dict(model.named_parameters())
    assert parameters.keys() <= checkpoint.keys()
    for parameter_name, parameter in parameters.items():
        assert torch.equal(checkpoint[parameter_name].read().float(), parameter), parameter_name


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
def test_tokenizer_is_that_of_transformers(name, tmp_path):
    path, _ = written(name, tmp_path)
    open_gguf(path).save_configuration(tmp_path / "files")
    ours, theirs = (
        transformers.AutoTokenizer.from_pretrained(folder, **options)
        for folder, options in ((tmp_path / "files", {}), (tmp_path, {"gguf_file": path.name}))
    )
    assert ours.get_vocab() == theirs.get_vocab() and len(ours.get_vocab()) == 97
    text = "ab the<|endoftext|>cab"
    assert ours(text) == theirs(text)
    assert (ours.eos_token, ours.bos_token, ours.pad_token) == (theirs.eos_token, theirs.bos_token, theirs.pad_token)


@pytest.mark.parametrize("kind", sorted(DEQUANTIZERS.keys() - gguf_files.UNQUANTIZED))
def test_blocks_are_dequantised_as_their_layout_defines(kind):
    elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = np.random.default_rng(1).integers(0, 256, (3, 4 * size), dtype=np.uint8)
    for start in gguf_files.HALVES[kind]:  # finite numbers
        blocks.reshape(-1, size)[:, start + 1] &= 0b10111111
    values = dequantized(torch.from_numpy(blocks), kind)
    expected = DEQUANTIZERS[kind](blocks, (3, 4 * elements))
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-6)


def test_nothing_is_dequantised_before_it_is_needed_and_an_expert_is_read_alone(tmp_path):
    path, weights = written("qwen2moe", tmp_path)
    checkpoint = open_gguf(path)
    assert checkpoint.files.bytes_read == 0
    name = "model.layers.1.mlp.experts.gate_up_proj"
    stack = checkpoint[name]
    assert isinstance(stack, LazyTensor) and stack.shape == (3, 64, 64)
    expert = stack[2].read()
    assert torch.equal(expert, weights[name][2])
    n_bytes = sum(checkpoint.types[f"blk.1.ffn_{half}_exps.weight"] == "Q4_0" for half in ("gate", "up")) * 32 * 36
    assert checkpoint.files.bytes_read == n_bytes
    assert sum(stop - start for _, start, stop in ranges_of(stack[2])) == n_bytes
    stack[2].read()
    assert checkpoint.files.bytes_read == n_bytes


def test_a_layer_is_read_without_the_others(tmp_path):
    path, _ = written("qwen2", tmp_path)
    model = boot_gguf(path)
    lens = EmbeddingLens(model)
    before = model.checkpoint.files.bytes_read
    lens.neurons(layer=1, k=2)
    mlp = sum(
        stored.n_bytes
        for name, stored in model.checkpoint._file.stored.items()
        if name.startswith("blk.1.ffn_") and "norm" not in name
    )
    assert mlp <= model.checkpoint.files.bytes_read - before <= mlp + 3 * 64 * 4


def test_a_split_checkpoint_is_one_checkpoint(tmp_path):
    whole, _ = written("qwen2", tmp_path)
    folder = tmp_path / "split"
    folder.mkdir()
    write_gguf(folder / "qwen2.gguf", case_model("qwen2"), CASES["qwen2"][1], split=3)
    first = gguf_in(folder)
    assert first is not None and first.name == "qwen2-00001-of-00003.gguf"
    lens = EmbeddingLens(boot_gguf(folder / "qwen2-00002-of-00003.gguf"))
    assert_same_tables(lens, EmbeddingLens(boot_gguf(whole)))
    (folder / "qwen2-00003-of-00003.gguf").unlink()
    with pytest.raises(EmbspaceError, match="one of 3 files of weights is missing, such as qwen2-00003-of-00003.gguf"):
        open_gguf(first)


def test_rotary_frequencies_are_divided_by_the_factors_in_the_file(tmp_path):
    rope = dict(
        rope_type="llama3", rope_theta=10_000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=16,
    )  # fmt: skip
    model = model_of(transformers.LlamaConfig(**SIZES, head_dim=16, rope_parameters=rope))
    plain = 10_000.0 ** (-torch.arange(0, 16, 2).double() / 16)
    factors = (plain / model.model.rotary_emb.inv_freq.double()).float()
    assert factors.max() > 7
    path = tmp_path / "llama.gguf"
    weights = write_gguf(path, model, {"": "F16"}, vectors={"rope_freqs.weight": factors.numpy()})
    bridge = boot_gguf(path)
    expected = EmbeddingLens(boot(str(saved(tmp_path / "llama", model, weights, bridge.tokenizer))))
    table, expected_table = (lens.qk(k=2, distance=3) for lens in (EmbeddingLens(bridge), expected))
    pd.testing.assert_frame_equal(table, expected_table, rtol=1e-5)
    assert not table.equals(EmbeddingLens(bridge).qk(k=2))


def test_scaling_of_positions_that_is_not_read_is_named(tmp_path):
    path = tmp_path / "qwen2.gguf"
    write_gguf(path, case_model("qwen2"), {"": "Q8_0"}, **{"rope.scaling.type": "yarn"})
    with pytest.warns(UserWarning, match=r"qwen2\.gguf scales its rotary positions \(yarn\)"):
        open_gguf(path)


def test_the_model_is_named_after_its_file(tmp_path):
    path, _ = written("qwen2", tmp_path)
    model = boot_gguf(path)
    assert (model.cfg.model_name, EmbeddingLens(model).weights.name) == ("qwen2", "qwen2")


@pytest.fixture
def qwen2(tmp_path: Path) -> Path:
    return written("qwen2", tmp_path)[0]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "model.gguf"
    for content in (b"", b"GG", b"GGML" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(EmbspaceError, match=f"^{re.escape(str(path))} is not a GGUF file: it does not begin with"):
            open_gguf(path)


def test_truncated_files_are_refused_wherever_they_end(qwen2):
    content = qwen2.read_bytes()
    for length in [*range(4, 3000, 37), len(content) // 2, len(content) - 40]:
        qwen2.write_bytes(content[:length])
        with pytest.raises(EmbspaceError, match=r"qwen2\.gguf is truncated or damaged: .*Download or copy it again\.$"):
            open_gguf(qwen2)


def test_damaged_headers_are_refused_or_read_without_other_errors(qwen2):
    content = bytearray(qwen2.read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(200):
        position = int(rng.integers(4, 4000))
        damaged = content.copy()
        damaged[position] ^= int(rng.integers(1, 256))
        qwen2.write_bytes(damaged)
        try:
            open_gguf(qwen2)
        except EmbspaceError:
            pass


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (99, "stores output_norm.weight as type 99, which the installed"),
        (9, "stores output_norm.weight as Q8_1, which"),
    ],
)
def test_types_without_a_dequantiser_are_refused(number, message, qwen2):
    content = bytearray(qwen2.read_bytes())
    name = b"output_norm.weight"
    position = content.index(name) + len(name) + 4 + 8  # after the name: 1 dimension, its size
    content[position : position + 4] = number.to_bytes(4, "little")
    qwen2.write_bytes(content)
    with pytest.raises(EmbspaceError, match=message):
        open_gguf(qwen2)


@pytest.mark.parametrize("architecture", ["rwkv7", "gpt-oss", "qwen35"])
def test_architectures_that_transformers_does_not_read_are_refused(architecture, tmp_path):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(EmbspaceError, match=f"has the architecture '{architecture}', which transformers does not read"):
        open_gguf(path)


def test_llama_with_experts_is_refused(tmp_path):
    path = tmp_path / "mixtral.gguf"
    write_gguf(path, case_model("llama"), {"": "F16"}, expert_count=8)
    with pytest.raises(EmbspaceError, match="has the architecture 'llama with experts', which transformers"):
        open_gguf(path)


def test_a_missing_tensor_is_named_with_the_file(qwen2, tmp_path):
    content = qwen2.read_bytes()
    qwen2.write_bytes(content.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xy.weight"))
    with pytest.raises(
        EmbspaceError, match=r"qwen2\.gguf could not be loaded: its files hold no model.layers.1.mlp.up_proj"
    ):
        boot_gguf(qwen2)


def test_a_tokenizer_that_cannot_be_made_is_reported(qwen2):
    content = qwen2.read_bytes()
    key = b"tokenizer.ggml.model"
    position = content.index(key) + len(key) + 4 + 8
    qwen2.write_bytes(content[:position] + b"gptX" + content[position + 4 :])
    with pytest.raises(EmbspaceError, match="transformers cannot make the tokenizer from the file's metadata"):
        boot_gguf(qwen2)


def test_a_folder_with_several_files_asks_for_one(tmp_path):
    assert gguf_in(tmp_path) is None
    for name in ("a-Q4_K_M.gguf", "mmproj.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(
        EmbspaceError, match=r"holds 2 GGUF files \(a-Q4_K_M\.gguf, mmproj\.gguf\)\. Give the path of one"
    ):
        gguf_in(tmp_path)


def test_the_missing_package_is_named(qwen2, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(EmbspaceError, match=r"This needs gguf, .* pip install 'embspace-lens\[gguf\]'\."):
        open_gguf(qwen2)
