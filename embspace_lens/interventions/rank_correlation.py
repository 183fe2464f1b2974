"""Does what the weights say predict what an intervention does?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from .. import errors
from ..tables.frames import tidy

FEWEST = 5  # units, below which a rank correlation says nothing


def agreement(
    zero_pass: pd.DataFrame,
    causal: pd.DataFrame,
    on: Sequence[str] = ("layer", "head"),
    *,
    scores: tuple[str, str] = ("score", "value"),
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Correlate a score of units, read from weights, with their effect in forward passes.

    .. math:: \rho = r\big(\operatorname{rank}(a), \operatorname{rank}(b)\big)

    Spearman's, over the units that both tables have, beside the same with the effects permuted among the units.

    Args:
        zero_pass: A table of scores by unit, such as `head_statistics` or `lens.ov(k=1)`.
        causal: A table of effects by unit, such as a `patching_frame`. Several rows of a unit are averaged in either.
        on: The keys of a unit, in both tables.
        scores: The column of each table.
        n_resamples: How many bootstrap samples and permutations.
        seed: Of both.

    Returns:
        One row per (sample): `"paired"`, with the rank `correlation`, `low` and `high` (its 95 % interval, units resampled),
        `p_value` (share of permutations with a correlation at least as large in size) and `n` units; and `"permuted"`: the mean and
        the middle 95 % of the permutations.

    Raises:
        EmbspaceError: If a column is missing, fewer than 5 units are in both tables, or a score does not vary.

    Example:
        >>> a = lens.ov(k=1)
        >>> agreement(a, a, scores=("score", "score"))["sample"].tolist()
        ['paired', 'permuted']
    """
    if isinstance(n_resamples, bool) or not isinstance(n_resamples, int | np.integer) or n_resamples < 1:
        raise errors.EmbspaceError(f"n_resamples={n_resamples!r} is not a positive number of samples.")
    both = in_both(zero_pass, causal, on, scores)
    a, b = both["zero_pass"].to_numpy(), both["causal"].to_numpy()
    generator = np.random.default_rng(seed)
    found = _spearman(a[None], b[None])[0]
    drawn = generator.integers(len(a), size=(n_resamples, len(a)))
    resampled = _spearman(a[drawn], b[drawn])
    permuted = _spearman(np.tile(a, (n_resamples, 1)), generator.permuted(np.tile(b, (n_resamples, 1)), axis=1))
    at_least = int((np.abs(permuted) >= abs(found) - 1e-12).sum())
    low, high = (np.nanquantile(x, [0.025, 0.975]) for x in (resampled, permuted))
    block = {
        "sample": ["paired", "permuted"],
        "correlation": [found, permuted.mean()],
        "low": [low[0], high[0]],
        "high": [low[1], high[1]],
        "p_value": [(at_least + 1) / (n_resamples + 1), np.nan],
        "n": [len(a)] * 2,
    }
    return tidy(["sample", "correlation", "low", "high", "p_value", "n"], [block])


def in_both(zero_pass: pd.DataFrame, causal: pd.DataFrame, on: Sequence[str], scores: tuple[str, str]) -> pd.DataFrame:
    """The scores of the units that both tables have, indexed by their keys; as `agreement` compares them.

    Raises:
        EmbspaceError: As `agreement`.
    """
    keys = [on] if isinstance(on, str) else list(on)
    if not keys:
        raise errors.EmbspaceError("on names no key; give those of a unit, such as ('layer', 'head').")
    units = []
    for name, table, column in (("zero_pass", zero_pass, scores[0]), ("causal", causal, scores[1])):
        if not isinstance(table, pd.DataFrame):
            raise errors.EmbspaceError(
                f"{name} is a {type(table).__name__}; give a table, such as head_statistics(lens)."
            )
        missing = [c for c in (*keys, column) if c not in table]
        if missing:
            raise errors.EmbspaceError(
                f"{name} has no column {missing[0]!r}; it has {', '.join(map(repr, table.columns))}."
            )
        if not pd.api.types.is_numeric_dtype(table[column]):
            raise errors.EmbspaceError(f"{name}'s {column!r} holds no numbers (it is {table[column].dtype}).")
        mean: Any = table.groupby(keys, observed=True)[column].mean()
        units.append(mean.to_frame(name))
    both = units[0].join(units[1], how="inner").dropna()
    if len(both) < FEWEST:
        raise errors.EmbspaceError(
            f"{len(both)} units are in both tables; a rank correlation needs {FEWEST} at least. Are their keys of one kind?"
        )
    if both.nunique().min() < 2:
        raise errors.EmbspaceError(f"The {both.nunique().idxmin()} score is the same for all {len(both)} units.")
    return both


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row; NaN where a sample drew one and the same unit alone."""
    x, y = (stats.rankdata(rows, axis=1) for rows in (a, b))
    x, y = (rows - rows.mean(axis=1, keepdims=True) for rows in (x, y))
    scale = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    return np.divide((x * y).sum(axis=1), scale, out=np.full(len(x), np.nan), where=scale > 0)
