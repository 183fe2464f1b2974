"""Effects of channel ablation: compared with edited weights, and on a demo model."""

import math

import numpy as np
import pytest
import torch
import zoo
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError, demo
from embspace_lens.circuits import vocabulary_channels
from embspace_lens.forward.batches import token_batches
from embspace_lens.interventions import channel_effects
from embspace_lens.search.tiles import chunk_bytes
from embspace_lens.tables.intervals import bootstrap_interval

KEYS = ["layer", "neuron", "weight", "channel", "sample"]
TEXTS = ["w2 w3 w4 w5 w6 w7", "w9 w8 w7 w6", "w20 w21 w22 w23 w24", "w40 w41 w3", "w50 w9 w50 w9 w50"]


def edited_model(family, neuron, layer, direction):
    """The same model, with the channel removed from the neuron's stored weight."""
    model = zoo.boot(zoo.ZOO[family]())
    with torch.no_grad():
        W_out = model.blocks[layer].mlp.W_out
        unit = direction / direction.norm()
        w = W_out[neuron].clone()
        W_out[neuron] = w - (w @ unit) * unit
    return model


@pytest.mark.parametrize("family", ["gpt2", "llama", "granite"])  # Granite scales the outputs of its MLPs
@torch.no_grad()
def test_effects_equal_those_of_an_edited_weight(tiny, family):
    read = range(3, 60)
    lens = EmbeddingLens(tiny(family), vocabulary=read)
    model = lens.model
    result = vocabulary_channels(lens, 0, [5, 7], n_channels=2, k=4, threshold=2.0)
    before = model(torch.tensor([[1, 5, 6]]))
    table = channel_effects(lens, result, TEXTS, n_active=3, seed=4)
    torch.testing.assert_close(model(torch.tensor([[1, 5, 6]])), before, rtol=0, atol=0)
    check_tidy(table, KEYS, [*KEYS, "logit_change", "low", "high", "n"])
    assert set(table["n"]) == {3}

    for i, row in result.channels.iterrows():
        edited = edited_model(family, row["neuron"], row["layer"], result.directions[i])
        best = []
        for text in TEXTS:
            (batch,) = token_batches(model, [text])
            ids = batch.tokens
            _, cache = model.run_with_cache(ids)
            activation_size = cache["blocks.0.mlp.hook_post"][0, :, row["neuron"]].abs() * batch.mask[0]
            best.append((float(activation_size.max()), ids[:, : int(activation_size.argmax()) + 1]))
        tokens = result.tokens.loc[result.tokens["neuron"] == row["neuron"]]
        own_tokens = tokens.loc[tokens["channel"] == row["channel"], "token_index"].tolist()
        other_tokens = sorted(set(tokens["token_index"]) - set(own_tokens))
        changes = {"own": [], "other": []}
        for _, ids in sorted(best, key=lambda pair: -pair[0])[:3]:
            change = model(ids)[0, -1] - edited(ids)[0, -1]
            change = (change - change[read.start : read.stop].mean()).abs()
            changes["own"].append(float(change[own_tokens].mean()))
            changes["other"].append(float(change[other_tokens].mean()) if other_tokens else math.nan)
        rows = table.loc[(table["neuron"] == row["neuron"]) & (table["channel"] == row["channel"])]
        for sample, values in changes.items():
            effect = rows.loc[rows["sample"] == sample].iloc[0]
            assert effect["logit_change"] == pytest.approx(np.mean(values), rel=1e-3, abs=1e-5, nan_ok=True)
            interval = pytest.approx(bootstrap_interval(values, seed=4), rel=1e-3, abs=1e-5, nan_ok=True)
            assert (effect["low"], effect["high"]) == interval


def test_effects_are_independent_of_chunk_size(lens):
    result = vocabulary_channels(lens, 0, [5, 7], n_channels=3, k=4, threshold=2.0)
    unchunked = channel_effects(lens, result, TEXTS, n_active=3)
    with chunk_bytes(1):
        np.testing.assert_allclose(
            channel_effects(lens, result, TEXTS, n_active=3)["high"], unchunked["high"], rtol=1e-3, atol=1e-5
        )


def test_channels_of_a_demo_model_change_their_own_tokens_most():
    lens = EmbeddingLens(demo.load("reviews-small-0"), vocabulary=demo.frequent_words)
    texts = [
        "A wonderful film with a great cast.",
        "The worst movie that I have ever seen.",
        "She walks to the house of her mother.",
    ]
    result = vocabulary_channels(lens, 2, range(4), n_channels=2)
    effects = channel_effects(lens, result, texts, n_active=3)
    table = effects.pivot_table("logit_change", ["neuron", "channel"], "sample")
    assert (table["own"] > table["random"]).all() and table["own"].mean() > 2 * table["random"].mean()
    assert table["own"].mean() > table["other"].mean()


def test_unsupported_effects_raise(tiny, lens):
    with pytest.raises(EmbspaceError, match="These are channels of W_in. Only channels of W_out can be removed"):
        channel_effects(lens, vocabulary_channels(lens, 0, 1, weight="W_in", n_channels=1, k=2), TEXTS)
    result = vocabulary_channels(lens, 0, 1, n_channels=1, k=2)
    with pytest.raises(EmbspaceError, match="Fewer than two texts have a token"):
        channel_effects(lens, result, ["w2"])
    with pytest.raises(EmbspaceError, match="n_active=1 is not an integer of 2 or more"):
        channel_effects(lens, result, TEXTS, n_active=1)
    for fold_ln in (True, False):
        post_norm = EmbeddingLens(tiny("gemma2"), fold_ln=fold_ln)
        with pytest.raises(EmbspaceError, match="follows the MLP"):
            channel_effects(post_norm, vocabulary_channels(post_norm, 0, 1, n_channels=1, k=2), TEXTS)
    mixture = EmbeddingLens(tiny("mixtral"))
    with pytest.raises(EmbspaceError, match="no hook point for neurons"):
        channel_effects(mixture, vocabulary_channels(mixture, 0, 1, n_channels=1, k=2), TEXTS)
