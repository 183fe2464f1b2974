"""Paper A, t-SNE: the top tokens of a parameter lie close together in embedding space."""

import numpy as np
import torch

from ..lens import EmbeddingLens
from ..plots.plane import plot_plane
from ..tables.intervals import bootstrap_interval
from ..tables.selection import Select
from .experiment import Experiment, Findings, Setting, figures
from .raw_lens import legible_lens
from .singular_values import mean_cosine

NAME = "A:t-sne"
K, N_SHOWN = 25, 4


def run(setting: Setting) -> Findings:
    """Measure how close the top tokens of MLP values are, and draw those of the most coherent ones."""
    lens = legible_lens(setting.model)
    rng = np.random.default_rng(setting.seed)
    random_tokens = torch.from_numpy(rng.random((200, lens.weights.d_model))).float() - 0.5
    rows, best = [], []
    layers: Select = lens.weights.layers_with("mlp")
    for layer in layers:
        x = lens.weights.W_out(layer)
        values = mean_cosine(lens, x, K)
        low, high = bootstrap_interval(values)
        rows.append(
            {
                "measure": f"W_out, layer {layer}: mean cosine between the {K} top tokens of a neuron",
                "value": values.mean().item(),
                "low": low,
                "high": high,
                "control": mean_cosine(lens, random_tokens, K).mean().item(),
                "n": len(values),
            }
        )
        best += [
            (value, layer, int(neuron)) for value, neuron in zip(*(part.tolist() for part in values.topk(N_SHOWN)))
        ]
    neurons = sorted(best, reverse=True)[:N_SHOWN]
    return Findings(
        figures(NAME, setting, rows),
        plot=lambda: _picture(lens, neurons, setting.seed),
        notes=("The paper shows the picture only; the mean cosine is the package's own measure of it.",),
    )


def _picture(lens: EmbeddingLens, neurons: list[tuple[float, int, int]], seed: int) -> object:
    """The top tokens of several neurons on a plane."""
    vectors = torch.stack([lens.weights.W_out(layer)[neuron] for _, layer, neuron in neurons])
    table = lens.directions(vectors, names=[f"L{layer}N{neuron}" for _, layer, neuron in neurons], k=K)
    return plot_plane(lens, table, seed=seed)


EXPERIMENTS = [
    Experiment(
        name=NAME,
        title="Top tokens lie close together (t-SNE)",
        source="Dar et al. (2023), t-SNE figures",
        protocol=(
            f"The mean cosine between the embeddings of the {K} top tokens of a neuron's W_out row (norms folded, frequent words by cosine); "
            "control: the top tokens of random directions. The figure is a t-SNE of the tokens of the four most coherent neurons."
        ),
        run=run,
        models=("reviews-small-0",),
    )
]
