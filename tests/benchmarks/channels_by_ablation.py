"""Whose logits move when a vocabulary channel is taken out of its neuron: its own tokens', other channels', or random ones'?

Ten random neurons of each block, five channels each, of W_out over the words that the model saw often; means over channels, and the
difference between own and other tokens with its 95 % bootstrap interval over channels.

    PYTHONPATH=. python tests/benchmarks/channels_by_ablation.py reviews-small-0 TEXTS --where "split == 'test'"
"""

import argparse

import numpy as np

from embspace_lens import EmbeddingLens, channel_effects, demo, vocabulary_channels
from embspace_lens.forward.texts import read_texts

NEURONS, CHANNELS = 10, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("texts")
    parser.add_argument("--where")
    parser.add_argument("--n-texts", type=int, default=200)
    chosen = parser.parse_args()
    lens = EmbeddingLens.from_pretrained(chosen.model, vocabulary=demo.frequent_words)
    texts = read_texts(chosen.texts, where=chosen.where)[: chosen.n_texts]
    print("block: own, other channels', random tokens; own - other [95 %]; share of channels with own above both")
    for layer in range(1, lens.weights.n_layers):
        rng = np.random.default_rng(0)
        neurons = sorted(rng.choice(lens.weights.d_mlp(layer), NEURONS, replace=False).tolist())
        found = vocabulary_channels(lens, layer, neurons, n_channels=CHANNELS)
        effects = channel_effects(lens, found, texts)
        changes = effects.pivot(index=["neuron", "channel"], columns="sample", values="logit_change")
        above = (changes["own"] > changes[["other", "random"]].max(axis=1)).mean()
        apart = (changes["own"] - changes["other"]).dropna().to_numpy()
        low, high = np.quantile(rng.choice(apart, (2000, len(apart))).mean(axis=1), [0.025, 0.975])
        mean = changes.mean()
        print(
            f"{layer}: {mean['own']:.3f}, {mean['other']:.3f}, {mean['random']:.3f}; {apart.mean():.3f} [{low:.3f}, {high:.3f}]; {above:.2f}"
        )


if __name__ == "__main__":
    main()
