"""Rows of tables as hooks: every mode against a hook written by hand, and against weights changed by hand."""

import doctest
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import zoo
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.circuits import ablation_hooks, activations, scaling_hooks, steering_hooks
from embspace_lens.forward.batches import token_batches

TOKENS = torch.tensor([[5, 9, 11, 40, 7], [3, 8, 60, 60, 2]])
GROUP = {"llama": 2, "phi3": 2, "gemma2": 2, "mixtral": 2, "falcon_7b": 4, "native_rms_gqa": 2, "ht_gqa_gated_rms": 2}
MODELS = ["gpt2", "llama", "gpt_neox", "phi3", "bloom", "gemma2", "falcon_7b", "mixtral", "native_rms_gqa"]
MODELS += ["ht_gpt2", "ht_gqa_gated_rms", "ht_parallel", "ht_moe"]
MODES = ["zero", "mean", "tensor", "scale"]
KINDS = ["neuron", "head", "W_Q", "W_K", "W_V", "W_O", "direction"]
UNITS: dict[str, list[tuple[Any, ...]]] = {  # (layer, …), in the order of their keys
    "neuron": [(0, 3), (1, 0), (1, 17)],
    "head": [(0, 2), (1, 1), (1, 3)],
    "subhead": [(0, 2, 5), (1, 1, 0), (1, 3, 7)],
    "direction": [(0, "a"), (0, "b"), (1, "a")],
}
VECTORS = {"a": torch.arange(32.0) - 9, "b": torch.cos(torch.arange(32.0))}  # not orthogonal


@pytest.fixture(scope="module")
def models(tiny):
    made = {}

    def get(name):
        if name in zoo.UNAVAILABLE or (name.startswith("ht_") and name not in zoo.HT_ZOO):
            pytest.skip("this TransformerLens has none")
        if name in zoo.ZOO:
            return tiny(name)
        if name not in made:
            made[name] = (zoo.NATIVE | zoo.HT_ZOO)[name]()
        return made[name]

    return get


def rows_of(frame: Any) -> Any:
    return frame.itertuples()


def logits(model, hooks=()):
    with torch.no_grad():
        return model.run_with_hooks(TOKENS, fwd_hooks=list(hooks))


