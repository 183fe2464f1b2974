"""Hooks of components: compared with hooks and weights that are edited by hand, and errors."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import zoo
from component_tables import (
    COMPONENTS,
    GROUP,
    KINDS,
    MODELS,
    TOKENS,
    VECTORS,
    assert_close,
    hooks_by_hand,
    logits,
    table,
)
from unchecked import unchecked_types

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.interventions import ablation_hooks, activations, scaling_hooks, steering_hooks

MODES = ["zero", "mean", "tensor", "scale"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_edits_equal_hooks_by_hand(models, name, kind, mode):
    if kind == "neuron" and name in ("mixtral", "ht_moe"):
        pytest.skip("neurons of mixtures have separate tests")
    model, frame = models(name), table(kind)
    values = None
    if mode == "tensor":
        values = torch.randn(3, 8) if kind == "head" else torch.randn(3)
    options = dict(model=model, vectors=VECTORS if kind == "direction" else None)
    repeated = pd.concat([frame[::-1], frame], ignore_index=True)  # repeated rows in any order
    if mode == "scale":
        hooks = scaling_hooks(repeated, -1.5, **options)
    else:
        hooks = ablation_hooks(repeated, values if values is not None else mode, **options)
    expected = logits(model, hooks_by_hand(name, model, kind, mode, values))
    edited = logits(model, hooks)
    assert_close(edited, expected)
    if not (kind == "W_K" and mode == "mean"):
        assert (edited - logits(model)).abs().max() > 1e-4, "the edit takes effect"
    assert not any(point.fwd_hooks for point in model.hook_dict.values()), "nothing is left on the model"


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", ["neuron", "head", "W_V", "W_O"])
def test_zero_ablation_equals_zeros_in_the_weights(models, name, kind):
    hf_model: Any = zoo.ZOO[name]()
    with torch.no_grad():
        for layer, *index in COMPONENTS[kind if kind in COMPONENTS else "subhead"]:
            if name == "gpt2":
                block = hf_model.transformer.h[layer]
                out, down = block.attn.c_proj.weight, block.mlp.c_proj.weight
                v, bias = block.attn.c_attn.weight[:, 64:].T, block.attn.c_attn.bias[64:]
            else:
                block = hf_model.model.layers[layer]
                out, down = block.self_attn.o_proj.weight.T, block.mlp.down_proj.weight.T
                v, bias = block.self_attn.v_proj.weight, torch.zeros(16)
            if kind == "neuron":
                down[index[0]] = 0
            elif kind == "head":
                out[8 * index[0] : 8 * index[0] + 8] = 0
            elif kind == "W_O":
                out[8 * index[0] + index[1]] = 0
            else:
                row = 8 * (index[0] // GROUP.get(name, 1)) + index[1]
                v[row], bias[row] = 0, 0
    model = models(name)
    assert_close(logits(model, ablation_hooks(table(kind), model=model)), logits(zoo.boot(hf_model)))


def test_neurons_of_experts_are_ablated(models):
    model = models("ht_moe")
    frame = pd.DataFrame({"layer": [0, 1], "expert": [1, 2], "neuron": [3, 5]})

    def edit(neuron):
        def hook(value, hook):
            value = value.clone()
            value[:, neuron] = 0
            return value

        return hook

    by_hand = [("blocks.0.mlp.experts.1.hook_post", edit(3)), ("blocks.1.mlp.experts.2.hook_post", edit(5))]
    expected = logits(model, by_hand)
    assert_close(logits(model, ablation_hooks(frame, model=model)), expected)
    assert (expected - logits(model)).abs().max() > 1e-4
    with pytest.raises(EmbspaceError, match="an expert receives only the tokens that are routed to it"):
        activations(model, TOKENS, frame)
    with pytest.raises(EmbspaceError, match="An expert receives only .* Leave out positions"):
        logits(model, ablation_hooks(frame, model=model, positions=0))


def test_only_dense_blocks_of_a_bridge_have_neurons(models):
    model = models("qwen2_moe")
    dense = pd.DataFrame({"layer": [0], "expert": [-1], "neuron": [40]})
    assert (logits(model, ablation_hooks(dense, model=model)) - logits(model)).abs().max() > 1e-4
    for expert in (-1, 0):
        with pytest.raises(EmbspaceError, match="no hook point for neurons. blocks.1.hook_mlp_out holds"):
            ablation_hooks(dense.assign(layer=1, expert=expert), model=model)
    with pytest.raises(EmbspaceError, match="no hook point for neurons"):
        ablation_hooks(table("neuron"), model=models("mixtral"))


def test_tables_of_a_lens_are_accepted(models):
    model = models("llama")
    lens = EmbeddingLens(model)
    heads = ablation_hooks(lens.ov(layer=1, head=[0, 2], k=3), model=model)
    assert_close(logits(model, heads), logits(model, ablation_hooks(lens.qk(layer=1, head=[0, 2]), model=model)))
    for frame in (lens.neurons(layer=0, k=1), lens.subheads(layer=1, k=1), lens.search(5, k=2)):
        hooks = ablation_hooks(frame, model=model)
        assert (logits(model, hooks) - logits(model)).abs().max() > 1e-4
    assert_close(logits(model, ablation_hooks(lens.ov(layer=[]), model=model)), logits(model))
    with pytest.raises(EmbspaceError, match="singular directions, which are vectors"):
        ablation_hooks(lens.singular(n_directions=1, k=1), model=model)


@pytest.mark.parametrize(
    "positions", [2, -1, [0, 3], range(1, 3), slice(1, None, 2), torch.tensor([True, False] * 2 + [True])]
)
def test_edits_are_limited_to_positions(models, positions):
    model = models("gpt2")
    is_edited = torch.zeros(5, dtype=torch.bool)
    is_edited[list(positions) if isinstance(positions, range) else positions] = True

    def hook(value, hook):
        value = value.clone()
        value[:, is_edited, 2] = 0
        return value

    frame = pd.DataFrame({"layer": [0], "head": [2]})
    assert_close(
        logits(model, ablation_hooks(frame, model=model, positions=positions)),
        logits(model, [("blocks.0.attn.hook_z", hook)]),
    )


def test_values_may_vary_by_example_and_position(models):
    model = models("gpt2")
    values = torch.randn(2, 5, 3, 8)

    def hook(value, hook):
        value = value.clone()
        for i, (layer, head) in enumerate(COMPONENTS["head"]):
            if f"blocks.{layer}." in hook.name:
                value[:, :, head] = values[:, :, i]
        return value

    by_hand = [(f"blocks.{layer}.attn.hook_z", hook) for layer in (0, 1)]
    assert_close(logits(model, ablation_hooks(table("head"), values, model=model)), logits(model, by_hand))


def test_values_of_another_text_replace_the_outputs_of_heads(models):
    model = models("gpt2")
    other_tokens = TOKENS.flip(1)
    _, cache = model.run_with_cache(other_tokens)
    values = cache["blocks.1.attn.hook_z"][:, :, [1, 3]]
    frame = pd.DataFrame({"layer": 1, "head": [1, 3]})
    _, after = model.run_with_cache(TOKENS)
    hooks = ablation_hooks(frame, values, model=model)
    edited = {}
    logits(model, [*hooks, ("blocks.1.attn.hook_z", lambda value, hook: edited.update(z=value))])
    assert_close(edited["z"][:, :, [1, 3]], values)
    assert_close(edited["z"][:, :, [0, 2]], after["blocks.1.attn.hook_z"][:, :, [0, 2]])


def test_neutral_factors_change_nothing(models):
    model = models("gpt_neox")
    assert_close(logits(model, scaling_hooks(table("neuron"), 1, model=model)), logits(model))
    assert_close(logits(model, steering_hooks(torch.ones(32), 0, model=model, scale=0)), logits(model))


def test_gradients_flow_through_hooks(models):
    model = models("gpt2")
    scale = torch.ones((), requires_grad=True)
    hooks = [*scaling_hooks(table("head"), 0.5, model=model), ("blocks.0.hook_resid_pre", lambda v, hook: v * scale)]
    model.run_with_hooks(TOKENS, fwd_hooks=hooks).sum().backward()
    assert scale.grad is not None and scale.grad.abs() > 0


def test_ablated_directions_have_zero_coordinates(models):
    model = models("llama")
    state = {}
    hooks = ablation_hooks(table("direction"), model=model, vectors=VECTORS)
    logits(model, [*hooks, ("blocks.1.hook_resid_pre", lambda value, hook: state.update(x=value))])
    for vector in VECTORS.values():
        assert (state["x"] @ vector).abs().max() < 1e-3
    factors = pd.DataFrame({"layer": [0, 0], "factor": [1, 0]})
    stacked = torch.stack(list(VECTORS.values()))
    first = table("direction").query("layer == 0")
    assert_close(
        logits(model, ablation_hooks(factors, model=model, vectors=stacked)),
        logits(model, ablation_hooks(first, model=model, vectors=VECTORS)),
    )


@pytest.mark.parametrize("name", ["gpt2", "llama", "mixtral", "ht_gpt2", "ht_parallel"])
@pytest.mark.parametrize("hook", ["hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out"])
def test_steering_equals_a_hook_by_hand(models, name, hook):
    model = models(name)
    vectors = torch.randn(2, 32)
    by_hand = [
        (f"blocks.{layer}.{hook}", lambda value, hook, layer=layer: value + 3 * vectors[layer]) for layer in (0, 1)
    ]
    steered = logits(model, steering_hooks(vectors, [0, 1], model=model, scale=3, hook=hook))
    assert_close(steered, logits(model, by_hand))
    assert (steered - logits(model)).abs().max() > 1e-3
    one_vector_hooks = steering_hooks(vectors[0], [0, 1], model=model, scale=3, hook=hook)
    assert_close(
        logits(model, one_vector_hooks),
        logits(model, steering_hooks(vectors[[0, 0]], range(2), model=model, scale=3, hook=hook)),
    )


def test_layer_minus_one_steers_the_embedding(models):
    model = models("gpt2")
    by_hand = [("blocks.0.hook_resid_pre", lambda value, hook: value + 1)]
    assert_close(logits(model, steering_hooks(torch.ones(32), -1, model=model)), logits(model, by_hand))


def test_layers_may_be_numpy_or_torch_integers(models):
    model, v = models("gpt2"), torch.ones(32)
    kinds: Any = (np.int64(1), torch.tensor(1), [np.int64(1)], np.array([1]))
    for layer in kinds:
        with unchecked_types():
            hooks = steering_hooks(v, layer, model=model)
        assert_close(logits(model, hooks), logits(model, steering_hooks(v, 1, model=model)))


def test_edits_without_effect_raise(models):
    model = models("gpt2")
    with pytest.raises(EmbspaceError, match="reaches the MLP and not the residual stream.*hook='hook_attn_out'"):
        steering_hooks(torch.ones(32), 0, model=model, hook="hook_resid_mid")
    if "ht_gpt2" in zoo.HT_ZOO:
        hooked = models("ht_gpt2")
        steered = logits(hooked, steering_hooks(torch.ones(32), 0, model=hooked, hook="hook_resid_mid"))
        assert_close(steered, logits(hooked, steering_hooks(torch.ones(32), 0, model=hooked, hook="hook_attn_out")))
    model = models("openai_gpt")
    assert (logits(model, steering_hooks(torch.randn(32), 0, model=model)) - logits(model)).abs().max() > 1e-3
    with pytest.raises(EmbspaceError, match="discarded. Use hook='hook_mlp_out', or a layer up to 0"):
        steering_hooks(torch.ones(32), 1, model=model)
    with pytest.raises(EmbspaceError, match="discarded"):
        ablation_hooks(table("direction"), model=model, vectors=VECTORS)


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        ({"layer": [2], "head": [0]}, {}, "layer=2 is out of range: .* has 2 layers"),
        ({"layer": [0], "head": [4]}, {}, "head=4 is out of range: block 0 of .* has 4 heads"),
        ({"layer": [0], "neuron": [48]}, {}, "neuron=48 is out of range"),
        ({"layer": [0], "head": [0], "subhead": [8], "weight": ["W_V"]}, {}, "subhead=8 is out of range"),
        ({"layer": [0], "head": [0], "subhead": [1], "weight": ["W_OV"]}, {}, "weight='W_OV' is not one of"),
        ({"layer": [0], "head": [-1], "neuron": [-1]}, {}, "names no neuron, head or direction"),
        ({"head": [0]}, {}, "It needs `layer`, and `neuron`"),
        ({"layer": [0], "direction": ["a"]}, {}, "no vectors are given"),
        ({"layer": [0], "direction": ["c"]}, {"vectors": VECTORS}, "vectors has no vector for 'c'"),
        ({"layer": [0], "direction": ["a"]}, {"vectors": {"a": torch.ones(3)}}, "width 3"),
        (
            {"layer": [0], "direction": ["a"]},
            {"vectors": {"a": torch.zeros(32)}},
            "zero or not finite, so it has no direction",
        ),
        ({"layer": [0.5], "head": [0]}, {}, "df has layer=0.5 in row 0, which is not a whole number"),
        ({"layer": [0, float("nan")], "neuron": [1, 2]}, {}, "df has layer=nan in row 1"),
        ({"layer": ["0_pre"], "head": [0]}, {}, "df has layer='0_pre' in row 0"),
        ({"layer": [0], "head": [0]}, {"mode": "men"}, "mode='men' is not one of 'zero', 'mean'. Did you mean 'mean'"),
        (
            {"layer": [0], "head": [0]},
            {"mode": torch.ones(2, 8)},
            r"shape \(2, 8\) for 1 components. Give \[1, d_head\]",
        ),
        ({"layer": [0], "head": [0]}, {"mode": torch.tensor(float("nan"))}, "NaN or infinite"),
    ],
)
def test_invalid_tables_and_modes_raise(models, frame, options, message):
    with pytest.raises(EmbspaceError, match=message):
        ablation_hooks(pd.DataFrame(frame), model=models("gpt2"), **options)


def test_arguments_of_wrong_types_raise(models):
    model = models("gpt2")
    with unchecked_types(), pytest.raises(EmbspaceError, match="df is a list. Give a table"):
        ablation_hooks([1], model=model)  # pyright: ignore[reportArgumentType]
    with unchecked_types(), pytest.raises(EmbspaceError, match="factor='x' is not a finite number"):
        scaling_hooks(table("head"), "x", model=model)  # pyright: ignore[reportArgumentType]
    with unchecked_types(), pytest.raises(EmbspaceError, match="hook='hook_q' is not one of"):
        steering_hooks(torch.ones(32), 0, model=model, hook="hook_q")  # pyright: ignore[reportArgumentType]
    for layer in (1.5, None, "1", True):
        with unchecked_types(), pytest.raises(EmbspaceError, match=f"layer={layer!r} is not an integer of -1 or more"):
            steering_hooks(torch.ones(32), layer, model=model)  # pyright: ignore[reportArgumentType]


def test_vectors_and_values_of_wrong_shapes_raise(models):
    model = models("gpt2")
    with pytest.raises(EmbspaceError, match="width 31"):
        steering_hooks(torch.ones(31), 0, model=model)
    with pytest.raises(EmbspaceError, match="for 1 layers"):
        steering_hooks(torch.ones(2, 32), 0, model=model)
    with pytest.raises(EmbspaceError, match="layer=2 is out of range"):
        steering_hooks(torch.ones(32), 2, model=model)
    with pytest.raises(
        EmbspaceError,
        match=r"mode has shape \(5, 9, 4\), which does not broadcast to the activations \(2, 5, 4\) at blocks.0.mlp",
    ):
        frame = pd.DataFrame({"layer": 0, "neuron": range(4)})
        logits(model, ablation_hooks(frame, torch.zeros(5, 9, 4), model=model))
    with pytest.raises(EmbspaceError, match="positions=9 are not indices of 5 tokens"):
        logits(model, ablation_hooks(table("head"), model=model, positions=9))
    assert not any(point.fwd_hooks for point in model.hook_dict.values()), "an error leaves no hooks"


def test_unsupported_heads_raise(models):
    llama = models("llama")
    shared = pd.DataFrame({"layer": 0, "head": [0, 1], "subhead": 3, "weight": "W_V"})
    with pytest.raises(EmbspaceError, match="query heads share key and value heads at blocks.0.attn.hook_v"):
        logits(llama, ablation_hooks(shared, torch.ones(2), model=llama))
    assert (logits(llama, ablation_hooks(shared, model=llama)) - logits(llama)).abs().max() > 1e-4
    with pytest.raises(EmbspaceError, match="multi-head latent attention"):
        ablation_hooks(table("head"), model=models("deepseek_v2"))
    with pytest.raises(EmbspaceError, match="its shape is .*, but the weights imply"):
        model_with_gated_queries = models("qwen3_next")
        row = pd.DataFrame({"layer": [1], "head": [0], "subhead": [1], "weight": ["W_Q"]})
        logits(model_with_gated_queries, ablation_hooks(row, model=model_with_gated_queries))
