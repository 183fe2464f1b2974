"""ROTATE: the objective of vocabulary channels, and their faithfulness by ablation on the output and the input side."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ..circuits.channels import LONG_MASK, LONG_QUANTILE, VocabularyChannels, vocabulary_channels
from ..circuits.kurtosis import centred, excess_kurtosis, long_rows, objective
from ..demo.catalog import names as demo_names
from ..forward.texts import read_texts
from ..interventions.channel_ablation import channel_effects
from ..interventions.channel_inputs import channel_input_effects
from ..lens import EmbeddingLens
from ..tables.intervals import bootstrap_interval
from .data_files import TEST, data_file
from .experiment import Experiment, Findings, Setting, figures
from .householder_search import KURTOSIS_WEIGHT, householder_channels

SOURCE = "Avrahamy, Gur-Arieh & Geva (2026), Disentangling MLP Neuron Weights in Vocabulary Space"
N_NEURONS = 100  # of each block; the paper has 99 and 100
N_CHANNELS, N_TEXTS, MAX_TOKENS = 5, 200, 64
CONTROL = "directions at random with the same cosine to the weight"


def legible_lens(setting: Setting) -> EmbeddingLens:
    """The model over frequent words (demo models) or whole words (others)."""
    vocabulary = "frequent" if setting.model in demo_names() else "words"
    return EmbeddingLens.from_pretrained(setting.model, vocabulary=vocabulary)


def random_neurons(lens: EmbeddingLens, layer: int, setting: Setting) -> list[int]:
    """Neurons of a block at random, in ascending order."""
    n_neurons = lens.weights.d_mlp(layer)
    generator = np.random.default_rng([setting.seed, layer])
    return sorted(generator.choice(n_neurons, min(n_neurons, setting.size(N_NEURONS, 2)), replace=False).tolist())


def run_objective(setting: Setting) -> Findings:
    """The objective of the first channels, by this package and by the published optimiser, on the same neurons."""
    rows = []
    for label, lens in (
        ("all tokens", EmbeddingLens.from_pretrained(setting.model, fold_ln=False)),
        ("words", legible_lens(setting)),
    ):
        neurons = {layer: random_neurons(lens, layer, setting) for layer in lens.weights.layers_with("mlp")}
        w = torch.cat([lens.weights.W_out(layer)[chosen] for layer, chosen in neurons.items()])
        embedding = lens.space.rows("write")[:]
        mask = torch.ones(len(embedding))
        mask[long_rows(embedding.norm(dim=1), LONG_QUANTILE)] = LONG_MASK
        start = time.process_time()
        result = householder_channels(w, embedding, mask, seed=setting.seed)
        their_seconds = time.process_time() - start
        for candidate, theirs in (("kurtosis", result.by_kurtosis), ("objective", result.by_objective)):
            start = time.process_time()
            options: Any = {"n_channels": 1, "candidate": candidate, "k": 1}
            found = [vocabulary_channels(lens, layer, chosen, **options) for layer, chosen in neurons.items()]
            our_seconds = time.process_time() - start
            ours = torch.cat([channels.directions for channels in found])
            measured = [first_channel_values(r, w, embedding, mask) for r in (ours, theirs)]
            for name in measured[0]:
                value, control = (values[name].double().numpy() for values in measured)
                low, high = bootstrap_interval(value, seed=setting.seed)
                rows.append(
                    {
                        "measure": f"{label}, candidate by {candidate}: {name} of the first channel",
                        "value": value.mean(),
                        "low": low,
                        "high": high,
                        "control": control.mean(),
                        "n": len(value),
                    }
                )
            seconds = {"value": our_seconds, "control": their_seconds, "n": len(w)}
            rows.append({"measure": f"{label}, candidate by {candidate}: seconds of processor time", **seconds})
        start_values = first_channel_values(w, w, embedding, mask)["objective"].double().numpy()
        rows.append(
            {"measure": f"{label}: objective of the neuron's weight itself", "value": start_values.mean(), "n": len(w)}
        )
    return Findings(
        figures("ROTATE:objective", setting, rows),
        notes=(
            "Value: this package. Control: the published loop (AdamW at 8e-4 on a Householder reflection, up to 10,000 steps, all neurons in one batch).",
            "The paper does not report the objective, so `published` is empty.",
        ),
    )


def first_channel_values(
    r: Float[Tensor, "n d_model"],
    w: Float[Tensor, "n d_model"],
    embedding: Float[Tensor, "n_tokens d_model"],
    mask: Float[Tensor, " n_tokens"],
) -> dict[str, Float[Tensor, " n"]]:
    """The objective, the kurtosis without the mask and the cosine of directions."""
    scores = r @ embedding.T
    cosine = torch.cosine_similarity(r, w, dim=1)
    masked = excess_kurtosis(centred(scores * mask))
    return {
        "objective": objective(masked, cosine, KURTOSIS_WEIGHT),
        "kurtosis without the mask": excess_kurtosis(centred(scores)),
        "cosine to the neuron": cosine,
    }


def run_ablation(setting: Setting) -> Findings:
    """Ablate channels of W_out, W_in and W_gate, and random directions of the same cosine."""
    lens = legible_lens(setting)
    texts = read_texts(data_file(setting, "reviews"), where=TEST)[: setting.size(N_TEXTS, 2)]
    rows, details = [], {}
    for layer in lens.weights.layers_with("mlp"):
        neurons = random_neurons(lens, layer, setting)
        weights = ["W_out", "W_in", *(["W_gate"] if lens.weights.is_gated(layer) else [])]
        for weight in weights:
            channels = vocabulary_channels(lens, layer, neurons, weight=weight, n_channels=N_CHANNELS)
            measure, column = (
                (channel_effects, "logit_change") if weight == "W_out" else (channel_input_effects, "activation_change")
            )
            tables = [
                measure(lens, ablated, texts, max_tokens=MAX_TOKENS, seed=setting.seed)
                for ablated in (channels, random_directions(lens, channels, setting.seed))
            ]
            details[f"{weight}, block {layer}"] = tables[0]
            rows += _samples(weight, layer, tables, column, setting.seed)
    return Findings(
        figures("ROTATE:ablation", setting, rows),
        details,
        notes=(
            f"Control: {CONTROL}, in place of the channels. n: channels.",
            "W_out: mean absolute change of logits at the neuron's most active positions. W_in and W_gate: mean absolute change of the activation at "
            "positions of the tokens.",
            "The lens reads W_in through W_E; the paper reads all weights through W_U.",
        ),
    )


def random_directions(lens: EmbeddingLens, channels: VocabularyChannels, seed: int) -> VocabularyChannels:
    """The same channels with directions at random that have the same length and the same cosine to the neuron's weight."""
    r = channels.directions
    keys = zip(channels.channels["layer"].tolist(), channels.channels["neuron"].tolist())
    w = torch.stack([lens.weights.directions(channels.weight, layer)[neuron].to(r) for layer, neuron in keys])
    w = normalize(w, dim=1)
    noise = torch.randn(r.shape, generator=torch.Generator().manual_seed(seed)).to(r)
    across = normalize(noise - (noise * w).sum(1, keepdim=True) * w, dim=1)
    length, along = r.norm(dim=1, keepdim=True), (r * w).sum(1, keepdim=True)
    return replace(channels, directions=along * w + (length**2 - along**2).clamp(min=0).sqrt() * across)


