"""Exact search of the best tokens and pairs, compared with brute force.

`make bench` runs all benchmarks. This one alone: `PYTHONPATH=. python tests/benchmarks/bench_topk.py [MODEL]`.
"""

import sys
from collections.abc import Iterator

import torch
from brute_force import dense_pairs, filtered_pairs, tiled_pairs, tiled_product
from measuring import REPEATS, Measurement, compare, print_header, print_measurement
from torch import Tensor

from embspace_lens import EmbeddingLens
from embspace_lens.search.pairs import top_pairs
from embspace_lens.search.tokens import top_tokens

LARGEST_DENSE = 2**28  # entries of the largest dense product that is measured: 1 GB


def trained_like(
    rows: Tensor, left: Tensor, right: Tensor, d_vocab: int = 50257, d_model: int = 768, d_head: int = 64
) -> tuple[Tensor, Tensor, Tensor]:
    """Token rows and a head with the shape of GPT-2 small, made from those of a small trained model.

    Each new row is a row of the model, plus a third of another row, plus noise of a tenth of the standard deviation; it is scaled by a log-normal
    factor (sigma 0.2) and mapped to d_model dimensions by a random orthogonal map. The spectrum of the head decays as
    that of the small model's head, up to d_head singular values.
    """
    generator = torch.Generator().manual_seed(0)
    n, d = rows.shape

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    first, second = torch.randint(n, (2, d_vocab), generator=generator)
    mixed = rows[first] + rows[second] / 3 + 0.1 * rows.std() * normal(d_vocab, d)
    rotation = torch.linalg.qr(normal(d_model, d)).Q
    wide_rows = (mixed * torch.exp(0.2 * normal(d_vocab, 1))) @ rotation.T + 0.1 * rows.std() * normal(d_vocab, d_model)
    u, s, vh = torch.linalg.svd(left @ right.T)
    s = s[: left.shape[1]]
    tail = s[-1] * (s[-1] / s[0]).pow(torch.linspace(0, 1, d_head - len(s)))
    roots = torch.cat([s, tail]).sqrt()
    wide_left, wide_right = (rotation @ side[:, : len(roots)] * roots for side in (u, vh.T))
    return wide_rows, wide_left, wide_right


def bench_tokens(vectors: Tensor, rows: Tensor, name: str, k: int = 10, repeats: int = REPEATS) -> Measurement:
    """The best tokens of all vectors, compared with the product alone; the goal is a ratio of 0.67 or more."""
    return compare(
        f"{name}: best {k} of {len(vectors)} × {len(rows)} × {vectors.shape[1]}, next to the product alone",
        lambda: top_tokens(vectors, rows, k),
        lambda: tiled_product(vectors, rows),
        repeats,
    )


def bench_pairs(
    A: Tensor, left: Tensor, right: Tensor, B: Tensor, name: str, k: int = 10, repeats: int = REPEATS
) -> Iterator[Measurement]:
    """The best pairs of one head, compared with two kinds of brute force and, if it fits in memory, with the dense product."""
    name = f"{name}: best {k} pairs of {len(A)} × {len(B)} (d_head {left.shape[1]})"
    baselines = {"tiled brute force": tiled_pairs, "filtered brute force": filtered_pairs}
    if len(A) * len(B) <= LARGEST_DENSE:
        baselines["the dense product"] = dense_pairs
    for baseline_name, search in baselines.items():
        yield compare(
            f"{name}, next to {baseline_name}",
            lambda: top_pairs(A, left, right, B, k),
            lambda search=search: search(A, left, right, B, k),
            repeats,
        )


def bench_topk(lens: EmbeddingLens) -> Iterator[Measurement]:
    """Neurons and one head of every layer of a model, and heads with the shape of GPT-2 small."""
    weights, read, write = lens.weights, lens.space.rows("read")[:], lens.space.rows("write")[:]
    neurons = torch.cat([weights.directions("W_in", layer) for layer in range(weights.n_layers)])
    yield bench_tokens(neurons, read, f"{lens.name}, neurons")
    for layer in range(weights.n_layers):
        name = f"{lens.name} L{layer}H0"
        yield from bench_pairs(read, weights.W_Q(layer)[0], weights.W_K(layer)[0], read, f"{name} W_QK")
        yield from bench_pairs(read, weights.W_V(layer)[0], weights.W_O(layer)[0].T, write, f"{name} W_OV")
    generator = torch.Generator().manual_seed(0)
    gaussian = torch.randn(50257, 768, generator=generator)
    yield bench_tokens(torch.randn(3072, 768, generator=generator), gaussian, "Gaussian, neurons of one layer")
    wide, left, right = trained_like(read, weights.W_Q(0)[0], weights.W_K(0)[0])
    for k in (10, 10_000):
        yield from bench_pairs(wide, left, right, wide, "trained-like head", k, repeats=1)
    left, right = torch.randn(2, 768, 64, generator=generator)
    yield from bench_pairs(gaussian, left, right, gaussian, "Gaussian head", repeats=1)


def main(model: str = "reviews-small-0") -> None:
    """Print each measurement as soon as it is made."""
    print_header()
    for row in bench_topk(EmbeddingLens.from_pretrained(model)):
        print_measurement(row)


if __name__ == "__main__":
    main(*sys.argv[1:])
