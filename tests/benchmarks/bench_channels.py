"""Vocabulary channels of a demo model's neurons beside the original's optimiser, at the original's own objective.

The original takes neurons one by one, with up to 10,000 AdamW steps a channel. Here it takes 3,000, and is timed on a few
neurons, one by one; the time of all is scaled from theirs, as the row says. Its objective is that of every neuron: AdamW
goes entry by entry, so neurons that share a batch do what they would alone, and a second row times that batch, which the
original does not do. Through `make bench`, or alone: `PYTHONPATH=.:tests python tests/benchmarks/bench_channels.py`.
"""

import math
import time
from collections.abc import Iterator

import torch
from bench_topk import Row, seconds
from reference import adamw_channel
from torch import Tensor

from embspace_lens import EmbeddingLens, demo
from embspace_lens.circuits.channels import vocabulary_channels
from embspace_lens.circuits.kurtosis import centred, excess_kurtosis, long_rows, objective

STEPS, ALONE = 3000, 2


def adamw_batch(w: Tensor, rows: Tensor, mask: Tensor, steps: int, lr: float = 0.03) -> Tensor:
    """`reference.adamw_channel` for many neurons at once; lr as there, for each its own."""
    scale = w.norm(dim=1, keepdim=True) / math.sqrt(w.shape[1])
    r = (w / scale).requires_grad_()  # entries of size 1: one step size fits all
    optimiser = torch.optim.AdamW([r], lr=lr)
    for _ in range(steps):
        c = centred((r @ rows.T) * mask)
        loss = -objective(excess_kurtosis(c), torch.cosine_similarity(r, w, dim=1), 0.3).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return r.detach()


def bench_channels(
    name: str = "reviews-small-0", layer: int = 2, n: int = 100, steps: int = STEPS, alone: int = ALONE
) -> Iterator[Row]:
    """The first channel of n neurons, over all tokens and over the words that the model saw often."""
    for what, tokens in (("all tokens", None), ("frequent words", demo.frequent_words)):
        lens = EmbeddingLens(demo.load(name), vocabulary=tokens)
        neurons = (
            torch.randperm(lens.weights.d_mlp(layer), generator=torch.Generator().manual_seed(0))[:n].sort().values
        )
        w, rows = lens.weights.W_out(layer)[neurons], lens.space.rows("write")[:]
        mask = torch.ones(len(rows))
        mask[long_rows(rows.norm(dim=1), 0.99)] = 1e-4
        found = vocabulary_channels(lens, layer, neurons, n_channels=1)
        ours = seconds(lambda lens=lens, neurons=neurons: vocabulary_channels(lens, layer, neurons, n_channels=1))
        start = time.perf_counter()
        for vector in w[:alone]:
            adamw_channel(vector, rows, mask, steps)
        one_by_one = (time.perf_counter() - start) / alone * n
        start = time.perf_counter()
        theirs = adamw_batch(w, rows, mask, steps)
        batch = time.perf_counter() - start
        c = centred((theirs @ rows.T) * mask)
        reached = float(objective(excess_kurtosis(c), torch.cosine_similarity(theirs, w, dim=1), 0.3).mean())
        label = f"demo, {what}: first channel of {n} neurons, objective {found.channels['objective'].mean():.3f}"
        nan = float("nan")
        beside = f"{steps} AdamW steps ({reached:.3f})"
        yield Row(f"{label}, beside {beside}, from {alone} neurons", ours, one_by_one, one_by_one / ours, nan)
        yield Row(f"{label}, beside {beside}, all at once", ours, batch, batch / ours, nan)


def main() -> None:
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; ratio = baseline / ours")
    for row in bench_channels():
        print(f"{row.name:104}{row.ours:9.3f}s{row.baseline:9.3f}s{row.ratio:8.1f}", flush=True)


if __name__ == "__main__":
    main()
