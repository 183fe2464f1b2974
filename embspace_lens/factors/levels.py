"""Levels of factors: word, pattern or long range, decided by an explicit rule."""

from typing import Any

import numpy as np
import pandas as pd

from .. import errors
from ..tables.frames import tidy

EARLY, LATE = 1 / 3, 2 / 3  # depths that separate the levels
SHORT_REACH = 2.0  # tokens; up to this reach, the target and its neighbours determine the code
SALIENT = 0.1  # tokens with a smaller share of the largest saliency do not count for the reach
COLUMNS = ["factor", "token_index", "token_string", "level", "peak", "onset", "purity", "reach"]


def level(importance: pd.DataFrame, contexts: pd.DataFrame, reach: pd.DataFrame | None = None) -> pd.DataFrame:
    r"""Classify factors as word, pattern or long range, by the layer at which their importance rises.

    Depth is 0 for the first layer in the table and 1 for the last. With a factor's importance I over layers:

    .. math:: \mathrm{onset} = \min \{ l : I^{(l)} \ge \tfrac12 \max I \}

    - **word**: onset up to 1/3.
    - **pattern**: onset up to 2/3.
    - **long range**: onset above 2/3.

    If `reach` is given, it corrects the level: a long-range factor with a reach of 2 tokens or less is a pattern, and a word
    factor with a reach of more than 2 tokens is a pattern. A factor with importance 0 in all layers is dead: it has no
    level, peak or onset.

    Yun et al. describe the same three levels: importance that peaks early (word-level disambiguation), rises in the middle
    (sentence-level patterns) or rises late (long-range dependence). They separate the last two by hand, from saliency maps.
    This function uses fixed thresholds instead, so other texts can give a borderline factor another level.

    Args:
        importance: A table of `importance`, or `activity(…).importance`, with two layers or more.
        contexts: A table of `top_contexts`, or `activity(…).contexts`.
        reach: A table with `factor` and `reach`, such as `reach_of(saliency(…))`; by default the reach is not used.

    Returns:
        One row per (factor): `level` (empty for a dead factor), `peak` and `onset` as depths; the most frequent target of
        its contexts in the peak's layer as `token_index` and `token_string` (−1 and empty without contexts), and its share,
        `purity`; and `reach`.

    Raises:
        EmbspaceError: If a table lacks a column, or there is only one layer.

    Example:
        >>> from embspace_lens.factors import Factors, activity
        >>> result = activity(Factors(torch.eye(32), l1=0.01), model, ["w2 w3 w4"])
        >>> set(level(result.importance, result.contexts)["level"]) <= {"word", "pattern", "long range"}
        True

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §3. https://arxiv.org/abs/2103.15949
    """
    _check_columns("importance", importance, ("factor", "layer", "importance"), "importance")
    _check_columns("contexts", contexts, ("factor", "layer", "token_index", "token_string"), "top_contexts")
    if reach is not None:
        _check_columns("reach", reach, ("factor", "reach"), "reach_of")
    curves = importance.pivot(index="factor", columns="layer", values="importance")
    layers = curves.columns.to_numpy()
    if len(layers) < 2:
        raise errors.one_layer_importance()
    values = curves.to_numpy()
    depth = (layers - layers[0]) / (layers[-1] - layers[0])
    peak_index = values.argmax(axis=1)
    is_dead = values.max(axis=1) <= 0
    onset_index = (values >= values.max(axis=1, keepdims=True) / 2).argmax(axis=1)
    onset = np.where(is_dead, np.nan, depth[onset_index])
    target = _most_frequent_targets(contexts, dict(zip(curves.index, layers[peak_index]))).reindex(curves.index)
    median_reach = np.full(len(curves), np.nan)
    if reach is not None:
        median_reach = reach.groupby("factor")["reach"].median().reindex(curves.index).to_numpy()
    block = {
        "factor": curves.index.to_numpy(),
        "token_index": target["token_index"].fillna(-1).to_numpy(),
        "token_string": target["token_string"].fillna("").to_numpy(),
        "level": np.where(is_dead, "", _levels(onset, median_reach)),
        "peak": np.where(is_dead, np.nan, depth[peak_index]),
        "onset": onset,
        "purity": target["share"].to_numpy(),
        "reach": median_reach,
    }
    return tidy(COLUMNS, [block])


def reach_of(saliency: pd.DataFrame) -> pd.DataFrame:
    r"""Measure how far the salient tokens are from their targets, for `level`.

    .. math:: \mathrm{reach} = \sum_i w_i |i| / \sum_i w_i \quad \text{over tokens with } w_i \ge \tfrac{1}{10} \max_j w_j

    Here i is a token's offset and w its saliency. The reach of a factor is the median over its contexts. Tokens with little
    saliency are left out, because a fit to random samples gives every token some saliency, and most tokens are far away.

    Args:
        saliency: A table of `saliency`.

    Returns:
        One row per (factor), with `reach`, in tokens; NaN if no token is salient.

    Raises:
        EmbspaceError: If the table lacks a column.

    Example:
        >>> row = {"factor": [7, 7], "layer": [0, 0], "rank": [0, 0], "offset": [-2, 0], "saliency": [1.0, 3.0]}
        >>> reach_of(tidy(list(row), [row]))["reach"].tolist()
        [0.5]
    """
    context = ["factor", "layer", "rank"]
    _check_columns("saliency", saliency, (*context, "offset", "saliency"), "saliency")
    value = saliency["saliency"].astype("float64")
    largest: Any = value.groupby([saliency[name] for name in context]).transform("max")
    weight = value.where(value >= SALIENT * largest, 0.0).clip(lower=0)
    weighted = saliency.assign(distance=weight * saliency["offset"].abs(), weight=weight)
    sums: Any = weighted.groupby(context)[["distance", "weight"]].sum()
    by_factor: Any = (sums["distance"] / sums["weight"].where(sums["weight"] > 0)).groupby(level="factor").median()
    return tidy(["factor", "reach"], [{"factor": by_factor.index.to_numpy(), "reach": by_factor.to_numpy()}])


def _check_columns(name: str, frame: pd.DataFrame, columns: tuple[str, ...], source: str) -> None:
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise errors.table_lacks_column(name, missing[0], source)


def _most_frequent_targets(contexts: pd.DataFrame, peak_layer: Any) -> pd.DataFrame:
    """The most frequent target of each factor in its peak layer, and its share. Ties go to the smallest token id."""
    at_peak: Any = contexts[contexts["layer"] == contexts["factor"].map(peak_layer)]
    counts = at_peak.value_counts(subset=["factor", "token_index", "token_string"]).reset_index()
    counts = counts.sort_values(["factor", "count", "token_index"], ascending=[True, False, True])
    counts["share"] = counts["count"] / counts.groupby("factor")["count"].transform("sum")
    return counts.drop_duplicates(["factor"]).set_index("factor")


def _levels(onset: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """The level of each factor; a reach of NaN does not change the level."""
    levels = np.where(onset <= EARLY, "word", np.where(onset <= LATE, "pattern", "long range"))
    levels = np.where((levels == "word") & (reach > SHORT_REACH), "pattern", levels)
    return np.where((levels == "long range") & (reach <= SHORT_REACH), "pattern", levels)
