"""How fast the best k are found, beside the same answer by brute force.

Ours and each baseline take turns, so that whatever else the machine does falls on both; figures are medians of turns.
Run through `make bench`, or alone: `PYTHONPATH=. python tests/benchmarks/bench_topk.py [model.safetensors]`.
"""

import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from embspace_lens.search import top_pairs, top_tokens

REPEATS = 5
DEMO = Path(__file__).parents[2] / "embspace_lens/demo/models/reviews-small-0/model.safetensors"


class Row(NamedTuple):
    name: str
    ours: float  # seconds
    baseline: float  # seconds
    ratio: float  # baseline / ours
    extra_mb: float  # peak memory of ours above what was there before


# ------------------------------------------------------------------------------------------------------------ baselines


def tiled_product(vectors: Tensor, embedding: Tensor, tile: int = 1024) -> None:
    """The bare product of all vectors with all rows, in tiles, keeping nothing."""
    for part in vectors.split(tile):
        for rows in embedding.split(8192):
            part @ rows.T


def tiled_pairs(A: Tensor, left: Tensor, right: Tensor, B: Tensor, k: int, tile: int = 2048) -> tuple[Tensor, Tensor]:
    """Best k pairs by brute force, written with care: a product and a `topk` a tile, and a running best."""
    a, b = A @ left, B @ right
    best, key = torch.empty(0), torch.empty(0, dtype=torch.int64)
    for row, some in enumerate(a.split(tile)):
        for col, others in enumerate(b.split(tile)):
            score = some @ others.T
            value, at = score.flatten().topk(min(k, score.numel()))
            i, j = at // len(others) + row * tile, at % len(others) + col * tile
            value, key = torch.cat([best, value]), torch.cat([key, i * len(b) + j])
            best, order = value.topk(min(k, len(value)))
            key = key[order]
    return best, key


def filtered_pairs(
    A: Tensor, left: Tensor, right: Tensor, B: Tensor, k: int, tile: int = 2048
) -> tuple[Tensor, Tensor]:
    """A harder baseline: the same, but only what exceeds the running k-th best is looked at once there is one."""
    a, b = A @ left, B @ right
    best, key = torch.empty(0), torch.empty(0, dtype=torch.int64)
    for row, some in enumerate(a.split(tile)):
        for col, others in enumerate(b.split(tile)):
            score = some @ others.T
            if len(best) == k:
                rows = (score.amax(1) > best[-1]).nonzero()[:, 0]
                i, j = (score[rows] > best[-1]).nonzero().T
                i = rows[i]
                value = score[i, j]
            else:
                value, at = score.flatten().topk(min(k, score.numel()))
                i, j = at // len(others), at % len(others)
            if len(value):
                value, key = torch.cat([best, value]), torch.cat([key, (i + row * tile) * len(b) + j + col * tile])
                best, order = value.topk(min(k, len(value)))
                key = key[order]
    return best, key


