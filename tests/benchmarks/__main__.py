"""One table: exact pairs beside brute force and the dense product, neurons beside the bare product, peak extra memory.

`make bench`. Ratios are baseline / ours, both measured in turns in this run; seconds depend on the machine.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import torch
from bench_topk import Row, bench_pairs, bench_tokens, extra_memory, tiled_product, trained_like, versus
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import GPT2Config, GPT2LMHeadModel

from embspace_lens import EmbeddingLens, demo


def gpt2_shaped() -> EmbeddingLens:
    """GPT-2 small's shape with fresh weights: 12 layers, 12 heads of 64, 50,257 tokens."""
    torch.manual_seed(0)
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
    wide, left, right = trained_like(read, w.W_V(2)[2], w.W_O(2)[2].T)
    for k in (10, 10_000):
        yield from bench_pairs(wide, left, right, wide, "GPT-2 shape, trained-like", k, repeats=1)
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


def main() -> None:
    """Print the table, a line as soon as it is measured."""
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; ratio = baseline / ours")
    print(f"{'':104}{'ours':>10}{'baseline':>10}{'ratio':>8}{'+MB':>6}")
    for row in table():
        cells = f"{row.ours:9.4f}s{row.baseline:9.4f}s{row.ratio:8.2f}" if row.ours == row.ours else " " * 28
        print(f"{row.name:104}{cells}{row.extra_mb:6.0f}", flush=True)


if __name__ == "__main__":
    main()
