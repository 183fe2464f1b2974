"""Vocabulary channels of a demo model's neurons, compared with the original's optimiser as published, with the objective that each reaches.

The baseline is `papers.householder_search`: AdamW at a learning rate of 8e-4 on a Householder reflection of each weight, with warm-up, all neurons in one batch,
up to 10,000 steps, stopped when every loss has converged, as in the authors' code. Times are processor times, because other programs may run on the machine.

`make bench` runs all benchmarks. This one alone: `PYTHONPATH=.:tests python tests/benchmarks/bench_channels.py`.
"""

import time
from collections.abc import Iterator

import torch
from measuring import Measurement, print_header, print_measurement
from torch import Tensor

from embspace_lens import EmbeddingLens
from embspace_lens.circuits.channels import LONG_MASK, LONG_QUANTILE, vocabulary_channels
from embspace_lens.circuits.kurtosis import long_rows
from embspace_lens.papers.channels import first_channel_values
from embspace_lens.papers.householder_search import MAX_STEPS, householder_channels


def bench_channels(
    name: str = "reviews-small-0", layer: int = 2, n: int = 20, max_steps: int = MAX_STEPS
) -> Iterator[Measurement]:
    """The first channel of n neurons, over all tokens and over frequent words."""
    for vocabulary in (None, "frequent"):
        lens = EmbeddingLens.from_pretrained(name, vocabulary=vocabulary)
        order = torch.randperm(lens.weights.d_mlp(layer), generator=torch.Generator().manual_seed(0))
        yield bench_neurons(lens, layer, order[:n].sort().values, max_steps)


def bench_neurons(lens: EmbeddingLens, layer: int, neurons: Tensor, max_steps: int) -> Measurement:
    """The first channel of the given neurons, compared with the published optimiser in one batch."""
    w, rows = lens.weights.W_out(layer)[neurons], lens.space.rows("write")[:]
    mask = torch.ones(len(rows))
    mask[long_rows(rows.norm(dim=1), LONG_QUANTILE)] = LONG_MASK

    start = time.process_time()
    ours = vocabulary_channels(lens, layer, neurons, n_channels=1).directions
    our_seconds = time.process_time() - start
    start = time.process_time()
    theirs = householder_channels(w, rows, mask, max_steps=max_steps)
    their_seconds = time.process_time() - start
    by_method = [first_channel_values(r, w, rows, mask) for r in (ours, theirs.by_kurtosis)]
    objectives, kurtoses = (
        [float(values[name].mean()) for values in by_method] for name in ("objective", "kurtosis without the mask")
    )

    label = f"{lens.name}, {lens.mask} tokens: first channel of {len(neurons)} neurons, objective {objectives[0]:.3f}, kurtosis {kurtoses[0]:.1f}"
    label += f", next to {theirs.n_steps} published steps ({objectives[1]:.3f}, {kurtoses[1]:.1f}); processor time"
    return Measurement(label, our_seconds, their_seconds, their_seconds / our_seconds, float("nan"))


def main() -> None:
    """Print each measurement as soon as it is made."""
    print_header()
    for row in bench_channels():
        print_measurement(row)


if __name__ == "__main__":
    main()
