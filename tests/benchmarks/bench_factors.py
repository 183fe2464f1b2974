"""Transformer factors on a demo model's hidden states: codes beside the original's loop, the fit beside scikit-learn's.

Hidden states of all layers, of held-out reviews where ../shared/data is there and of random tokens where it is not. Fits
are compared at equal objective: the baseline runs for a few batches, then ours until its held-out objective is no higher;
both start from the same directions' number and see the same stream. Through `make bench`, or alone:
`PYTHONPATH=.:tests python tests/benchmarks/bench_factors.py`.
"""

import time
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from bench_topk import Row, versus
from reference import fista
from torch import Tensor

from embspace_lens import demo
from embspace_lens.factors import FactorFitter, Factors, sparse_codes
from embspace_lens.forward.states import hidden_states

REVIEWS = Path(__file__).parents[3] / "shared/data/imdb.jsonl.bz2"
L1 = 1.0  # hidden states of the demo model are about 30 long behind its first block, and 1 before it
HELD_OUT = 512


class Stream(NamedTuple):
    where: str
    train: Tensor
    test: Tensor


def texts(model, n: int) -> tuple[str, list[str]]:
    """Held-out reviews, or random tokens as text."""
    if REVIEWS.is_file():
        rows = pd.read_json(REVIEWS, lines=True, chunksize=1000)
        reviews = (text for part in rows for text in part.loc[part["split"] == "test", "text"])
        return "reviews", list(islice(reviews, n))
    tokens = torch.randint(1, len(model.tokenizer), (n, 120), generator=torch.Generator().manual_seed(0))
    return "random tokens", model.tokenizer.batch_decode(tokens)


def stream(name: str, n_texts: int = 80) -> Stream:
    """Hidden states of all layers in random order, and some of other texts kept back."""
    model = demo.load(name)
    where, some = texts(model, n_texts + 20)
    generator = torch.Generator().manual_seed(0)
    parts = []
    for part in (some[:n_texts], some[n_texts:]):
        states = torch.cat([rows for batch in hidden_states(model, part) for rows in batch.states.values()])
        parts.append(states[torch.randperm(len(states), generator=generator)])
    return Stream(where, parts[0], parts[1][:HELD_OUT])


def objective(x: Tensor, directions: Tensor) -> float:
    """The mean objective of codes that are optimal for these directions."""
    return mean_objective(x, directions, sparse_codes(x, directions, L1, gap=1e-4).codes)


def mean_objective(x: Tensor, directions: Tensor, codes: Tensor) -> float:
    left = (x - codes @ directions).double().square().sum(1) / 2 + L1 * codes.double().sum(1)
    return float(left.mean())


def bench_codes(data: Stream, factors: Factors, n: int = 256) -> Iterator[Row]:
    """Codes to a gap beside the original's 500 steps; the objectives of both are in the row."""
    x, directions = data.test[:n], factors.directions
    theirs = mean_objective(x, directions, fista(x, directions, L1))
    for gap in (1e-2, 1e-4):
        ours = mean_objective(x, directions, sparse_codes(x, directions, L1, gap=gap).codes)
        yield versus(
            f"demo, {data.where}: {n} codes over {factors.n_factors} factors, gap {gap:g} (objective {ours:.3f}), "
            f"beside 500 steps ({theirs:.3f})",
            lambda gap=gap: sparse_codes(x, directions, L1, gap=gap),
            lambda: fista(x, directions, L1),
            repeats=3,
        )


def ours_until(data: Stream, n_factors: int, goal: float) -> tuple[float, float, int]:
    """Seconds of fitting, without those of looking, until the held-out objective is no higher than the goal."""
    fitter, spent, reached = FactorFitter(data.train.shape[1], n_factors, l1=L1), 0.0, float("inf")
    for x in data.train.split(256):
        start = time.perf_counter()
        steps = fitter.n_seen
        fitter.update(x)
        spent += time.perf_counter() - start
        if fitter.n_seen > steps and (reached := objective(data.test, fitter.factors.directions)) <= goal:
            return spent, reached, fitter.n_seen
    return float("inf"), reached, fitter.n_seen


def bench_fit(data: Stream, n_factors: int, batches: int = 6) -> Iterator[Row]:
    """The time to the objective that scikit-learn reaches in a few batches (its own defaults, its own batch size)."""
    from sklearn.decomposition import MiniBatchDictionaryLearning

    first = torch.nn.functional.normalize(data.train[:n_factors], dim=1)
    theirs = MiniBatchDictionaryLearning(
        n_factors, alpha=L1, fit_algorithm="cd", positive_code=True, batch_size=256, dict_init=first.numpy()
    )
    spent = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its coordinate descent stops before its tolerance
        for x in data.train[n_factors:].split(256)[:batches]:
            start = time.perf_counter()
            theirs.partial_fit(x.numpy())
            spent += time.perf_counter() - start
    components = torch.nn.functional.normalize(torch.from_numpy(theirs.components_).float(), dim=1)
    goal = objective(data.test, components)
    ours, reached, seen = ours_until(data, n_factors, goal)
    name = f"demo, {data.where}: fit of {n_factors} factors, objective {reached:.2f} ({seen} vectors)"
    beside = f"beside scikit-learn ({goal:.2f}, {batches * 256})"
    yield Row(f"{name}, {beside}", ours, spent, spent / ours, float("nan"))


def original_step(data: Stream, n_factors: int, n_vectors: int) -> tuple[float, float]:
    """The original's update (batches of 100, step 0.005, h over 300 batches), from the same kind of start: seconds, objective.

    Its codes are ours here, or its loop alone would decide the comparison.
    """
    start = time.perf_counter()
    directions, h = torch.nn.functional.normalize(data.train[:n_factors], dim=1), torch.zeros(n_factors)
    for x in data.train[n_factors : n_factors + n_vectors].split(100):
        codes = sparse_codes(x, directions, L1, gap=1e-3).codes
        h = h * (299 / 300) + codes.square().mean(0) / 300
        step = 0.005 * (codes.T @ (x - codes @ directions) / len(x)) / (h + 0.001)[:, None]
        directions = torch.nn.functional.normalize(directions + step, dim=1)
    spent = time.perf_counter() - start
    return spent, objective(data.test, directions)


def bench_update(data: Stream, n_factors: int, n_vectors: int = 10_000) -> Iterator[Row]:
    """The time to the objective that the original's update reaches."""
    spent, goal = original_step(data, n_factors, n_vectors)
    ours, reached, seen = ours_until(data, n_factors, goal)
    name = f"demo, {data.where}: fit of {n_factors} factors, objective {reached:.2f} ({seen} vectors)"
    beside = f"beside the original's step ({goal:.2f}, {n_vectors})"
    yield Row(f"{name}, {beside}", ours, spent, spent / ours, float("nan"))


def bench_factors(name: str = "reviews-small-0", n_factors: int = 1000) -> Iterator[Row]:
    """Every figure of this file."""
    data = stream(name)
    fitter = FactorFitter(data.train.shape[1], n_factors, l1=L1)
    fitter.update(data.train[:8192])
    yield from bench_codes(data, fitter.factors)
    yield from bench_fit(data, n_factors)
    yield from bench_update(data, n_factors)


def main() -> None:
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; ratio = baseline / ours")
    for row in bench_factors():
        print(f"{row.name:104}{row.ours:9.3f}s{row.baseline:9.3f}s{row.ratio:8.2f}{row.extra_mb:6.0f}", flush=True)


if __name__ == "__main__":
    main()
