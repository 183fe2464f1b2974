"""Weights that a model lacks, or that cannot be read correctly, raise an error that states the reason."""

import pytest
import torch
import zoo
from oracle_cases import ATTENTION, error, expectations, fresh, readings, shared
from torch import nn
from unchecked import unchecked_types

from embspace_lens.errors import EmbspaceError
from embspace_lens.weights.effective import Weights


def check_message(error: pytest.ExceptionInfo, *words: str) -> None:
    """The message is one or more sentences and contains these words."""
    text = str(error.value)
    assert text[-1] in ".?!" and len(text.split()) >= 4, text
    for word in words:
        assert word.lower() in text.lower(), f"{word!r} is not in: {text}"


def test_other_objects_raise_an_error():
    with pytest.raises(EmbspaceError) as error:
        Weights(nn.Linear(2, 2))
    check_message(error, "Linear")
    with pytest.raises(EmbspaceError) as error:
        Weights(zoo.ZOO["gpt2"]())
    check_message(error, "GPT2LMHeadModel")


def test_blocks_of_encoder_decoder_models_raise_an_error():
    weights = Weights(zoo.boot(zoo.ZOO["t5"]()))
    assert weights.layers_with("attn") == weights.layers_with("mlp") == []
    for name in (*ATTENTION, "W_in", "W_out"):
        with pytest.raises(EmbspaceError) as error:
            getattr(weights, name)(0)
        check_message(error, "encoder")


def test_state_space_models_have_embeddings_only():
    weights = Weights(shared("mamba").model)
    assert error(weights.W_E, shared("mamba").folded.W_E) <= 1e-6
    assert error(weights.W_U, shared("mamba").folded.W_U) <= 1e-5
    for name in ("W_Q", "W_O", "W_in", "W_out"):
        with pytest.raises(EmbspaceError) as raised:
            getattr(weights, name)(0)
        check_message(raised, "block", "0", "attention" if name in ATTENTION else "MLP")


def test_error_lists_the_layers_that_have_attention():
    weights = Weights(shared("jamba").model)
    with pytest.raises(EmbspaceError) as error:
        weights.W_Q(2)
    check_message(error, "2", "attention", "1, 3")
    with pytest.raises(EmbspaceError) as error:
        Weights(shared("qwen3_next").model).W_OV(0)
    check_message(error, "0", "attention", "1")


@pytest.mark.parametrize("layer", [2, -1, 14, True, 0.5, "1", None])
def test_layers_out_of_range_raise_an_error(layer):
    weights = Weights(shared("gpt2").model)
    for read in (weights.W_Q, weights.W_O, weights.W_OV, weights.W_in, weights.W_out, weights.experts):
        with unchecked_types(), pytest.raises(EmbspaceError) as error:
            read(layer)
        check_message(error, f"layer={layer!r}", "0 to 1")


def test_missing_weights_and_experts_raise_an_error():
    with pytest.raises(EmbspaceError) as error:
        Weights(shared("gpt2").model).W_gate(0)
    check_message(error, "not gated")
    with pytest.raises(EmbspaceError) as error:
        Weights(shared("llama").model).W_pos  # noqa: B018
    check_message(error, "W_pos")
    with pytest.raises(EmbspaceError) as error:
        Weights(shared("llama").model).W_in(0, 2)
    check_message(error, "expert=2")


def test_weights_of_granite_hybrids_are_correct_or_an_error():
    """Granite's hybrid models name their MLPs in an unusual way. They must be read correctly, or raise an error that does not state that the MLP is missing."""
    case = fresh("granitemoehybrid")
    weights, expected = Weights(case.model), dict(expectations(case.folded))
    assert weights.layers_with("attn") == [1]
    for name, weight in readings(weights):
        assert error(weight, expected.pop(name)) <= 1e-5, name
    assert all("W_in" in name or "W_gate" in name or "W_out" in name for name in expected)
    if expected:
        with pytest.raises(EmbspaceError) as refusal:
            weights.W_in(1, 0)
        assert "no MLP" not in str(refusal.value)


def test_mixtures_of_attention_raise_an_error():
    weights = Weights(zoo.boot(zoo.ZOO["jetmoe"]()))
    assert weights.W_E.shape == (97, 32)
    for name in ATTENTION:
        with pytest.raises(EmbspaceError) as error:
            getattr(weights, name)(0)
        check_message(error, name, "JetMoe")


