"""One table: exact pairs beside brute force and the dense product, neurons beside the bare product, peak extra memory.

`make bench`. Ratios are baseline / ours, both measured in turns in this run; seconds depend on the machine.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import torch
from bench_align import bench_demo, bench_large
from bench_channels import bench_channels
from bench_factors import bench_factors
from bench_topk import (
    Row,
    bench_pairs,
    bench_tokens,
    dense_pairs,
    extra_memory,
    tiled_pairs,
    tiled_product,
    trained_like,
    versus,
)
from overlap import overlap
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import GPT2Config, GPT2LMHeadModel

from embspace_lens import EmbeddingLens, demo
from embspace_lens.search import top_pairs


def gpt2_shaped(seed: int = 0) -> EmbeddingLens:
    """GPT-2 small's shape with fresh weights: 12 layers, 12 heads of 64, 50,257 tokens."""
    torch.manual_seed(seed)
    config = GPT2Config()
    return EmbeddingLens(build_bridge_from_module(GPT2LMHeadModel(config), "GPT2LMHeadModel", hf_config=config))


def whole_reading(lens: EmbeddingLens, name: str, layer: int | None) -> Row:
    """`lens.neurons` with its frame, beside the bare products of the same vectors with the same rows."""
    layers = lens.weights.layers_with("mlp") if layer is None else [layer]
    sides = [
        (lens.weights.directions(w, n), lens.space.rows(s)[:])
        for n in layers
        for w, s in (("W_in", "read"), ("W_out", "write"))
    ]

    def bare() -> None:
        for vectors, rows in sides:
            tiled_product(vectors, rows)

    what = f"{name}: lens.neurons({'' if layer is None else f'layer={layer}'}), the table and all, beside the bare products"
    return versus(what, lambda: lens.neurons(layer), bare, repeats=3)


def dense_estimate(A: torch.Tensor, left: torch.Tensor, right: torch.Tensor, B: torch.Tensor, k: int, name: str) -> Row:
    """The paper's dense way on a sixteenth of the rows, its time times sixteen: the whole product would take 10 GB."""
    part = A[::16]
    row = versus(name, lambda: top_pairs(A, left, right, B, k), lambda: dense_pairs(part, left, right, B, k), repeats=1)
    return row._replace(baseline=16 * row.baseline, ratio=16 * row.ratio)


def whole_heads(lens: EmbeddingLens, layer: int) -> Row:
    """`lens.ov` of one layer, rows folded on the fly and table and all, beside tiled brute force on rows made before."""
    read, write = lens.space.rows("read")[:], lens.space.rows("write")[:]
    forms = [(lens.weights.W_V(layer)[h], lens.weights.W_O(layer)[h].T) for h in range(lens.weights.n_heads)]

    def brute() -> None:
        for left, right in forms:
            tiled_pairs(read, left, right, write, 10)

    return versus(
        f"demo: lens.ov(layer={layer}), the table and all, beside tiled brute force",
        lambda: lens.ov(layer),
        brute,
        repeats=3,
    )


def shared_tokens() -> Iterator[str]:
    """How much keys and values share, beside a shuffle within the layer: the README's table."""
    yield "\nmean Jaccard of the top 100 tokens by absolute score, whole words, centred cosine: paired / shuffled = ratio"
    for name in demo.names():
        lens = EmbeddingLens(demo.load(name), vocabulary="words", score="cosine")
        for first, second in (("W_in", "W_out"), ("W_V", "W_O")):
            paired, shuffled = overlap(lens, first, second)
            layers = " ".join(f"{p / s:.2f}" for p, s in zip(paired, shuffled))
            mean = sum(paired) / len(paired), sum(shuffled) / len(shuffled)
            yield f"{name:18}{first:>5}, {second:6}{mean[0]:.4f} / {mean[1]:.4f} = {mean[0] / mean[1]:.2f}   by layer {layers}"


def table() -> Iterator[Row]:
    """Every figure, first the demo model's, then those of GPT-2 small's shape."""
    lens = EmbeddingLens(demo.load("reviews-small-0"))
    w, read, write = lens.weights, lens.space.rows("read")[:], lens.space.rows("write")[:]
    neurons = torch.cat([w.directions("W_in", n) for n in range(w.n_layers)])
    yield from bench_tokens(neurons, read, "demo")
    yield whole_reading(lens, "demo", None)
    for layer, head in ((0, 0), (1, 3), (2, 2), (3, 5)):
        yield from bench_pairs(read, w.W_Q(layer)[head], w.W_K(layer)[head], read, f"demo L{layer}H{head} W_QK")
        yield from bench_pairs(read, w.W_V(layer)[head], w.W_O(layer)[head].T, write, f"demo L{layer}H{head} W_OV")
    yield whole_heads(lens, 2)
    wide, left, right = trained_like(read, w.W_V(2)[2], w.W_O(2)[2].T)
    for k in (10, 10_000):
        yield from bench_pairs(wide, left, right, wide, "GPT-2 shape, trained-like", k, repeats=1)
    what = "GPT-2 shape, trained-like: best 10 pairs, beside the dense product (estimated from 1/16 of it)"
    yield dense_estimate(wide, left, right, wide, 10, what)
    del wide, left, right
    lens = gpt2_shaped()
    w, read = lens.weights, lens.space.rows("read")[:]
    yield from bench_pairs(read, w.W_Q(0)[0], w.W_K(0)[0], read, "GPT-2 shape, fresh weights", repeats=1)
    yield whole_reading(lens, "GPT-2 shape, fresh weights", 0)
    del read
    one, three = (extra_memory(lambda n=n: lens.neurons(range(n), weight="W_in")) for n in (1, 3))
    nan = float("nan")
    yield Row("GPT-2 shape: lens.neurons(weight='W_in'), extra memory for 1 layer", nan, nan, nan, one)
    yield Row("GPT-2 shape: the same for 3 layers", nan, nan, nan, three)
    yield from bench_demo(*(EmbeddingLens(demo.load(f"reviews-small-{seed}")) for seed in (0, 1)))
    yield from bench_large(lens, gpt2_shaped(seed=1))
    yield from bench_factors()
    yield from bench_channels()


def main() -> None:
    """Print the table, a line as soon as it is measured."""
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; ratio = baseline / ours")
    print(f"{'':104}{'ours':>10}{'baseline':>10}{'ratio':>8}{'+MB':>6}")
    for row in table():
        cells = f"{row.ours:9.4f}s{row.baseline:9.4f}s{row.ratio:8.2f}" if row.ours == row.ours else " " * 28
        print(f"{row.name:104}{cells}{row.extra_mb:6.0f}", flush=True)
    for line in shared_tokens():
        print(line, flush=True)


if __name__ == "__main__":
    main()
