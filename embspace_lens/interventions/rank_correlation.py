"""Rank correlation between scores read from weights and effects of interventions."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from .. import errors
from ..tables.checks import check_integer
from ..tables.frames import tidy
from ..tables.intervals import BATCH_NUMBERS, central_interval

MIN_COMPONENTS = 5  # a rank correlation of fewer components has no meaning


def agreement(
    zero_pass: pd.DataFrame,
    causal: pd.DataFrame,
    on: Sequence[str] = ("layer", "head"),
    *,
    scores: tuple[str, str] = ("score", "value"),
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Correlate a score of components, read from weights, with their effect in forward passes.

    .. math:: \rho = r\big(\operatorname{rank}(a), \operatorname{rank}(b)\big)

    This is Spearman's correlation over the components that both tables have. The control is the same correlation with the
    effects permuted among the components.

    Args:
        zero_pass: A table of scores by component, such as `head_statistics` or `lens.ov(k=1)`.
        causal: A table of effects by component, such as a `patching_frame`. In both tables, several rows of a component are
            averaged.
        on: The keys of a component, in both tables.
        scores: The column of scores in `zero_pass`, and the column of effects in `causal`.
        n_resamples: The number of bootstrap samples and of permutations.
        seed: Seed of both.

    Returns:
        One row per (sample). `"paired"` has the rank `correlation`, its 95 % bootstrap interval over components (`low`, `high`),
        the `p_value` of a two-sided permutation test, (r + 1)/(m + 1) for m random permutations, and the number `n` of components.
        `"permuted"` has the mean correlation of the permutations and the interval of the middle 95 % of them. If the components
        have at most `n_resamples` permutations, each is used once and the p-value is exact.

    Raises:
        EmbspaceError: If a column is missing, fewer than 5 components are in both tables, or a score is constant.

    Example:
        >>> a = lens.ov(k=1)
        >>> agreement(a, a, scores=("score", "score"))["sample"].tolist()
        ['paired', 'permuted']

    References:
        Phipson & Smyth (2010), Permutation P-values Should Never Be Zero.
    """
    from scipy import stats  # imported late: scipy.stats takes a second to import

    n_resamples = check_integer("n_resamples", n_resamples, minimum=1)
    joined = in_both(zero_pass, causal, on, scores)
    a, b = joined["zero_pass"].to_numpy(), joined["causal"].to_numpy()
    options = {"n_resamples": n_resamples, "vectorized": True, "batch": max(1, BATCH_NUMBERS // len(a))}
    with warnings.catch_warnings():
        # Samples with equal scores have no correlation. scipy then gives no interval, and the interval below leaves them out.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        bootstrap = stats.bootstrap(
            (a, b), _spearman, paired=True, method="percentile", rng=np.random.default_rng(seed), **options
        )
    permutation = stats.permutation_test(
        (b,),
        lambda permuted, axis: _spearman(np.broadcast_to(a, permuted.shape), permuted, axis=axis),
        permutation_type="pairings",
        alternative="two-sided",
        rng=np.random.default_rng(seed),
        **options,
    )
    low, high = zip(central_interval(bootstrap.bootstrap_distribution), central_interval(permutation.null_distribution))
    block = {
        "sample": ["paired", "permuted"],
        "correlation": [permutation.statistic, permutation.null_distribution.mean()],
        "low": low,
        "high": high,
        "p_value": [permutation.pvalue, np.nan],
        "n": [len(a)] * 2,
    }
    return tidy(["sample", "correlation", "low", "high", "p_value", "n"], [block])


def in_both(zero_pass: pd.DataFrame, causal: pd.DataFrame, on: Sequence[str], scores: tuple[str, str]) -> pd.DataFrame:
    """The scores and effects of the components that both tables have, indexed by their keys.

    Raises:
        EmbspaceError: As `agreement`.
    """
    keys = [on] if isinstance(on, str) else list(on)
    if not keys:
        raise errors.no_keys()
    means = []
    for name, table, column in (("zero_pass", zero_pass, scores[0]), ("causal", causal, scores[1])):
        if not isinstance(table, pd.DataFrame):
            raise errors.not_table(name, table, "head_statistics(lens)")
        for required in (*keys, column):
            if required not in table:
                raise errors.missing_column(name, required, table.columns)
        if not pd.api.types.is_numeric_dtype(table[column]):
            raise errors.scores_not_numeric(name, column, table[column].dtype)
        mean: Any = table.groupby(keys, observed=True)[column].mean()
        means.append(mean.to_frame(name))
    joined = means[0].join(means[1], how="inner").dropna()
    if len(joined) < MIN_COMPONENTS:
        raise errors.too_few_components(len(joined), MIN_COMPONENTS)
    if joined.nunique().min() < 2:
        raise errors.constant_score(str(joined.nunique().idxmin()), len(joined))
    return joined


def _spearman(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray | np.floating:
    """Spearman's correlation along an axis; NaN for constant samples."""
    from scipy import stats

    x, y = (stats.rankdata(values, axis=axis) for values in (a, b))
    x, y = (ranks - ranks.mean(axis=axis, keepdims=True) for ranks in (x, y))
    scale = np.sqrt((x * x).sum(axis=axis) * (y * y).sum(axis=axis))
    with np.errstate(invalid="ignore"):
        return (x * y).sum(axis=axis) / scale
