"""Transformer factors of a demo model's hidden states: sparse codes compared with the original loop, the fit compared with scikit-learn.

The hidden states are those of all layers on held-out reviews, or on random tokens where the reviews (../shared/data) are missing. Fits are
compared at an equal objective: the baseline runs for a few batches, then ours runs until its objective on held-out states is as low. Both
have the same number of factors and read the same states.

`make bench` runs all benchmarks. This one alone: `PYTHONPATH=.:tests python tests/benchmarks/bench_factors.py`.
"""

import time
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from measuring import Measurement, compare, print_header, print_measurement
from reference import fista
from torch import Tensor
from torch.nn.functional import normalize

from embspace_lens.factors.dictionary import Factors
from embspace_lens.factors.fitter import FactorFitter
from embspace_lens.factors.sparse_coding import sparse_codes
from embspace_lens.forward.states import hidden_states
from embspace_lens.loading import load_model

REVIEWS = Path(__file__).parents[3] / "shared/data/imdb.jsonl.bz2"
L1 = 1.0  # hidden states of the demo model have a norm of about 1 before the first layer, and of about 30 after it
N_HELD_OUT = 512
BATCH_SIZE = 256


class States(NamedTuple):
    """Hidden states to fit and to evaluate, and the kind of text on which they were computed."""

    source: str
    train: Tensor
    test: Tensor


def load_texts(model: Any, n: int) -> tuple[str, list[str]]:
    """Held-out reviews, or random tokens as text."""
    if REVIEWS.is_file():
        chunks = pd.read_json(REVIEWS, lines=True, chunksize=1000)
        reviews = (text for chunk in chunks for text in chunk.loc[chunk["split"] == "test", "text"])
        return "reviews", list(islice(reviews, n))
    tokens = torch.randint(1, len(model.tokenizer), (n, 120), generator=torch.Generator().manual_seed(0))
    return "random tokens", model.tokenizer.batch_decode(tokens)


def load_states(name: str, n_texts: int = 80) -> States:
    """Hidden states of all layers in random order, and held-out states of other texts."""
    model = load_model(name)
    source, texts = load_texts(model, n_texts + 20)
    generator = torch.Generator().manual_seed(0)

    def shuffled_states(texts: list[str]) -> Tensor:
        states = torch.cat([states for batch in hidden_states(model, texts) for states in batch.states.values()])
        return states[torch.randperm(len(states), generator=generator)]

    return States(source, shuffled_states(texts[:n_texts]), shuffled_states(texts[n_texts:])[:N_HELD_OUT])


def mean_objective(x: Tensor, directions: Tensor, codes: Tensor) -> float:
    """The mean of ½‖x − αΦ‖² + λ‖α‖₁."""
    residual = (x - codes @ directions).double()
    return float((residual.square().sum(1) / 2 + L1 * codes.double().sum(1)).mean())


def best_objective(x: Tensor, directions: Tensor) -> float:
    """The mean objective with the optimal codes for these directions."""
    return mean_objective(x, directions, sparse_codes(x, directions, L1, gap=1e-4).codes)


def bench_codes(states: States, factors: Factors, n: int = 256) -> Iterator[Measurement]:
    """Codes up to a duality gap, compared with the 500 steps of the original; the row states both objectives."""
    x, directions = states.test[:n], factors.directions
    objective_original = mean_objective(x, directions, fista(x, directions, L1))
    for gap in (1e-2, 1e-4):
        objective = mean_objective(x, directions, sparse_codes(x, directions, L1, gap=gap).codes)
        yield compare(
            f"demo, {states.source}: {n} codes over {factors.n_factors} factors, gap {gap:g} (objective {objective:.3f}), "
            f"next to 500 steps ({objective_original:.3f})",
            lambda gap=gap: sparse_codes(x, directions, L1, gap=gap),
            lambda: fista(x, directions, L1),
            repeats=3,
        )


