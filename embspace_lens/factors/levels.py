"""Levels of factors: word, pattern or long range where the reach was measured; early, middle or late elsewhere."""

from typing import Any

import numpy as np
import pandas as pd

from .. import errors
from ..tables.frames import tidy
from .targets import target_statistics

EARLY, LATE = 1 / 3, 2 / 3  # depths of the peak that separate early, middle and late
PURE = 0.5  # a word factor has a most frequent target with at least this share of its contexts
MIN_CONTEXTS = 5  # a word factor has at least this number of strong contexts
FAR = 5.0  # tokens; a long-range factor has at least this reach
SALIENT = 0.1  # tokens with a smaller share of the largest saliency do not count for the reach
CONTEXT_COLUMNS = ("factor", "layer", "token_index", "token_string", "example", "code")
COLUMNS = ["factor", "token_index", "token_string", "level", "peak", "onset", "purity", "sharpness", "reach", "n_contexts", "n_texts"]  # fmt: skip


def level(importance: pd.DataFrame, contexts: pd.DataFrame, reach: pd.DataFrame | None = None) -> pd.DataFrame:
    r"""Classify factors as word, pattern or long range by their targets and their reach, or else by the depth of their peak.

    Where the reach was measured (see `reach_of`):

    - **long range**: a reach of 5 tokens or more.
    - **word**: a shorter reach, and a purity of 1/2 or more: in the layer of the peak, at least half of the strong contexts
      have the same target, of five or more. A context is strong if its code is at least half of the factor's largest there.
    - **pattern**: all others.

    Where it was not measured, nothing is known about the tokens that determine the code. The level is then the depth at
    which importance peaks, which is 0 for the first layer in the table and 1 for the last:

    - **early**: a peak up to 1/3; **middle**: up to 2/3; **late**: above 2/3.

    A factor with importance 0 in all layers is dead: it has no level, peak or onset.

    Yun et al. describe three levels: importance that peaks early (word-level disambiguation), rises in the middle
    (sentence-level patterns) or rises late (long-range dependence), and assign factors to them by hand, from saliency maps.
    This function uses fixed thresholds instead. Contexts differ between corpora, and the level with them: `n_contexts` and
    `n_texts` state from how much text a level was found. With targets shuffled among all contexts, purity is about the share
    of the most frequent token, and no factor is a word factor.

    Args:
        importance: A table of `importance`, or `activity(…).importance`, with two layers or more.
        contexts: A table of `top_contexts`, or `activity(…).contexts`.
        reach: A table with `factor` and `reach`, such as `reach_of(saliency(…))`; it may have only some of the factors.

    Returns:
        One row per (factor): `level` (empty for a dead factor); `peak` and `onset`, the depth at which importance first
        reaches half of its peak; the most frequent target of its strong contexts in the peak's layer as `token_index` and
        `token_string` (−1 and empty without contexts), its share, `purity`, and the `sharpness` of all targets; `reach`;
        and the number of strong contexts and of the texts from which they are.

    Raises:
        EmbspaceError: If a table lacks a column, or there is only one layer.

    Example:
        >>> from embspace_lens.factors import Factors, activity
        >>> result = activity(Factors(torch.eye(32), l1=0.01), model, ["w2 w3 w4"])
        >>> set(level(result.importance, result.contexts)["level"]) <= {"early", "middle", "late", ""}
        True

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §3. https://arxiv.org/abs/2103.15949
    """
    _check_columns("importance", importance, ("factor", "layer", "importance"), "importance")
    _check_columns("contexts", contexts, CONTEXT_COLUMNS, "top_contexts")
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
    peak = np.where(is_dead, np.nan, depth[peak_index])
    targets = target_statistics(contexts, dict(zip(curves.index, layers[peak_index]))).reindex(curves.index)
    median_reach = np.full(len(curves), np.nan)
    if reach is not None:
        median_reach = reach.groupby("factor")["reach"].median().reindex(curves.index).to_numpy()
    purity, n_contexts = (targets[name].fillna(0).to_numpy(dtype=float) for name in ("purity", "n_contexts"))
    is_pure = (purity >= PURE) & (n_contexts >= MIN_CONTEXTS)
    block = {
        "factor": curves.index.to_numpy(),
        "token_index": targets["token_index"].fillna(-1).to_numpy(),
        "token_string": targets["token_string"].fillna("").to_numpy(),
        "level": np.where(is_dead, "", _levels(peak, is_pure, median_reach)),
        "peak": peak,
        "onset": np.where(is_dead, np.nan, depth[onset_index]),
        "purity": targets["purity"].to_numpy(dtype=float),
        "sharpness": targets["sharpness"].to_numpy(dtype=float),
        "reach": median_reach,
        "n_contexts": n_contexts.astype(int),
        "n_texts": targets["n_texts"].fillna(0).to_numpy(dtype=int),
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


def _levels(peak: np.ndarray, is_pure: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """The level of each factor: by reach and purity where the reach was measured, by the depth of the peak elsewhere."""
    measured = np.where(reach >= FAR, "long range", np.where(is_pure, "word", "pattern"))
    by_depth = np.where(peak <= EARLY, "early", np.where(peak <= LATE, "middle", "late"))
    return np.where(np.isnan(reach), by_depth, measured)