@pytest.mark.parametrize("expert", [3, -2, "0", None])
def test_missing_experts_raise_an_error(expert):
    with unchecked_types(), pytest.raises(EmbspaceError) as error:
        Weights(shared("qwen2_moe").model).W_in(1, expert)
    check_message(error, f"expert={expert!r}")


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "gpt_oss"])
def test_mixture_without_shared_expert_needs_an_expert(name):
    weights = Weights(shared(name).model)
    for read in (weights.W_in, weights.W_gate, weights.W_out, weights.d_mlp):
        with pytest.raises(EmbspaceError, match="expert=-1 is not an expert of block 0 of zoo. Its experts: 0, 1, 2."):
            read(0)


def test_embeddings_with_a_projection_raise_an_error():
    """OPT-350m embeds in 16 dimensions here, and projects them to d_model = 32."""
    weights = Weights(zoo.boot(zoo.ZOO["opt_350m"]()))
    for name in ("W_E", "W_U"):
        with pytest.raises(EmbspaceError) as error:
            getattr(weights, name)
        check_message(error, name, "width is 16", "d_model=32")
    assert weights.W_Q(0).shape == (4, 32, 8)  # the blocks can be read


READ = {
    "W_E": ("model.embed_tokens", lambda w: w.W_E),
    "W_U": ("lm_head", lambda w: w.W_U),
    "W_Q": ("model.layers.1.self_attn.q_proj", lambda w: w.W_Q(1)),
    "W_O": ("model.layers.1.self_attn.o_proj", lambda w: w.W_O(1)),
    "W_in": ("model.layers.1.mlp.up_proj", lambda w: w.W_in(1)),
    "W_out": ("model.layers.1.mlp.down_proj", lambda w: w.W_out(1)),
}


def replace_weight(module: nn.Module, damage: str) -> None:
    """Replace a module's weight by one that cannot be read."""
    value = module.weight.detach()
    replaced = {
        "meta": lambda: value.to("meta"),
        "int8": lambda: (value * 100).to(torch.int8),
        "float8": lambda: value.to(torch.float8_e4m3fn),
        "nan": lambda: value.index_fill(0, torch.tensor([3]), float("nan")),
        "inf": lambda: value.index_fill(0, torch.tensor([3]), float("inf")),
    }[damage]()
    module.weight = nn.Parameter(replaced, requires_grad=False)


@pytest.mark.parametrize("damage", ["meta", "int8", "float8"])
@pytest.mark.parametrize("weight_name", READ)
def test_unreadable_weights_raise_an_error(weight_name, damage):
    path, read = READ[weight_name]
    hf_model = zoo.ZOO["llama"]()
    model = zoo.boot(hf_model)
    replace_in_bridge(model, path, damage)
    weights = Weights(model)
    with pytest.raises(EmbspaceError) as error:
        read(weights)
    check_message(error, weight_name)
    for other_name, (_, read_other) in READ.items():
        if other_name != weight_name:
            assert torch.isfinite(read_other(weights)).all()


def replace_in_bridge(model: nn.Module, path: str, damage: str) -> None:
    """`replace_weight` after booting, because a bridge cannot be built around some of these weights."""
    original = model.original_model
    for part in path.split("."):
        original = original._modules[part]
        while "_original_component" in original._modules:
            original = original._modules["_original_component"]
    replace_weight(original, damage)


@pytest.mark.parametrize("damage", ["meta", "int8"])
def test_unreadable_gains_raise_an_error(damage):
    model = zoo.boot(zoo.ZOO["llama"]())
    replace_in_bridge(model, "model.layers.1.input_layernorm", damage)
    with pytest.raises(EmbspaceError) as error:
        Weights(model).W_Q(1)
    check_message(error, "ln1")


@pytest.mark.parametrize("damage", ["nan", "inf"])
@pytest.mark.parametrize("weight_name", [name for name in READ if name != "W_E"])
def test_weights_with_nan_or_infinity_raise_an_error(weight_name, damage):
    path, read = READ[weight_name]
    model = zoo.boot(zoo.ZOO["llama"]())
    replace_in_bridge(model, path, damage)
    with pytest.raises(EmbspaceError) as error:
        read(Weights(model))
    check_message(error, weight_name)