def fit_until(states: States, n_factors: int, goal: float) -> tuple[float, float, int]:
    """Fit until the held-out objective reaches a goal.

    Returns:
        The seconds of fitting, without those of evaluation (infinite if the goal is not reached); the objective; the number of
        states read.
    """
    fitter, elapsed, objective = FactorFitter(states.train.shape[1], n_factors, l1=L1), 0.0, float("inf")
    for x in states.train.split(BATCH_SIZE):
        start = time.perf_counter()
        n_before = fitter.n_seen
        fitter.update(x)
        elapsed += time.perf_counter() - start
        if fitter.n_seen > n_before:
            objective = best_objective(states.test, fitter.factors.directions)
            if objective <= goal:
                return elapsed, objective, fitter.n_seen
    return float("inf"), objective, fitter.n_seen


def compare_fit(states: States, n_factors: int, baseline: str, elapsed: float, goal: float) -> Measurement:
    """The time of this package to the objective that a baseline reached, compared with the baseline's time."""
    ours, objective, n_states = fit_until(states, n_factors, goal)
    name = f"demo, {states.source}: fit of {n_factors} factors, objective {objective:.2f} ({n_states} states)"
    return Measurement(f"{name}, next to {baseline}", ours, elapsed, elapsed / ours, float("nan"))


def bench_scikit_learn(states: States, n_factors: int, n_batches: int = 6) -> Measurement:
    """The time to the objective that scikit-learn reaches in a few batches with its default options."""
    from sklearn.decomposition import MiniBatchDictionaryLearning

    initial = normalize(states.train[:n_factors], dim=1)
    learning = MiniBatchDictionaryLearning(
        n_factors, alpha=L1, fit_algorithm="cd", positive_code=True, batch_size=BATCH_SIZE, dict_init=initial.numpy()
    )
    elapsed = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its coordinate descent stops before it converges
        for x in states.train[n_factors:].split(BATCH_SIZE)[:n_batches]:
            start = time.perf_counter()
            learning.partial_fit(x.numpy())
            elapsed += time.perf_counter() - start
    goal = best_objective(states.test, normalize(torch.from_numpy(learning.components_).float(), dim=1))
    return compare_fit(states, n_factors, f"scikit-learn ({goal:.2f}, {n_batches * BATCH_SIZE})", elapsed, goal)


def bench_original_update(states: States, n_factors: int, n_states: int = 10_000) -> Measurement:
    """The time to the objective that the original update reaches: batches of 100, step 0.005, moving average over 300 batches.

    Here the original update uses `sparse_codes`, because the original loop for codes would take nearly all of the time.
    """
    start = time.perf_counter()
    directions, mean_square = normalize(states.train[:n_factors], dim=1), torch.zeros(n_factors)
    for x in states.train[n_factors : n_factors + n_states].split(100):
        codes = sparse_codes(x, directions, L1, gap=1e-3).codes
        mean_square = mean_square * (299 / 300) + codes.square().mean(0) / 300
        step = 0.005 * (codes.T @ (x - codes @ directions) / len(x)) / (mean_square + 0.001)[:, None]
        directions = normalize(directions + step, dim=1)
    elapsed = time.perf_counter() - start
    goal = best_objective(states.test, directions)
    return compare_fit(states, n_factors, f"the original update ({goal:.2f}, {n_states})", elapsed, goal)


def bench_factors(name: str = "reviews-small-0", n_factors: int = 1000) -> Iterator[Measurement]:
    """All measurements of this file."""
    states = load_states(name)
    fitter = FactorFitter(states.train.shape[1], n_factors, l1=L1)
    fitter.update(states.train[:8192])
    yield from bench_codes(states, fitter.factors)
    yield bench_scikit_learn(states, n_factors)
    yield bench_original_update(states, n_factors)


def main() -> None:
    """Print each measurement as soon as it is made."""
    print_header()
    for row in bench_factors():
        print_measurement(row)


if __name__ == "__main__":
    main()
