"""Levels of factors: words, patterns, long range; decided by a rule that is written down."""

from typing import Any

import numpy as np
import pandas as pd

from ..errors import EmbspaceError
from ..tables.frames import tidy

EARLY, LATE = 1 / 3, 2 / 3  # of the depth
NEAR = 2.0  # tokens: what decides the code is the target and its neighbours
COLUMNS = ["factor", "token_index", "token_string", "level", "peak", "onset", "purity", "reach"]


def level(importance: pd.DataFrame, contexts: pd.DataFrame, reach: pd.DataFrame | None = None) -> pd.DataFrame:
    r"""Sort factors into words, patterns and long range, by where in the model they set in.

    With a factor's importance I over layers, and depth counted from 0 (the first layer given) to 1 (the last):

    .. math:: \mathrm{onset} = \min \{ l : I^{(l)} \ge \tfrac12 \max I \}

    - **word**: onset up to 1/3. It is there as soon as the token is.
    - **pattern**: onset up to 2/3: it takes some blocks to be built.
    - **long range**: a later onset. Where `reach` is given and is 2 tokens or less, it is a pattern all the same; and a factor that
      sets in early or midway is a pattern, not a word, if its reach is more than 2 tokens.
    - A factor that is 0 in all layers has no level, peak or onset.

    Yun et al. describe the same three: importance that peaks early (word-level disambiguation), rises in the middle
    (sentence-level patterns) and rises late (long-range dependence), and tell the last two apart by hand, from saliency maps. Here the
    curve decides, and the reach where it was measured; borderline factors fall where the numbers put them.

    Args:
        importance: A table of `importance`, or `activity(…).importance`, of two layers or more.
        contexts: A table of `top_contexts`, or `activity(…).contexts`.
        reach: A table with `factor` and `reach`, such as `reach_of(saliency(…))`; not measured by default.

    Returns:
        One row per (factor): `level`, `peak` and `onset`; of its contexts in the peak's layer, the commonest target as `token_index`,
        `token_string` (−1 and empty for a factor without contexts) and its share, `purity`; and `reach`. `level` is empty for a dead factor.

    Raises:
        EmbspaceError: If the tables are others, or of one layer only.

    Example:
        >>> from embspace_lens.factors import Factors, activity
        >>> seen = activity(Factors(torch.eye(32), l1=0.01), model, ["w2 w3 w4"])
        >>> set(level(seen.importance, seen.contexts)["level"]) <= {"word", "pattern", "long range"}
        True

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §3. https://arxiv.org/abs/2103.15949
    """
    for df, columns, name in (
        (importance, ("factor", "layer", "importance"), "importance"),
        (contexts, ("factor", "layer", "token_index", "token_string"), "contexts"),
        (reach, ("factor", "reach"), "reach"),
    ):
        missing = [column for column in columns if df is not None and column not in df.columns]
        if missing:
            raise EmbspaceError(f"{name} is another table: it has no {missing[0]!r}.")
    curves = importance.pivot(index="factor", columns="layer", values="importance")
    layers = curves.columns.to_numpy()
    if len(layers) < 2:
        raise EmbspaceError("The importance of one layer has no curve; give two layers or more.")
    values = curves.to_numpy()
    depth = (layers - layers[0]) / (layers[-1] - layers[0])
    best = values.argmax(axis=1)
    dead = values.max(axis=1) <= 0
    onset = np.where(dead, np.nan, depth[(values >= values.max(axis=1, keepdims=True) / 2).argmax(axis=1)])
    peak: Any = dict(zip(curves.index, layers[best]))
    at_peak: Any = contexts[contexts["layer"] == contexts["factor"].map(peak)]
    counted = at_peak.value_counts(subset=["factor", "token_index", "token_string"]).reset_index()
    counted = counted.sort_values(["factor", "count", "token_index"], ascending=[True, False, True])
    counted["share"] = counted["count"] / counted.groupby("factor")["count"].transform("sum")
    first = counted.drop_duplicates(["factor"]).set_index("factor").reindex(curves.index)
    far = np.full(len(curves), np.nan)
    if reach is not None:
        far = reach.groupby("factor")["reach"].median().reindex(curves.index).to_numpy()
    found = np.where(onset <= EARLY, "word", np.where(onset <= LATE, "pattern", "long range"))
    found = np.where(dead, "", found)
    found = np.where((found == "word") & (far > NEAR), "pattern", found)
    found = np.where((found == "long range") & (far <= NEAR), "pattern", found)
    block = {
        "factor": curves.index.to_numpy(),
        "token_index": first["token_index"].fillna(-1).to_numpy(),
        "token_string": first["token_string"].fillna("").to_numpy(),
        "level": found,
        "peak": np.where(dead, np.nan, depth[best]),
        "onset": onset,
        "purity": first["share"].to_numpy(),
        "reach": far,
    }
    return tidy(COLUMNS, [block])
