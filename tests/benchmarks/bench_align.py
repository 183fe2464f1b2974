"""What an alignment of two models costs, beside the plain way and beside the bare products that no way can do without."""

import time
from collections.abc import Iterator

import torch
from bench_topk import Row, extra_memory, versus

from embspace_lens import EmbeddingLens, align
from embspace_lens.weights.effective import ATTENTION, MLP, side_of

TILE = 2048
WEIGHTS = [name for name in (*MLP, *ATTENTION) if name != "W_gate"]


def by_projection(a: EmbeddingLens, b: EmbeddingLens, weights: list[str]) -> None:
    """The plain way, with care: each layer's scores over the vocabulary standardised once, then the mean |correlation|."""

    def standardised(lens: EmbeddingLens, weight: str, layer: int) -> torch.Tensor:
        scores = lens.project(lens.weights.directions(weight, layer).flatten(0, -2), side_of(weight))
        return torch.nn.functional.normalize(scores - scores.mean(dim=1, keepdim=True), dim=1)

    for weight in weights:
        others = [standardised(b, weight, layer) for layer in range(b.weights.n_layers)]
        for layer in range(a.weights.n_layers):
            x = standardised(a, weight, layer)
            for y in others:
                (x @ y.T).abs().mean()


def bare_products(a: EmbeddingLens, b: EmbeddingLens, layer: int) -> None:
    """One layer of a with every layer of b, d_model long, for all weights; nothing is done with the products."""
    for weight in WEIGHTS:
        x = a.weights.directions(weight, layer).flatten(0, -2).contiguous()
        for other in range(b.weights.n_layers):
            for part in x.split(TILE):
                for others in b.weights.directions(weight, other).flatten(0, -2).contiguous().split(TILE):
                    part @ others.T


def bench_demo(a: EmbeddingLens, b: EmbeddingLens) -> Iterator[Row]:
    """Two small models, all weights."""
    what = f"{a.name} × {b.name}: align(), all weights, beside projecting every vector"
    yield versus(what, lambda: align(a, b), lambda: by_projection(a, b, WEIGHTS), repeats=1)


def bench_large(a: EmbeddingLens, b: EmbeddingLens) -> Iterator[Row]:
    """Two models of GPT-2 small's shape, all weights."""
    start = time.perf_counter()
    memory = extra_memory(lambda: align(a, b))
    ours = time.perf_counter() - start
    start = time.perf_counter()
    bare_products(a, b, 0)
    bare = a.weights.n_layers * (time.perf_counter() - start)
    what = f"GPT-2 shape twice: align(), all weights, beside the bare products (from 1 of {a.weights.n_layers} layers)"
    yield Row(what, ours, bare, bare / ours, memory)
