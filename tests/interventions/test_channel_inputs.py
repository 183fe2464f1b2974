"""Effects of channel ablation on the input side: compared with edited weights, and on a demo model."""

import numpy as np
import pytest
import torch
import zoo
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError, demo
from embspace_lens.circuits import vocabulary_channels
from embspace_lens.forward.batches import token_batches
from embspace_lens.interventions import channel_input_effects
from embspace_lens.tables.intervals import bootstrap_interval

KEYS = ["layer", "neuron", "weight", "channel", "sample"]
TEXTS = ["w2 w3 w4 w5 w6 w7", "w9 w8 w7 w6", "w20 w21 w22 w23 w24", "w40 w41 w3", "w50 w9 w50 w9 w50"]


def edited_model(family, layer, weight, neuron, direction, fold_ln):
    """The same model, with the channel removed from the stored weight."""
    lens = EmbeddingLens(zoo.boot(zoo.ZOO[family]()), fold_ln=fold_ln)
    unit = (direction / direction.norm()).double()
    w = lens.weights.directions(weight, layer)[neuron].double()
    norm = lens.weights.norm(weight, layer)
    change = (w @ unit) * unit / (norm.gain.double() if fold_ln and norm.gain is not None else 1)
    with torch.no_grad():
        stored = lens.weights.stored(weight, layer)
        column = stored[:, neuron] if stored.shape[0] == lens.weights.d_model else stored[neuron]
        column -= change.to(column)
        if fold_ln and norm.bias is not None:  # the part of the activation that comes from the norm's bias stays
            lens.model.blocks[layer].mlp.b_in[neuron] += (norm.bias.double() @ change).float()
    return lens.model


@pytest.mark.parametrize("fold_ln", [True, False])
@pytest.mark.parametrize(
    ("family", "weight"),
    [("gpt2", "W_in"), ("llama", "W_gate"), ("llama", "W_in"), ("olmo2", "W_gate"), ("gptj", "W_in")],
)
@torch.no_grad()
def test_effects_equal_those_of_an_edited_weight(tiny, family, weight, fold_ln):
    lens = EmbeddingLens(tiny(family), fold_ln=fold_ln)
    result = vocabulary_channels(lens, 1, [5, 7], weight=weight, n_channels=2, k=4, threshold=2.0)
    table = channel_input_effects(lens, result, TEXTS, seed=4)
    check_tidy(table, KEYS, [*KEYS, "activation_change", "low", "high", "n"])
    for i, row in result.channels.iterrows():
        edited = edited_model(family, 1, weight, row["neuron"], result.directions[i], fold_ln)
        tokens = result.tokens[result.tokens["neuron"] == row["neuron"]]
        own = set(tokens.loc[tokens["channel"] == row["channel"], "token_index"])
        changes = {"own": [], "other": []}
        for text in TEXTS:
            (batch,) = token_batches(lens.model, [text])
            post = [
                model.run_with_cache(batch.tokens)[1]["blocks.1.mlp.hook_post"][0, :, row["neuron"]]
                for model in (lens.model, edited)
            ]
            for token, own_text, change in zip(batch.tokens[0], batch.mask[0], (post[0] - post[1]).abs()):
                sample = "own" if int(token) in own else "other" if int(token) in set(tokens["token_index"]) else ""
                if own_text and sample:
                    changes[sample].append(float(change))
        rows = table[(table["neuron"] == row["neuron"]) & (table["channel"] == row["channel"])].set_index("sample")
        for sample, values in changes.items():
            assert rows.loc[sample, "n"] == len(values)
            mean = np.mean(values) if values else np.nan
            assert rows.loc[sample, "activation_change"] == pytest.approx(mean, rel=2e-3, abs=2e-5, nan_ok=True)
            interval = bootstrap_interval(sorted(values))
            assert np.isnan(interval[0]) == np.isnan(rows.loc[sample, "low"])
        assert rows.loc["random", "n"] <= rows.loc["own", "n"]


def test_channels_of_the_first_block_change_the_activation_at_their_own_tokens_most():
    lens = EmbeddingLens(demo.load("reviews-small-0"), vocabulary=demo.frequent_words)
    texts = [
        "A wonderful film with a great cast, and a wonderful story.",
        "The worst movie that she has ever seen.",
    ] * 20
    result = vocabulary_channels(lens, 0, range(30), weight="W_in", n_channels=2)
    effects = channel_input_effects(lens, result, texts)
    table = effects.pivot_table("activation_change", ["neuron", "channel"], "sample").dropna()
    assert len(table) > 5 and table["own"].mean() > 1.5 * table["random"].mean()


def test_unsupported_channels_raise(lens):
    with pytest.raises(EmbspaceError, match="These are channels of W_out. Only channels of W_in or W_gate can be"):
        channel_input_effects(lens, vocabulary_channels(lens, 0, 1, n_channels=1, k=2), TEXTS)
