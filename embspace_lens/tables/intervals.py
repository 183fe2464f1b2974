"""Confidence intervals and permutation tests: the whole package uses one method for each, from scipy.

Every `low` and `high` of a table is a 95 % percentile bootstrap interval of a mean, unless the function's docstring names
another; every control's interval holds the middle 95 % of its shuffles.
"""

from typing import Any

import numpy as np

N_RESAMPLES = 1000
CONFIDENCE = 0.95
BATCH_NUMBERS = 2**22  # random numbers per chunk


def bootstrap_interval(
    values: Any, counts: Any = None, *, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    r"""95 % percentile bootstrap interval of a mean over n observations.

    Args:
        values: The observations. With `counts`, the totals of groups; the bootstrap resamples groups.
        counts: How many observations each group holds.
        n_resamples: How many bootstrap samples.
        seed: Seed of the resampling.

    Returns:
        The lower and the upper end; NaN for fewer than two observations.

    References:
        Efron & Tibshirani (1993), An Introduction to the Bootstrap, §13 (percentile interval).
    """
    from scipy.stats import bootstrap  # imported late: scipy.stats takes a second to import

    totals = np.asarray(values, dtype=np.float64)
    if len(totals) < 2:
        return float("nan"), float("nan")
    sizes = np.ones_like(totals) if counts is None else np.asarray(counts, dtype=np.float64)
    interval = bootstrap(
        (totals, sizes),
        lambda total, size, axis: total.sum(axis=axis) / size.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=n_resamples,
        confidence_level=CONFIDENCE,
        batch=max(1, BATCH_NUMBERS // len(totals)),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def proportion_interval(n_successes: int, n: int) -> tuple[float, float]:
    r"""95 % percentile bootstrap interval of a proportion, exact and without resampling.

    If the share of successes among n outcomes is p, a bootstrap sample has Binomial(n, p) successes. The quantiles of this
    distribution are the limit of `bootstrap_interval` for many resamples.

    Args:
        n_successes: How many outcomes are successes.
        n: How many outcomes there are.

    Returns:
        The lower and the upper end; NaN for fewer than two outcomes.
    """
    from scipy.stats import binom  # imported late: scipy.stats takes a second to import

    if n < 2:
        return float("nan"), float("nan")
    low, high = binom.ppf([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], n, n_successes / n) / n
    return float(low), float(high)


def central_interval(values: Any) -> tuple[float, float]:
    """The interval that holds the middle 95 % of the values, such as the means of shuffled controls."""
    low, high = np.nanquantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