def same(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def table(kind: str) -> Any:
    names: dict[str, list[str]] = {
        "neuron": ["layer", "neuron"],
        "head": ["layer", "head"],
        "direction": ["layer", "direction"],
    }
    if kind in names:
        return pd.DataFrame(UNITS[kind], columns=pd.Index(names[kind]))
    return pd.DataFrame(UNITS["subhead"], columns=pd.Index(["layer", "head", "subhead"])).assign(weight=kind)


def by_hand(name, model, kind, mode, values):
    """The same interventions, one hook for each unit, written out."""
    hooks = []
    heads = {"W_Q": "hook_q", "W_K": "hook_k", "W_V": "hook_v", "W_O": "hook_z"}
    if kind == "direction":
        return directions_by_hand(model, mode, values)
    for number, (layer, *place) in enumerate(UNITS[kind if kind in UNITS else "subhead"]):
        if kind == "neuron":
            hook, at = f"blocks.{layer}.mlp.hook_post", (place[0],)
        elif kind == "head":
            hook, at = f"blocks.{layer}.attn.hook_z", (place[0], slice(None))
        else:
            head = place[0] // GROUP.get(name, 1) if kind in ("W_K", "W_V") else place[0]
            hook, at = f"blocks.{layer}.attn.{heads[kind]}", (head, place[1])

        def edit(value, hook, at=at, number=number):
            old = value[(..., *at)]
            new = {
                "zero": torch.zeros_like(old),
                "mean": old.mean(dim=(0, 1), keepdim=True).expand_as(old)
                if old.ndim > 2
                else old.mean().expand_as(old),
                "tensor": None if values is None else values[number].expand_as(old),
                "scale": -1.5 * old,
            }[mode]
            value = value.clone()
            value[(..., *at)] = new
            return value

        hooks.append((hook, edit))
    return hooks


def directions_by_hand(model, mode, values):
    """Gram–Schmidt within layer 0, whose two directions are set at once; one projection in layer 1."""
    unit = {name: vector / vector.norm() for name, vector in VECTORS.items()}

    def target(x, number, name):
        old = x @ unit[name]
        return {"zero": 0 * old, "mean": old.mean().expand_as(old), "scale": -1.5 * old}.get(
            mode, old if values is None else values[number].expand_as(old)
        )

    def both(value, hook):
        a, b = unit["a"], unit["b"] - (unit["b"] @ unit["a"]) * unit["a"]
        b = b / b.norm()
        want_a, want_b = target(value, 0, "a"), target(value, 1, "b")
        along_b = (want_b - (unit["b"] @ a) * want_a) / (unit["b"] @ b)
        rest = value - (value @ a)[..., None] * a - (value @ b)[..., None] * b
        return rest + want_a[..., None] * a + along_b[..., None] * b

    def one(value, hook):
        return value + (target(value, 2, "a") - value @ unit["a"])[..., None] * unit["a"]

    return [("blocks.0.hook_resid_post", both), ("blocks.1.hook_resid_post", one)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_every_mode_is_the_hook_by_hand(models, name, kind, mode):
    if kind == "neuron" and name in ("mixtral", "ht_moe"):
        pytest.skip("a mixture's neurons have tests of their own")
    model, frame = models(name), table(kind)
    values = None
    if mode == "tensor":
        values = torch.randn(3, 8) if kind == "head" else torch.randn(3)
    options = dict(model=model, vectors=VECTORS if kind == "direction" else None)
    repeated = pd.concat([frame[::-1], frame], ignore_index=True)  # units are taken once, whatever the rows' order
    if mode == "scale":
        hooks = scaling_hooks(repeated, -1.5, **options)
    else:
        hooks = ablation_hooks(repeated, values if values is not None else mode, **options)
    expected = logits(model, by_hand(name, model, kind, mode, values))
    found = logits(model, hooks)
    same(found, expected)
    if not (kind == "W_K" and mode == "mean"):
        assert (found - logits(model)).abs().max() > 1e-4, "the edit takes effect"
    assert not any(point.fwd_hooks for point in model.hook_dict.values()), "nothing is left on the model"


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", ["neuron", "head", "W_V", "W_O"])
def test_zero_ablation_is_a_zero_in_the_weights(models, name, kind):
    hf_model: Any = zoo.ZOO[name]()
    with torch.no_grad():
        for layer, *place in UNITS[kind if kind in UNITS else "subhead"]:
            if name == "gpt2":
                block = hf_model.transformer.h[layer]
                out, down = block.attn.c_proj.weight, block.mlp.c_proj.weight
                v, bias = block.attn.c_attn.weight[:, 64:].T, block.attn.c_attn.bias[64:]
            else:
                block = hf_model.model.layers[layer]
                out, down = block.self_attn.o_proj.weight.T, block.mlp.down_proj.weight.T
                v, bias = block.self_attn.v_proj.weight, torch.zeros(16)
            if kind == "neuron":
                down[place[0]] = 0
            elif kind == "head":
                out[8 * place[0] : 8 * place[0] + 8] = 0
            elif kind == "W_O":
                out[8 * place[0] + place[1]] = 0
            else:
                row = 8 * (place[0] // GROUP.get(name, 1)) + place[1]
                v[row], bias[row] = 0, 0
    model = models(name)
    same(logits(model, ablation_hooks(table(kind), model=model)), logits(zoo.boot(hf_model)))


def test_neurons_of_experts(models):
    model = models("ht_moe")
    frame = pd.DataFrame({"layer": [0, 1], "expert": [1, 2], "neuron": [3, 5]})

    def edit(neuron):
        def hook(value, hook):
            value = value.clone()
            value[:, neuron] = 0
            return value

        return hook

    hand = [("blocks.0.mlp.experts.1.hook_post", edit(3)), ("blocks.1.mlp.experts.2.hook_post", edit(5))]
    expected = logits(model, hand)
    same(logits(model, ablation_hooks(frame, model=model)), expected)
    assert (expected - logits(model)).abs().max() > 1e-4
    with pytest.raises(EmbspaceError, match="an expert sees the tokens routed to it alone"):
        activations(model, TOKENS, frame)
    with pytest.raises(EmbspaceError, match="positions cannot be told in an expert"):
        logits(model, ablation_hooks(frame, model=model, positions=0))


def test_dense_layers_of_a_mixture_have_neurons_and_sparse_ones_are_refused(models):
    model = models("qwen2_moe")
    dense = pd.DataFrame({"layer": [0], "expert": [-1], "neuron": [40]})
    assert (logits(model, ablation_hooks(dense, model=model)) - logits(model)).abs().max() > 1e-4
    for expert in (-1, 0):
        with pytest.raises(EmbspaceError, match="no hook point for neurons. blocks.1.hook_mlp_out holds"):
            ablation_hooks(dense.assign(layer=1, expert=expert), model=model)
    with pytest.raises(EmbspaceError, match="no hook point for neurons"):
        ablation_hooks(table("neuron"), model=models("mixtral"))


def test_rows_of_the_lenss_own_tables(models):
    model = models("llama")
    lens = EmbeddingLens(model)
    heads = ablation_hooks(lens.ov(layer=1, head=[0, 2], k=3), model=model)
    same(logits(model, heads), logits(model, ablation_hooks(lens.qk(layer=1, head=[0, 2]), model=model)))
    for frame in (lens.neurons(layer=0, k=1), lens.subheads(layer=1, k=1), lens.search(5, k=2)):
        hooks = ablation_hooks(frame, model=model)
        assert (logits(model, hooks) - logits(model)).abs().max() > 1e-4
    same(logits(model, ablation_hooks(lens.ov(layer=[]), model=model)), logits(model))
    with pytest.raises(EmbspaceError, match="singular directions, which are vectors"):
        ablation_hooks(lens.singular(n_directions=1, k=1), model=model)


@pytest.mark.parametrize(
    "positions", [2, -1, [0, 3], range(1, 3), slice(1, None, 2), torch.tensor([True, False] * 2 + [True])]
)
def test_positions(models, positions):
    model = models("gpt2")
    chosen = torch.zeros(5, dtype=torch.bool)
    chosen[list(positions) if isinstance(positions, range) else positions] = True

    def hook(value, hook):
        value = value.clone()
        value[:, chosen, 2] = 0
        return value

    frame = pd.DataFrame({"layer": [0], "head": [2]})
    same(
        logits(model, ablation_hooks(frame, model=model, positions=positions)),
        logits(model, [("blocks.0.attn.hook_z", hook)]),
    )


def test_values_may_vary_by_example_and_position(models):
    model = models("gpt2")
    values = torch.randn(2, 5, 3, 8)

    def hook(value, hook):
        value = value.clone()
        for number, (layer, head) in enumerate(UNITS["head"]):
            if f"blocks.{layer}." in hook.name:
                value[:, :, head] = values[:, :, number]
        return value

    names = [f"blocks.{layer}.attn.hook_z" for layer in (0, 1)]
    hand = [(name, hook) for name in names]
    same(logits(model, ablation_hooks(table("head"), values, model=model)), logits(model, hand))


def test_resample_from_another_text_is_that_texts_head(models):
    """Values measured on another text, put in, are that text's: patching by hand."""
    model = models("gpt2")
    other = TOKENS.flip(1)
    _, cache = model.run_with_cache(other)
    values = cache["blocks.1.attn.hook_z"][:, :, [1, 3]]
    frame = pd.DataFrame({"layer": 1, "head": [1, 3]})
    _, after = model.run_with_cache(TOKENS)
    hooks = ablation_hooks(frame, values, model=model)
    seen = {}
    logits(model, [*hooks, ("blocks.1.attn.hook_z", lambda value, hook: seen.update(z=value))])
    same(seen["z"][:, :, [1, 3]], values)
    same(seen["z"][:, :, [0, 2]], after["blocks.1.attn.hook_z"][:, :, [0, 2]])


def test_nothing_changes_where_nothing_is_asked(models):
    model = models("gpt_neox")
    same(logits(model, scaling_hooks(table("neuron"), 1, model=model)), logits(model))
    same(logits(model, steering_hooks(torch.ones(32), 0, model=model, scale=0)), logits(model))


def test_gradients_flow_through(models):
    model = models("gpt2")
    scale = torch.ones((), requires_grad=True)
    hooks = [*scaling_hooks(table("head"), 0.5, model=model), ("blocks.0.hook_resid_pre", lambda v, hook: v * scale)]
    model.run_with_hooks(TOKENS, fwd_hooks=hooks).sum().backward()
    assert scale.grad is not None and scale.grad.abs() > 0


# -- directions and steering


def test_ablated_directions_are_gone(models):
    model = models("llama")
    seen = {}
    hooks = ablation_hooks(table("direction"), model=model, vectors=VECTORS)
    logits(model, [*hooks, ("blocks.1.hook_resid_pre", lambda value, hook: seen.update(x=value))])
    for vector in VECTORS.values():
        assert (seen["x"] @ vector).abs().max() < 1e-3
    numbered = pd.DataFrame({"layer": [0, 0], "factor": [1, 0]})
    stacked = torch.stack(list(VECTORS.values()))
    first = table("direction").query("layer == 0")
    same(
        logits(model, ablation_hooks(numbered, model=model, vectors=stacked)),
        logits(model, ablation_hooks(first, model=model, vectors=VECTORS)),
    )


@pytest.mark.parametrize("name", ["gpt2", "llama", "mixtral", "ht_gpt2", "ht_parallel"])
@pytest.mark.parametrize("hook", ["hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out"])
def test_steering_is_the_hook_by_hand(models, name, hook):
    model = models(name)
    vectors = torch.randn(2, 32)
    hand = [(f"blocks.{layer}.{hook}", lambda value, hook, layer=layer: value + 3 * vectors[layer]) for layer in (0, 1)]
    found = logits(model, steering_hooks(vectors, [0, 1], model=model, scale=3, hook=hook))
    same(found, logits(model, hand))
    assert (found - logits(model)).abs().max() > 1e-3
    one = steering_hooks(vectors[0], [0, 1], model=model, scale=3, hook=hook)
    same(logits(model, one), logits(model, steering_hooks(vectors[[0, 0]], range(2), model=model, scale=3, hook=hook)))


def test_steering_at_the_embedding(models):
    model = models("gpt2")
    hand = [("blocks.0.hook_resid_pre", lambda value, hook: value + 1)]
    same(logits(model, steering_hooks(torch.ones(32), -1, model=model)), logits(model, hand))


def test_layers_are_numbers_of_any_kind(models):
    """A row's layer is numpy's."""
    model, v = models("gpt2"), torch.ones(32)
    kinds: Any = (np.int64(1), torch.tensor(1), [np.int64(1)], np.array([1]))
    for layer in kinds:
        same(logits(model, steering_hooks(v, layer, model=model)), logits(model, steering_hooks(v, 1, model=model)))


def test_where_edits_would_be_lost(models):
    model = models("gpt2")
    with pytest.raises(EmbspaceError, match="reaches the MLP and not the residual stream.*hook='hook_attn_out'"):
        steering_hooks(torch.ones(32), 0, model=model, hook="hook_resid_mid")
    if "ht_gpt2" in zoo.HT_ZOO:
        hooked = models("ht_gpt2")
        found = logits(hooked, steering_hooks(torch.ones(32), 0, model=hooked, hook="hook_resid_mid"))
        same(found, logits(hooked, steering_hooks(torch.ones(32), 0, model=hooked, hook="hook_attn_out")))
    model = models("openai_gpt")
    assert (logits(model, steering_hooks(torch.randn(32), 0, model=model)) - logits(model)).abs().max() > 1e-3
    with pytest.raises(EmbspaceError, match="edits there are discarded. Use hook='hook_mlp_out' or a layer up to 0"):
        steering_hooks(torch.ones(32), 1, model=model)
    with pytest.raises(EmbspaceError, match="discarded"):
        ablation_hooks(table("direction"), model=model, vectors=VECTORS)


# -- activations


@pytest.mark.parametrize("name", [name for name in MODELS if "moe" not in name])
def test_activations_are_the_caches(models, name):
    model = models(name)
    with torch.no_grad():
        _, cache = model.run_with_cache(TOKENS)
    kinds = [kind for kind in KINDS if not (kind == "neuron" and name == "mixtral")]
    for kind in kinds:
        frame = table(kind)
        found = activations(model, TOKENS, frame, vectors=VECTORS, batch_tokens=5)
        ordered = [c for c in ("layer", "head", "neuron", "subhead", "weight", "direction") if c in frame]
        check_tidy(found, [*ordered, "example", "pos"], [*ordered, "example", "pos", "activation"])
        assert len(found) == 3 * TOKENS.numel()
        for row in rows_of(found):
            if kind == "neuron":
                expected = cache[f"blocks.{row.layer}.mlp.hook_post"][row.example, row.pos, row.neuron]
            elif kind == "head":
                z = cache[f"blocks.{row.layer}.attn.hook_z"][row.example, row.pos, row.head]
                expected = (z @ model.blocks[row.layer].attn.W_O[row.head].detach()).norm()
            elif kind == "direction":
                x = cache[f"blocks.{row.layer}.hook_resid_post"][row.example, row.pos]
                expected = x @ VECTORS[row.direction] / VECTORS[row.direction].norm()
            else:
                head = row.head // GROUP.get(name, 1) if kind in ("W_K", "W_V") else row.head
                hook = {"W_Q": "q", "W_K": "k", "W_V": "v", "W_O": "z"}[kind]
                expected = cache[f"blocks.{row.layer}.attn.hook_{hook}"][row.example, row.pos, head, row.subhead]
            assert row.activation == pytest.approx(expected.item(), abs=1e-4, rel=1e-4)
        assert frame.merge(found, on=list(frame.columns)).shape[0] == len(found)


def test_activations_of_texts_are_of_their_own_tokens(models):
    model = models("gpt2")
    texts = ["w2 w3 w4 w5", "", "w9"]
    frame = EmbeddingLens(model).neurons(layer=0, neuron=[3, 5], k=2)
    found: Any = activations(model, texts, frame)
    check_tidy(
        found,
        ["layer", "neuron", "weight", "example", "pos"],
        ["layer", "neuron", "weight", "example", "pos", "activation"],
    )
    assert found[["example", "pos"]].drop_duplicates().values.tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [2, 0]]
    by_weight = [group["activation"].tolist() for _, group in found.groupby("weight", observed=True)]
    assert len(by_weight) == 2 and by_weight[0] == by_weight[1], "a neuron is as active for each of its weights"
    (batch,) = token_batches(model, ["w9"])
    _, cache = model.run_with_cache(batch.tokens)
    last = found.query("example == 2 and neuron == 5 and weight == 'W_in'")["activation"].item()
    assert last == pytest.approx(float(cache["blocks.0.mlp.hook_post"][0, -1, 5].detach()), abs=1e-5)
    same(
        torch.tensor(activations(model, iter(texts), frame)["activation"].to_numpy()),
        torch.tensor(found["activation"].to_numpy()),
    )


def test_activations_of_nothing_keep_their_columns(models):
    lens = EmbeddingLens(models("gpt2"))
    found = activations(models("gpt2"), TOKENS, lens.ov(layer=[]))
    check_tidy(
        found,
        ["layer", "head", "weight", "example", "pos"],
        ["layer", "head", "weight", "example", "pos", "activation"],
    )
    assert len(found) == 0


def test_a_corpus_mean_goes_back_in(models):
    model = models("gpt2")
    frame = table("neuron")
    measured: Any = activations(model, TOKENS, frame)
    mean = measured.groupby(["layer", "neuron"])["activation"].mean()
    put_in = ablation_hooks(frame, torch.tensor(mean.to_numpy()), model=model)
    # Layer 1's own mean is taken after layer 0 has been ablated, so only one layer can be compared.
    first = frame.query("layer == 0")
    same(
        logits(model, [hook for hook in put_in if ".0." in hook[0]]),
        logits(model, ablation_hooks(first, "mean", model=model)),
    )


# -- refusals


@pytest.mark.parametrize(
    ("frame", "options", "sentence"),
    [
        ({"layer": [2], "head": [0]}, {}, "layer=2 is out of range: .* has 2 layers"),
        ({"layer": [0], "head": [4]}, {}, "head=4 is out of range: block 0 of .* has 4 heads"),
        ({"layer": [0], "neuron": [48]}, {}, "neuron=48 is out of range"),
        ({"layer": [0], "head": [0], "subhead": [8], "weight": ["W_V"]}, {}, "subhead=8 is out of range"),
        ({"layer": [0], "head": [0], "subhead": [1], "weight": ["W_OV"]}, {}, "weight='W_OV' is not one of"),
        ({"layer": [0], "head": [-1], "neuron": [-1]}, {}, "names no neuron, head or direction"),
        ({"head": [0]}, {}, "Units are told by"),
        ({"layer": [0], "direction": ["a"]}, {}, "need their vectors"),
        ({"layer": [0], "direction": ["c"]}, {"vectors": VECTORS}, "vectors has none for 'c'"),
        ({"layer": [0], "direction": ["a"]}, {"vectors": {"a": torch.ones(3)}}, "width 3"),
        ({"layer": [0], "direction": ["a"]}, {"vectors": {"a": torch.zeros(32)}}, "zero or not finite"),
        ({"layer": [0.5], "head": [0]}, {}, r"df holds layer=0.5 \(row 0\), which is no whole number"),
        ({"layer": [0, float("nan")], "neuron": [1, 2]}, {}, r"df holds layer=nan \(row 1\)"),
        ({"layer": ["0_pre"], "head": [0]}, {}, "df holds layer='0_pre'"),
        ({"layer": [0], "head": [0]}, {"mode": "men"}, "mode='men' is not one of 'zero', 'mean'. Did you mean 'mean'"),
        ({"layer": [0], "head": [0]}, {"mode": torch.ones(2, 8)}, r"shape \(2, 8\) for 1 units; give \[1, d_head\]"),
        ({"layer": [0], "head": [0]}, {"mode": torch.tensor(float("nan"))}, "NaN or infinite"),
    ],
)
def test_what_cannot_be_ablated(models, frame, options, sentence):
    with pytest.raises(EmbspaceError, match=sentence):
        ablation_hooks(pd.DataFrame(frame), model=models("gpt2"), **options)


def test_other_refusals(models):
    model = models("gpt2")
    with pytest.raises(EmbspaceError, match="df is a list"):
        ablation_hooks([1], model=model)  # pyright: ignore[reportArgumentType]
    with pytest.raises(EmbspaceError, match="factor='x' is not a number"):
        scaling_hooks(table("head"), "x", model=model)  # pyright: ignore[reportArgumentType]
    with pytest.raises(EmbspaceError, match="hook='hook_q' is not one of"):
        steering_hooks(torch.ones(32), 0, model=model, hook="hook_q")
    with pytest.raises(EmbspaceError, match="width 31"):
        steering_hooks(torch.ones(31), 0, model=model)
    with pytest.raises(EmbspaceError, match="for 1 layers"):
        steering_hooks(torch.ones(2, 32), 0, model=model)
    with pytest.raises(EmbspaceError, match="layer=2 is out of range"):
        steering_hooks(torch.ones(32), 2, model=model)
    for layer in (1.5, None, "1", True):
        with pytest.raises(EmbspaceError, match="is not the number of a block"):
            steering_hooks(torch.ones(32), layer, model=model)  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        EmbspaceError, match=r"mode has shape \(5, 9, 4\), which does not fit \(2, 5, 4\) at blocks.0.mlp"
    ):
        frame = pd.DataFrame({"layer": 0, "neuron": range(4)})
        logits(model, ablation_hooks(frame, torch.zeros(5, 9, 4), model=model))
    for ids in ([97], [-1]):
        with pytest.raises(EmbspaceError, match="has tokens 0 to 96"):
            activations(model, torch.tensor(ids), table("head"))
    with pytest.raises(EmbspaceError, match="tokens are torch.float32"):
        activations(model, torch.ones(3), table("head"))
    with pytest.raises(EmbspaceError, match="positions=9 are not places among 5 tokens"):
        logits(model, ablation_hooks(table("head"), model=model, positions=9))
    assert not any(point.fwd_hooks for point in model.hook_dict.values()), "an error leaves nothing either"
    llama = models("llama")
    shared = pd.DataFrame({"layer": 0, "head": [0, 1], "subhead": 3, "weight": "W_V"})
    with pytest.raises(EmbspaceError, match="query heads share key and value heads at blocks.0.attn.hook_v"):
        logits(llama, ablation_hooks(shared, torch.ones(2), model=llama))
    assert (logits(llama, ablation_hooks(shared, model=llama)) - logits(llama)).abs().max() > 1e-4
    with pytest.raises(EmbspaceError, match="multi-head latent attention"):
        ablation_hooks(table("head"), model=models("deepseek_v2"))
    with pytest.raises(EmbspaceError, match="its shape is .* where the weights say"):
        doubled = models("qwen3_next")
        row = pd.DataFrame({"layer": [1], "head": [0], "subhead": [1], "weight": ["W_Q"]})
        logits(doubled, ablation_hooks(row, model=doubled))


def test_the_examples_in_docstrings_run(models):
    model = models("gpt2")
    names = {"model": model, "lens": EmbeddingLens(model), "torch": torch}
    names |= {f.__name__: f for f in (ablation_hooks, activations, scaling_hooks, steering_hooks)}
    ran = 0
    for test in doctest.DocTestFinder().find(sys.modules["embspace_lens.interventions.hooks"], globs=names):
        result = doctest.DocTestRunner().run(test)
        assert result.failed == 0, test.name
        ran += result.attempted
    assert ran >= 8


def test_ids_longer_than_the_positions_are_refused():
    model, rows = zoo.boot(zoo.ZOO["gpt2"]()), pd.DataFrame({"layer": [0], "head": [0]})
    with pytest.raises(EmbspaceError, match="tokens are 5000 long, and the model has positions for"):
        activations(model, torch.zeros(1, 5000, dtype=torch.long), rows)
