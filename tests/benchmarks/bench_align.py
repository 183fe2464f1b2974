"""Alignment of two models, compared with projecting every vector, and with the matrix products that every method needs."""

import time
from collections.abc import Iterator

import torch
from measuring import Measurement, compare, extra_memory, seconds

from embspace_lens import EmbeddingLens, align
from embspace_lens.weights.parameter_names import ATTENTION, MLP, side_of

TILE = 2048
WEIGHTS = [name for name in (*MLP, *ATTENTION) if name != "W_gate"]


def align_by_projection(a: EmbeddingLens, b: EmbeddingLens, weights: list[str]) -> None:
    """The direct method: the scores of each layer over the vocabulary, standardised once, then mean absolute correlations."""

    def standardised(lens: EmbeddingLens, weight: str, layer: int) -> torch.Tensor:
        scores = lens.project(lens.weights.directions(weight, layer).flatten(0, -2), side_of(weight))
        return torch.nn.functional.normalize(scores - scores.mean(dim=1, keepdim=True), dim=1)

    for weight in weights:
        layers_b = [standardised(b, weight, layer) for layer in range(b.weights.n_layers)]
        for layer in range(a.weights.n_layers):
            x = standardised(a, weight, layer)
            for y in layers_b:
                (x @ y.T).abs().mean()


def products_alone(a: EmbeddingLens, b: EmbeddingLens, layer: int) -> None:
    """The products of one layer of model a with every layer of model b over d_model, for all weights; the results are discarded."""
    for weight in WEIGHTS:
        x = a.weights.directions(weight, layer).flatten(0, -2).contiguous()
        for layer_b in range(b.weights.n_layers):
            y = b.weights.directions(weight, layer_b).flatten(0, -2).contiguous()
            for tile_x in x.split(TILE):
                for tile_y in y.split(TILE):
                    tile_x @ tile_y.T


def bench_demo(a: EmbeddingLens, b: EmbeddingLens) -> Iterator[Measurement]:
    """Two small models, all weights."""
    name = f"{a.name} × {b.name}: align(), all weights, next to projecting every vector"
    yield compare(name, lambda: align(a, b), lambda: align_by_projection(a, b, WEIGHTS), repeats=1)


def bench_large(a: EmbeddingLens, b: EmbeddingLens) -> Iterator[Measurement]:
    """Two models with the shape of GPT-2 small, all weights. The products are timed for one layer of the first model."""
    start = time.perf_counter()
    memory = extra_memory(lambda: align(a, b))
    ours = time.perf_counter() - start
    n_layers = a.weights.n_layers
    products = n_layers * seconds(lambda: products_alone(a, b, 0))
    name = f"GPT-2 shape twice: align(), all weights, next to the products alone (from 1 of {n_layers} layers)"
    yield Measurement(name, ours, products, products / ours, memory)