def dense_pairs(A: Tensor, left: Tensor, right: Tensor, B: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The paper's way (Dar et al. 2023, §4): the whole d_vocab × d_vocab product, then its best."""
    return ((A @ left) @ (B @ right).T).flatten().topk(k)


# ------------------------------------------------------------------------------------------------------------ measuring


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def extra_memory(function: Callable[[], object]) -> float:
    """Peak resident memory during the call above that before it, in MB, sampled a thousand times a second."""
    statm, page = Path("/proc/self/statm"), resource.getpagesize()
    if not statm.exists():
        return float("nan")

    def resident() -> int:
        return int(statm.read_text().split()[1]) * page

    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    function()
    done.set()
    watcher.join()
    return max(0, peak - before) / 1e6


def versus(name: str, ours: Callable[[], object], baseline: Callable[[], object], repeats: int = REPEATS) -> Row:
    memory = extra_memory(ours)  # also warms up
    if repeats > 1:
        baseline()
    turns = [(seconds(ours), seconds(baseline)) for _ in range(repeats)]
    mine, theirs = (statistics.median(column) for column in zip(*turns, strict=True))
    return Row(name, mine, theirs, theirs / mine, memory)


# --------------------------------------------------------------------------------------------------------------- models


def head_weights(checkpoint: Path) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]], Tensor]:
    """Token embedding, (left, right) of every head's QK and OV, and all `W_in` neurons of a demo checkpoint."""
    from safetensors.torch import load_file

    state = {name.removeprefix("model."): value.float() for name, value in load_file(checkpoint).items()}
    embedding, heads, neurons = state["transformer.wte.weight"], {}, []
    width, d_head = embedding.shape[1], 32
    for layer in range(sum(name.endswith("attn.c_attn.weight") for name in state)):
        prefix = f"transformer.h.{layer}."
        gain = state[prefix + "ln_1.weight"][:, None]
        q, k, v = (gain * state[prefix + "attn.c_attn.weight"]).split(width, dim=1)
        out = state[prefix + "attn.c_proj.weight"]
        for head in range(width // d_head):
            own = slice(head * d_head, (head + 1) * d_head)
            heads[f"QK {layer}.{head}"] = q[:, own], k[:, own]
            heads[f"OV {layer}.{head}"] = v[:, own], out[own].T
        neurons.append((state[prefix + "ln_2.weight"][:, None] * state[prefix + "mlp.c_fc.weight"]).T)
    return embedding, heads, torch.cat(neurons)


def trained_like(
    embedding: Tensor, left: Tensor, right: Tensor, d_vocab: int = 50257, d_model: int = 768, d_head: int = 64
):
    """A head of GPT-2's shape that looks trained: mixtures of the demo's embeddings, and its head in a wider space.

    Each new row is one of the demo's rows plus a third of another and a tenth of noise, scaled by a log-normal factor
    (sigma 0.2), turned into d_model dimensions by a random orthogonal map; the second half of the head's spectrum
    continues the decay of the first.
    """
    generator = torch.Generator().manual_seed(0)
    n, d = embedding.shape

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    one, other = torch.randint(n, (2, d_vocab), generator=generator)
    mixed = embedding[one] + embedding[other] / 3 + 0.1 * embedding.std() * normal(d_vocab, d)
    turn = torch.linalg.qr(normal(d_model, d)).Q
    rows = (mixed * torch.exp(0.2 * normal(d_vocab, 1))) @ turn.T + 0.1 * embedding.std() * normal(d_vocab, d_model)
    u, s, vh = torch.linalg.svd(left @ right.T)
    s = s[: left.shape[1]]
    tail = s[-1] * (s[-1] / s[0]).pow(torch.linspace(0, 1, d_head - len(s)))
    roots = torch.cat([s, tail]).sqrt()
    wide = [turn @ side[:, : len(roots)] * roots for side in (u, vh.T)]
    return rows, *wide


# ----------------------------------------------------------------------------------------------------------- the tables


def bench_tokens(vectors: Tensor, embedding: Tensor, name: str, k: int = 10) -> list[Row]:
    """All vectors against all rows: beside the bare product (a ratio of 0.67 is the goal of 1.5 times its time)."""
    return [
        versus(f"{name}: best {k} of {len(vectors)} × {len(embedding)} × {vectors.shape[1]}, beside the bare product",
               lambda: top_tokens(vectors, embedding, k), lambda: tiled_product(vectors, embedding)),
    ]  # fmt: skip


def bench_pairs(
    A: Tensor, left: Tensor, right: Tensor, B: Tensor, name: str, k: int = 10, repeats: int = REPEATS
) -> list[Row]:
    """Best pairs of one head: beside tiled brute force, the same with a filter, and (up to 1 GB) the dense product."""
    name = f"{name}: best {k} pairs of {len(A)} × {len(B)} (d_head {left.shape[1]})"

    def ours() -> object:
        return top_pairs(A, left, right, B, k)

    baselines = {"tiled brute force": tiled_pairs, "the same, filtered": filtered_pairs, "dense product": dense_pairs}
    if len(A) * len(B) > 2**28:
        del baselines["dense product"]
    table = baselines.items()
    return [versus(f"{name}, beside {other}", ours, lambda f=f: f(A, left, right, B, k), repeats) for other, f in table]


def rows(
    embedding: Tensor, heads: dict[str, tuple[Tensor, Tensor]], neurons: Tensor, *, big: bool = True
) -> Iterator[Row]:
    """Every figure of this file, from the effective weights of a demo model and models of GPT-2's shape made here."""
    yield from bench_tokens(neurons, embedding, "demo neurons")
    for name, (left, right) in heads.items():
        yield from bench_pairs(embedding, left, right, embedding, f"demo {name}")
    if not big:
        return
    generator = torch.Generator().manual_seed(0)
    gaussian = torch.randn(50257, 768, generator=generator)
    yield from bench_tokens(torch.randn(3072, 768, generator=generator), gaussian, "Gaussian neurons, one layer")
    wide, left, right = trained_like(embedding, *heads[next(iter(heads))])
    for k in (10, 10_000):
        yield from bench_pairs(wide, left, right, wide, "trained-like head", k, repeats=1)
    left, right = torch.randn(2, 768, 64, generator=generator)
    yield from bench_pairs(gaussian, left, right, gaussian, "Gaussian head", 10, repeats=1)


def main(checkpoint: str = str(DEMO)) -> None:
    embedding, heads, neurons = head_weights(Path(checkpoint))
    some = {name: heads[name] for name in list(heads)[:: max(1, len(heads) // 6 - 1)]}
    print(f"{'':110}{'ours':>10}{'baseline':>10}{'ratio':>8}{'+MB':>6}")
    for row in rows(embedding, some, neurons):
        print(f"{row.name:110}{row.ours:9.4f}s{row.baseline:9.4f}s{row.ratio:8.2f}{row.extra_mb:6.0f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
