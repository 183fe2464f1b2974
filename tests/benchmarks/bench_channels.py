"""Vocabulary channels of a demo model's neurons, compared with the original optimiser, with the objective that each reaches.

The original implementation optimises one neuron at a time, with up to 10,000 AdamW steps per channel. Here it takes 3,000 steps, and it is timed on a few
neurons; the time for all neurons is extrapolated, as the row states. The objective is measured for all neurons: AdamW updates each entry
independently, so a neuron has the same result in a batch as alone. A second row gives the time of this batch, which the original does not use.

`make bench` runs all benchmarks. This one alone: `PYTHONPATH=.:tests python tests/benchmarks/bench_channels.py`.
"""

import math
import time
from collections.abc import Iterator

import torch
from measuring import Measurement, print_header, print_measurement, seconds
from reference import adamw_channel
from torch import Tensor

from embspace_lens import EmbeddingLens
from embspace_lens.circuits.channels import vocabulary_channels
from embspace_lens.circuits.kurtosis import centred, excess_kurtosis, long_rows, objective

N_STEPS, N_TIMED = 3000, 2


def adamw_batch(w: Tensor, rows: Tensor, mask: Tensor, n_steps: int, lr: float = 0.03) -> Tensor:
    """`reference.adamw_channel` for many neurons at once; each gives the same result as alone."""
    scale = w.norm(dim=1, keepdim=True) / math.sqrt(w.shape[1])
    r = (w / scale).requires_grad_()  # entries of size 1, so that one learning rate suits all neurons
    optimiser = torch.optim.AdamW([r], lr=lr)
    for _ in range(n_steps):
        scores = centred((r @ rows.T) * mask)
        loss = -objective(excess_kurtosis(scores), torch.cosine_similarity(r, w, dim=1), 0.3).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return r.detach()


def bench_channels(
    name: str = "reviews-small-0", layer: int = 2, n: int = 100, n_steps: int = N_STEPS, n_timed: int = N_TIMED
) -> Iterator[Measurement]:
    """The first channel of n neurons, over all tokens and over frequent words."""
    for vocabulary in (None, "frequent"):
        lens = EmbeddingLens.from_pretrained(name, vocabulary=vocabulary)
        order = torch.randperm(lens.weights.d_mlp(layer), generator=torch.Generator().manual_seed(0))
        yield from bench_neurons(lens, layer, order[:n].sort().values, n_steps, n_timed)


def bench_neurons(
    lens: EmbeddingLens, layer: int, neurons: Tensor, n_steps: int, n_timed: int
) -> Iterator[Measurement]:
    """The first channel of the given neurons, compared with AdamW for one neuron at a time and for all in one batch."""
    n = len(neurons)
    w, rows = lens.weights.W_out(layer)[neurons], lens.space.rows("write")[:]
    mask = torch.ones(len(rows))
    mask[long_rows(rows.norm(dim=1), 0.99)] = 1e-4

    mean_objective = vocabulary_channels(lens, layer, neurons, n_channels=1).channels["objective"].mean()
    ours = seconds(lambda: vocabulary_channels(lens, layer, neurons, n_channels=1))
    one_by_one = seconds(lambda: [adamw_channel(vector, rows, mask, n_steps) for vector in w[:n_timed]]) / n_timed * n
    start = time.perf_counter()
    optimised = adamw_batch(w, rows, mask, n_steps)
    batch = time.perf_counter() - start
    scores, similarity = centred((optimised @ rows.T) * mask), torch.cosine_similarity(optimised, w, dim=1)
    adamw_objective = float(objective(excess_kurtosis(scores), similarity, 0.3).mean())

    label = f"{lens.name}, {lens.mask} tokens: first channel of {n} neurons, objective {mean_objective:.3f}"
    label += f", next to {n_steps} AdamW steps ({adamw_objective:.3f})"
    nan = float("nan")
    yield Measurement(f"{label}, from {n_timed} neurons", ours, one_by_one, one_by_one / ours, nan)
    yield Measurement(f"{label}, in one batch", ours, batch, batch / ours, nan)


def main() -> None:
    """Print each measurement as soon as it is made."""
    print_header()
    for row in bench_channels():
        print_measurement(row)


if __name__ == "__main__":
    main()
