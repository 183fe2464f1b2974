"""The order in which the site lists factors."""

import numpy as np
import pandas as pd


def best_first(targets: pd.DataFrame, importance: np.ndarray) -> list[int]:
    r"""The factors by descending sharpness times importance; the best factor of each most frequent target comes first.

    Without the second rule, the list would begin with many factors of the same few frequent tokens.

    Args:
        targets: The table of `factors.targets.target_statistics`, by factor; it may lack some factors.
        importance: The importance of each factor in the layer of its peak.

    Returns:
        All factors. Those without sharpness come last, by importance.
    """
    table = targets.reindex(range(len(importance)))
    score = np.nan_to_num(table["sharpness"].to_numpy(dtype=float)) * importance
    tokens = table["token_index"].fillna(-1).tolist()
    first, others, listed = [], [], set()
    for factor in np.lexsort((-importance, -score)).tolist():
        is_first = tokens[factor] not in listed and score[factor] > 0
        (first if is_first else others).append(factor)
        listed.add(tokens[factor])
    return first + others
