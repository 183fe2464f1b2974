"""All benchmarks in one table: this package compared with brute force, dense products and other optimisers.

Run by `make bench`; checkpoints of large models have a benchmark of their own, `bench_checkpoints.py`. This package and the baseline are measured alternately in the same run, and the ratio is baseline / ours; seconds depend on the machine.
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
from bench_features import bench_features
from bench_topk import bench_pairs, bench_tokens, trained_like
from brute_force import dense_pairs, tiled_pairs, tiled_product
from measuring import Measurement, compare, extra_memory, print_header, print_measurement
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import GPT2Config, GPT2LMHeadModel

from embspace_lens import EmbeddingLens, demo, evidence
from embspace_lens.search.pairs import top_pairs

NAN = float("nan")


def random_gpt2(seed: int = 0) -> EmbeddingLens:
    """A model with the shape of GPT-2 small and random weights: 12 layers, 12 heads of 64, 50,257 tokens."""
    torch.manual_seed(seed)
    config = GPT2Config()
    return EmbeddingLens(build_bridge_from_module(GPT2LMHeadModel(config), "GPT2LMHeadModel", hf_config=config))


def bench_neurons(lens: EmbeddingLens, name: str, layer: int | None) -> Measurement:
    """`lens.neurons` with its table, compared with the matrix products alone of the same vectors and token rows."""
    layers = lens.weights.layers_with("mlp") if layer is None else [layer]
    products = [
        (lens.weights.directions(weight, layer_index), lens.space.rows(side)[:])
        for layer_index in layers
        for weight, side in (("W_in", "read"), ("W_out", "write"))
    ]

    def products_alone() -> None:
        for vectors, rows in products:
            tiled_product(vectors, rows)

    call = f"lens.neurons({'' if layer is None else f'layer={layer}'})"
    return compare(
        f"{name}: {call} with its table, next to the products alone",
        lambda: lens.neurons(layer),
        products_alone,
        repeats=3,
    )


def bench_heads(lens: EmbeddingLens, layer: int) -> Measurement:
    """`lens.ov` of one layer with its table, compared with tiled brute force on token rows that were folded beforehand."""
    read, write = lens.space.rows("read")[:], lens.space.rows("write")[:]
    heads = [(lens.weights.W_V(layer)[head], lens.weights.W_O(layer)[head].T) for head in range(lens.weights.n_heads)]

    def brute_force() -> None:
        for left, right in heads:
            tiled_pairs(read, left, right, write, 10)

    return compare(
        f"demo: lens.ov(layer={layer}) with its table, next to tiled brute force",
        lambda: lens.ov(layer),
        brute_force,
        repeats=3,
    )


def bench_dense(A: torch.Tensor, left: torch.Tensor, right: torch.Tensor, B: torch.Tensor, k: int) -> Measurement:
    """The best pairs compared with the dense product, which would take 10 GB: 1/16 of it is timed, and its time is multiplied by 16."""
    row = compare(
        f"GPT-2 shape, trained-like: best {k} pairs, next to the dense product (from 1/16 of it)",
        lambda: top_pairs(A, left, right, B, k),
        lambda: dense_pairs(A[::16], left, right, B, k),
        repeats=1,
    )
    return row._replace(baseline=16 * row.baseline, ratio=16 * row.ratio)


def related_pairs() -> Iterator[str]:
    """The overlap of the top tokens of paired weights, and of shuffled pairs, for each demo model."""
    yield "\nmean Jaccard index of the top 100 tokens by absolute score, whole words, cosine: paired / shuffled = ratio"
    for name in demo.names():
        lens = EmbeddingLens.from_pretrained(name, vocabulary="words", score="cosine")
        df = evidence.related_pairs(lens, k=100, pairs=["W_in-W_out", "W_V-W_O"], seeds=5)
        for pair, rows in df.groupby("pair"):
            jaccard = rows.pivot(index="layer", columns="sample", values="jaccard")
            ratios = " ".join(f"{ratio:.2f}" for ratio in jaccard["paired"] / jaccard["shuffled"])
            paired, shuffled = jaccard[["paired", "shuffled"]].mean()
            yield f"{name:26}{pair:12}{paired:.4f} / {shuffled:.4f} = {paired / shuffled:.2f}   by layer {ratios}"


def bench_demo_search(lens: EmbeddingLens) -> Iterator[Measurement]:
    """Search in a demo model, and in a head with the shape of GPT-2 small that is made from it."""
    weights, read, write = lens.weights, lens.space.rows("read")[:], lens.space.rows("write")[:]
    neurons = torch.cat([weights.directions("W_in", layer) for layer in range(weights.n_layers)])
    yield bench_tokens(neurons, read, "demo")
    yield bench_neurons(lens, "demo", None)
    for layer, head in ((0, 0), (1, 3), (2, 2), (3, 5)):
        name = f"demo L{layer}H{head}"
        yield from bench_pairs(read, weights.W_Q(layer)[head], weights.W_K(layer)[head], read, f"{name} W_QK")
        yield from bench_pairs(read, weights.W_V(layer)[head], weights.W_O(layer)[head].T, write, f"{name} W_OV")
    yield bench_heads(lens, 2)
    wide, left, right = trained_like(read, weights.W_V(2)[2], weights.W_O(2)[2].T)
    for k in (10, 10_000):
        yield from bench_pairs(wide, left, right, wide, "GPT-2 shape, trained-like", k, repeats=1)
    yield bench_dense(wide, left, right, wide, 10)


def bench_large_search(lens: EmbeddingLens) -> Iterator[Measurement]:
    """Search in a random model with the shape of GPT-2 small, and the memory that it takes."""
    read = lens.space.rows("read")[:]
    name = "GPT-2 shape, random weights"
    yield from bench_pairs(read, lens.weights.W_Q(0)[0], lens.weights.W_K(0)[0], read, name, repeats=1)
    yield bench_neurons(lens, name, 0)
    del read
    for n_layers in (1, 3):
        memory = extra_memory(lambda n_layers=n_layers: lens.neurons(range(n_layers), weight="W_in"))
        yield Measurement(f"{name}: lens.neurons(weight='W_in'), layers: {n_layers}", NAN, NAN, NAN, memory)


def bench_offloaded() -> Measurement:
    """All neurons of a demo model whose weights stay in its file, next to the model in memory."""
    in_memory = EmbeddingLens.from_pretrained("reviews-medium-0", offload=False)
    offloaded = EmbeddingLens.from_pretrained("reviews-medium-0", offload=True)
    name = "reviews-medium-0: lens.neurons() with offload=True, next to the model in memory"
    return compare(name, offloaded.neurons, in_memory.neurons, repeats=3)


def measurements() -> Iterator[Measurement]:
    """All rows of the table."""
    yield from bench_demo_search(EmbeddingLens.from_pretrained("reviews-small-0"))
    yield bench_offloaded()
    large = random_gpt2()
    yield from bench_large_search(large)
    yield from bench_demo(*(EmbeddingLens.from_pretrained(f"reviews-small-{seed}") for seed in (0, 1)))
    yield from bench_large(large, random_gpt2(seed=1))
    yield from bench_factors()
    yield from bench_channels()
    yield from bench_features()


def main() -> None:
    """Print each measurement as soon as it is made."""
    print_header()
    for row in measurements():
        print_measurement(row)
    for line in related_pairs():
        print(line, flush=True)


if __name__ == "__main__":
    main()