def _samples(weight: str, layer: int, tables: list[pd.DataFrame], column: str, seed: int) -> list[dict[str, Any]]:
    """The mean effects on own, other and random tokens, and how often a channel's own tokens change most."""
    by_sample = [table.pivot(index=["neuron", "channel"], columns="sample", values=column) for table in tables]
    rows = []
    what = "logits" if column == "logit_change" else "activation"
    for sample in ("own", "other", "random"):
        values = by_sample[0][sample].dropna()
        low, high = bootstrap_interval(values, seed=seed)
        rows.append(
            {
                "measure": f"{weight}, block {layer}: change of {what}, {sample} tokens",
                "value": values.mean(),
                "low": low,
                "high": high,
                "control": by_sample[1][sample].mean(),
                "n": len(values),
            }
        )
    above = [
        (changes["own"] > changes[["other", "random"]].max(axis=1))[changes["own"].notna()] for changes in by_sample
    ]
    rows.append(
        {
            "measure": f"{weight}, block {layer}: share of channels whose own tokens change most",
            "value": above[0].mean(),
            "control": above[1].mean(),
            "n": len(above[0]),
        }
    )
    return rows


EXPERIMENTS = [
    Experiment(
        name="ROTATE:objective",
        title="The objective of vocabulary channels",
        source=f"{SOURCE}, the objective and its optimisation",
        protocol=(
            "0.3 slog(excess kurtosis) − (1 − cosine) of the first channel of W_out, on neurons of all blocks; control: the published optimiser on the "
            "same neurons. Processor time of both."
        ),
        run=run_objective,
        demo_scale=0.05,
    ),
    Experiment(
        name="ROTATE:ablation",
        title="Vocabulary channels, tested by ablation",
        source=f"{SOURCE}, faithfulness on the output and the input side",
        protocol=(
            "A channel is removed from its neuron: the change of logits of its own tokens (W_out), and of the activation at its own tokens (W_in, W_gate), "
            f"next to the tokens of the neuron's other channels and random tokens. Control: {CONTROL}."
        ),
        run=run_ablation,
        demo_scale=0.1,
        models=("reviews-small-0", "reviews-small-1"),
        needs=("reviews",),
    ),
]
