"""Activations of components: compared with the model's cache, on ids and texts, and errors."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import zoo
from component_tables import GROUP, KINDS, MODELS, TOKENS, VECTORS, assert_close, logits, table
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError, demo
from embspace_lens.forward.batches import token_batches
from embspace_lens.interventions import ablation_hooks, activations, patching_frame


@pytest.mark.parametrize("name", [name for name in MODELS if "moe" not in name])
def test_activations_equal_the_cache(models, name):
    model = models(name)
    with torch.no_grad():
        _, cache = model.run_with_cache(TOKENS)
    kinds = [kind for kind in KINDS if not (kind == "neuron" and name == "mixtral")]
    for kind in kinds:
        frame = table(kind)
        measured: Any = activations(model, TOKENS, frame, vectors=VECTORS, batch_tokens=5)
        ordered = [c for c in ("layer", "head", "neuron", "subhead", "weight", "direction") if c in frame]
        check_tidy(measured, [*ordered, "example", "pos"], [*ordered, "example", "pos", "activation"])
        assert len(measured) == 3 * TOKENS.numel()
        for row in measured.itertuples():
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
        assert frame.merge(measured, on=list(frame.columns)).shape[0] == len(measured)


def test_special_tokens_of_texts_are_left_out(models):
    model = models("gpt2")
    texts = ["w2 w3 w4 w5", "", "w9"]
    frame = EmbeddingLens(model).neurons(layer=0, neuron=[3, 5], k=2)
    measured: Any = activations(model, texts, frame)
    check_tidy(
        measured,
        ["layer", "neuron", "weight", "example", "pos"],
        ["layer", "neuron", "weight", "example", "pos", "activation"],
    )
    first = int(next(token_batches(model, ["w9"])).mask[0].int().argmax())  # after the special tokens
    expected = [[0, first], [0, first + 1], [0, first + 2], [0, first + 3], [2, first]]
    assert measured[["example", "pos"]].drop_duplicates().values.tolist() == expected
    by_weight = [group["activation"].tolist() for _, group in measured.groupby("weight", observed=True)]
    assert len(by_weight) == 2 and by_weight[0] == by_weight[1], "a neuron has one activation for all its weights"
    (batch,) = token_batches(model, ["w9"])
    _, cache = model.run_with_cache(batch.tokens)
    last = measured.query("example == 2 and neuron == 5 and weight == 'W_in'")["activation"].item()
    assert last == pytest.approx(float(cache["blocks.0.mlp.hook_post"][0, -1, 5].detach()), abs=1e-5)
    assert_close(
        torch.tensor(activations(model, iter(texts), frame)["activation"].to_numpy()),
        torch.tensor(measured["activation"].to_numpy()),
    )


@torch.no_grad()
def test_a_merge_with_a_patching_table_on_positions_agrees_with_a_run():
    demo_model = demo.load("reviews-small-0")
    text, neuron = "A wonderful film with a great cast.", 7
    _, cache = demo_model.run_with_cache(demo_model.to_tokens(text))
    layers = range(demo_model.cfg.n_layers)
    values = torch.stack([cache[f"blocks.{layer}.mlp.hook_post"][0, :, neuron] for layer in layers])
    measured = activations(demo_model, [text], pd.DataFrame({"layer": layers, "neuron": neuron}))
    merged = measured.merge(patching_frame(values, ("layer", "pos")), on=["layer", "pos"])
    assert len(merged) == len(measured) == len(layers) * (values.shape[1] - 1), "every token but BOS"
    np.testing.assert_allclose(merged["activation"], merged["value"], atol=1e-5)


def test_empty_tables_keep_their_columns(models):
    lens = EmbeddingLens(models("gpt2"))
    empty_table = activations(models("gpt2"), TOKENS, lens.ov(layer=[]))
    check_tidy(
        empty_table,
        ["layer", "head", "weight", "example", "pos"],
        ["layer", "head", "weight", "example", "pos", "activation"],
    )
    assert len(empty_table) == 0


def test_ablation_with_measured_means_equals_mean_ablation(models):
    model = models("gpt2")
    frame = table("neuron")
    measured: Any = activations(model, TOKENS, frame)
    mean = measured.groupby(["layer", "neuron"])["activation"].mean()
    hooks = ablation_hooks(frame, torch.tensor(mean.to_numpy()), model=model)
    # Mean ablation computes layer 1's mean after layer 0 is ablated, so only layer 0 can be compared.
    first = frame.query("layer == 0")
    assert_close(
        logits(model, [hook for hook in hooks if ".0." in hook[0]]),
        logits(model, ablation_hooks(first, "mean", model=model)),
    )


def test_sequences_longer_than_the_context_window_raise():
    model, rows = zoo.boot(zoo.ZOO["gpt2"]()), pd.DataFrame({"layer": [0], "head": [0]})
    with pytest.raises(EmbspaceError, match="tokens are 5000 long, but the context window of zoo is 24"):
        activations(model, torch.zeros(1, 5000, dtype=torch.long), rows)


def test_invalid_token_ids_raise(models):
    model = models("gpt2")
    for ids in ([97], [-1]):
        with pytest.raises(EmbspaceError, match=r"is out of range: zoo has 97 tokens \(0 to 96\)"):
            activations(model, torch.tensor(ids), table("head"))
    with pytest.raises(EmbspaceError, match="tokens are torch.float32 of shape .* Give integer ids"):
        activations(model, torch.ones(3), table("head"))
    with pytest.raises(EmbspaceError, match="tokens cannot be made a tensor"):
        activations(model, [[1, 2], [3]], table("head"))
