"""The targets of a factor's contexts: the most frequent one, its share, and how sharp their distribution is."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

STRONG = 0.5  # contexts with a smaller share of the factor's largest code in their layer do not count


def sharpness(counts: Sequence[int] | np.ndarray) -> float:
    r"""How concentrated the targets of contexts are: 1 if all are the same token, 0 if all are different.

    With the share :math:`p_t` of target t among n contexts:

    .. math:: \mathrm{sharpness} = 1 - \frac{-\sum_t p_t \log p_t}{\log n}

    Purity is the share of one target only; sharpness is also high for a factor with two or three frequent targets.

    Args:
        counts: How often each target occurs.

    Returns:
        A number from 0 to 1; NaN with fewer than two contexts.

    Example:
        >>> [round(sharpness(counts), 3) for counts in ([8], [4, 4], [1, 1, 1, 1])]
        [1.0, 0.667, 0.0]
    """
    share = np.asarray(counts, dtype=float)
    share = share[share > 0]
    n = share.sum()
    if n < 2:
        return float("nan")
    share = share / n
    return min(1.0, max(0.0, 1.0 + float((share * np.log(share)).sum()) / float(np.log(n))))


def target_statistics(contexts: pd.DataFrame, layers: dict[Any, Any]) -> pd.DataFrame:
    """The targets of each factor's strong contexts in one layer: those with at least half of its largest code there.

    Weaker contexts are left out because a factor of a rare word has few strong contexts, and a table of its 200 top contexts
    then consists mostly of weak ones; how many depends on the size of the corpus.

    Args:
        contexts: A table of `top_contexts`.
        layers: For each factor, the layer whose contexts are counted.

    Returns:
        By factor, without those that have no contexts there: the most frequent target as `token_index` and `token_string`
        (the smallest id of several), its share `purity`, `sharpness`, `n_contexts`, and `n_texts`, the number of texts from
        which these contexts are.
    """
    at_layer: Any = pd.Series(layers)
    selected: Any = contexts[contexts["layer"] == contexts["factor"].map(at_layer)]
    selected = selected[selected["code"] >= STRONG * selected.groupby("factor")["code"].transform("max")]
    counts = selected.value_counts(subset=["factor", "token_index", "token_string"]).reset_index()
    counts = counts.sort_values(["factor", "count", "token_index"], ascending=[True, False, True])
    table = counts.drop_duplicates(["factor"]).set_index("factor")
    by_factor = counts.groupby("factor")["count"]
    table["n_contexts"] = by_factor.sum()
    table["purity"] = table["count"] / table["n_contexts"]
    table["sharpness"] = by_factor.agg(lambda part: sharpness(part.to_numpy())).astype(float)
    table["n_texts"] = selected.groupby("factor")["example"].nunique()
    return table.drop(columns="count")
