"""Which logits change when one vocabulary channel of a neuron is removed: those of its own tokens, of the tokens of other channels, or of random tokens?

The script reads W_out over the frequent words of the demo models: ten random neurons of each layer, and five channels of each neuron. It prints
means over channels, and the difference between own and other tokens with its 95 % bootstrap interval over channels.

    PYTHONPATH=. python tests/benchmarks/channels_by_ablation.py reviews-small-0 TEXTS --where "split == 'test'"
"""

from pathlib import Path

import numpy as np
import typer

from embspace_lens import EmbeddingLens, channel_effects, vocabulary_channels
from embspace_lens.forward.texts import read_texts
from embspace_lens.tables.intervals import bootstrap_interval

N_NEURONS, N_CHANNELS, N_RESAMPLES = 10, 5, 2000


def main(model: str, texts: Path, where: str | None = None, n_texts: int = 200) -> None:
    """Print one line per layer."""
    lens = EmbeddingLens.from_pretrained(model, vocabulary="frequent")
    examples = read_texts(texts, where=where)[:n_texts]
    print("layer: own, other channels', random tokens; own - other [95 %]; share of channels with own above both")
    for layer in range(1, lens.weights.n_layers):
        generator = np.random.default_rng(0)
        neurons = sorted(generator.choice(lens.weights.d_mlp(layer), N_NEURONS, replace=False).tolist())
        channels = vocabulary_channels(lens, layer, neurons, n_channels=N_CHANNELS)
        effects = channel_effects(lens, channels, examples)
        changes = effects.pivot(index=["neuron", "channel"], columns="sample", values="logit_change")
        share_above = (changes["own"] > changes[["other", "random"]].max(axis=1)).mean()
        difference = (changes["own"] - changes["other"]).dropna().to_numpy()
        low, high = bootstrap_interval(difference, n_resamples=N_RESAMPLES)
        mean = changes.mean()
        print(
            f"{layer}: {mean['own']:.3f}, {mean['other']:.3f}, {mean['random']:.3f}; "
            f"{difference.mean():.3f} [{low:.3f}, {high:.3f}]; {share_above:.2f}"
        )


if __name__ == "__main__":
    typer.run(main)
