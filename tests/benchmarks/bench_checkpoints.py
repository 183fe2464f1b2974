"""Readings of a checkpoint on disk: time next to the matrix products alone and next to reading the bytes, and memory.

python tests/benchmarks/large_checkpoint.py 8b FOLDER
python tests/benchmarks/bench_checkpoints.py FOLDER [LAYER]
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from embspace_lens import EmbeddingLens, evidence
from embspace_lens.checkpoints.checkpoint import ranges_of
from embspace_lens.search.tiles import chunks


class Reading(NamedTuple):
    """One reading of a checkpoint.

    Attributes:
        name: The call.
        seconds: Its time.
        products: The time of the matrix products alone, in bfloat16; NaN if they were not measured.
        n_bytes: The bytes that it read for the first time.
        anonymous: The largest anonymous memory during the call, in bytes.
    """

    name: str
    seconds: float
    products: float
    n_bytes: int
    anonymous: int


def anonymous_memory() -> int:
    """The memory of this process that no file backs, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measured(function: Callable[[], object]) -> tuple[float, int]:
    """The time of a call, and the peak of anonymous memory during it, sampled a hundred times per second."""
    peak, done = anonymous_memory(), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        function()
    finally:
        done.set()
        watcher.join()
    return time.perf_counter() - start, peak


def seconds_of_products(lens: EmbeddingLens, layer: int) -> float:
    """The time of the bfloat16 products of all neurons of a block with all embeddings, without anything else."""
    total = 0.0
    embeddings = {"W_in": lens.weights.W_E, "W_gate": lens.weights.W_E, "W_out": lens.weights.unembedding[0].T}
    for name, rows in embeddings.items():
        stored = lens.weights.stored(name, layer)
        vectors = (stored if name == "W_out" else stored.T).to(torch.bfloat16).contiguous()
        for part in chunks(len(rows), 8 * vectors.shape[0]):
            tile = rows[part].to(torch.bfloat16).contiguous()
            start = time.perf_counter()
            vectors @ tile.T
            total += time.perf_counter() - start
    return total


def readings(lens: EmbeddingLens, layer: int) -> Iterator[Reading]:
    """The readings of one block."""
    calls: dict[str, Callable[[], Any]] = {
        f"lens.ov(layer={layer}, head=3)": lambda: lens.ov(layer=layer, head=3),
        f"lens.qk(layer={layer}, head=3)": lambda: lens.qk(layer=layer, head=3),
        f"lens.search(5, layer={layer}, weight='W_out')": lambda: lens.search(5, layer=layer, weight="W_out"),
        f"related_pairs(lens, layer={layer}, k=10, pairs=['W_V-W_O'], seeds=2)": lambda: evidence.related_pairs(
            lens, layer=layer, k=10, pairs=["W_V-W_O"], seeds=2
        ),
        f"lens.neurons(layer={layer}, neuron=range(512))": lambda: lens.neurons(layer=layer, neuron=range(512)),
        f"lens.neurons(layer={layer})": lambda: lens.neurons(layer=layer),
    }
    for name, call in calls.items():
        before = lens.weights.bytes_read
        seconds, anonymous = measured(call)
        is_whole = name == f"lens.neurons(layer={layer})"
        products = seconds_of_products(lens, layer) if is_whole else float("nan")
        yield Reading(name, seconds, products, lens.weights.bytes_read - before, anonymous)


def weight_bytes(lens: EmbeddingLens, layer: int) -> list[int]:
    """The bytes of a block's weights in the checkpoint, which are not read."""
    names = ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_gate", "W_out")
    ranges = (ranges_of(lens.weights.host.lazy(name, layer)) for name in names)
    return [stop - start for of_weight in ranges for _, start, stop in of_weight]


def main(folder: str, layer: int) -> None:
    """Print the readings of one checkpoint."""
    started = anonymous_memory()
    opened: list[EmbeddingLens] = []
    seconds, anonymous = measured(lambda: opened.append(EmbeddingLens.from_pretrained(folder, offload=True)))
    lens = opened[0]
    weights = lens.weights
    embeddings = 2 * weights.W_E.nbytes
    index = weight_bytes(lens, layer)
    print(repr(lens))
    print(
        f"embeddings {embeddings / 1e9:.2f} GB, block {layer} {sum(index) / 1e9:.2f} GB; before the lens {started / 1e9:.2f} GB in use"
    )
    print(f"bound of the anonymous memory: embeddings + block + 1 GB = {(embeddings + sum(index)) / 1e9 + 1:.2f} GB")
    print(f"{'':62}{'seconds':>9}{'products':>10}{'GB read':>9}{'GB anonymous':>14}")
    print(
        f"{'EmbeddingLens.from_pretrained(…, offload=True)':62}{seconds:9.1f}{'':10}{weights.bytes_read / 1e9:9.2f}{anonymous / 1e9:14.2f}"
    )
    for row in readings(lens, layer):
        products = "" if row.products != row.products else f"{row.products:.1f}"
        print(
            f"{row.name:62}{row.seconds:9.1f}{products:>10}{row.n_bytes / 1e9:9.2f}{row.anonymous / 1e9:14.2f}",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) == 3 else 20)
