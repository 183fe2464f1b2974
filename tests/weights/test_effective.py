"""Every weight of every architecture equals that of the oracle; reading leaves the model unchanged."""

import copy

import pytest
import torch
import zoo
from oracle import PLANS
from oracle_cases import check_all, error, fresh, readings, shared, skipping
from torch import nn

from embspace_lens.weights.effective import Weights

PARTLY_READABLE = ("granitemoehybrid",)  # names its MLPs in an unusual way
NAMES = [name for name in PLANS if name not in PARTLY_READABLE]


@pytest.mark.parametrize("name", skipping(NAMES))
def test_every_weight_equals_the_oracle(name):
    check_all(Weights(shared(name).model), shared(name).folded)


@pytest.mark.parametrize("name", skipping(NAMES, zoo.NO_COMPAT))
def test_compatibility_mode_does_not_change_what_is_read(name):
    case = fresh(name, "compat")
    check_all(Weights(case.model), case.folded, processed=True)


@pytest.mark.parametrize("name", skipping(NAMES))
def test_without_folding_weights_are_those_stored(name):
    case = shared(name)
    check_all(Weights(case.model, fold_ln=False), case.stored)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "falcon_7b", "olmo2", "qwen3_next"])
def test_circuits_are_products_of_their_weights(name):
    case = shared(name)
    weights = Weights(case.model)
    for layer, heads in case.folded.attention.items():
        assert error(weights.W_OV(layer).AB, heads["W_V"] @ heads["W_O"]) <= 1e-5
        assert error(weights.W_QK(layer).AB, heads["W_Q"] @ heads["W_K"].mT) <= 1e-5


@pytest.mark.parametrize("name", skipping(NAMES))
def test_sizes_and_layers_match_the_architecture(name):
    case = shared(name)
    weights = Weights(case.model)
    d_vocab, d_model = case.folded.W_E.shape
    assert (weights.d_vocab, weights.d_model) == (d_vocab, d_model)
    assert weights.name and isinstance(weights.name, str)
    assert weights.n_layers == (4 if name == "jamba" else 2)
    assert weights.layers_with("attn") == sorted(case.folded.attention)
    assert weights.layers_with("mlp") == sorted(case.folded.mlp)
    if case.folded.attention:
        assert weights.n_heads == next(iter(case.folded.attention.values()))["W_Q"].shape[0]


def test_hybrid_models_keep_block_indices():
    assert Weights(shared("jamba").model).layers_with("attn") == [1, 3]
    assert Weights(shared("jamba").model).layers_with("mlp") == [0, 1, 2, 3]
    assert Weights(shared("qwen3_next").model).layers_with("attn") == [1]
    assert Weights(shared("mamba").model).layers_with("attn") == []
    assert Weights(shared("mamba").model).layers_with("mlp") == []


def test_experts_are_listed_by_index():
    assert Weights(shared("llama").model).experts(0) == [-1]
    assert sorted(Weights(shared("mixtral").model).experts(1)) == [0, 1, 2]
    assert Weights(shared("qwen2_moe").model).experts(0) == [-1]  # the dense layer of a mixture
    assert sorted(Weights(shared("qwen2_moe").model).experts(1)) == [-1, 0, 1, 2]  # a shared expert
    assert sorted(Weights(shared("deepseek_v2").model).experts(1)) == [-1, 0, 1, 2]
    assert Weights(shared("jamba").model).experts(2) == [-1]


def fingerprint(model: nn.Module) -> tuple:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return (
        {n: (t.detach().clone(), t.data_ptr(), t.requires_grad) for n, t in tensors.items()},
        [module.training for module in model.modules()],
        list(dict(model.named_modules())),
        copy.deepcopy(
            {k: v for k, v in vars(model.cfg).items() if isinstance(v, (int, float, str, bool, list, dict, type(None)))}
        ),
    )


@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "gemma2", "olmo2", "phi3", "mixtral", "gpt_oss", "jamba", "modernbert_decoder", "mamba"]
)
@pytest.mark.parametrize("training", [False, True])
def test_reading_does_not_change_the_model(name, training):
    model = fresh(name).model.train(training)
    before = fingerprint(model)
    weights = Weights(model)
    for _, weight in readings(weights):
        del weight
    repr(weights)
    after = fingerprint(model)
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    for parameter, (value, pointer, grad) in before[0].items():
        assert torch.equal(value, after[0][parameter][0]), parameter
        assert (pointer, grad) == after[0][parameter][1:], parameter


@pytest.mark.parametrize("name", skipping(NAMES))
def test_reading_runs_no_forward_pass(name, monkeypatch):
    case = fresh(name)

    def refuse(*args, **kwargs):
        raise AssertionError("a forward pass")

    for kind in {type(module) for module in case.model.modules()}:
        monkeypatch.setattr(kind, "forward", refuse)
    check_all(Weights(case.model), case.folded)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox", "phi3", "qwen2_moe", "gpt_oss"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_folded_in_float32(name, dtype):
    case = fresh(name, dtype=dtype)
    weights = Weights(case.model)
    check_all(weights, case.folded, tolerance=1e-5)
    for weight_name, weight in readings(weights):
        assert weight_name in ("W_E", "W_pos") or weight.dtype == torch.float32, weight_name
