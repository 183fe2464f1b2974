"""The orders in which sites list factors and features."""

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int


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
    tokens = table["token_index"].fillna(-1).astype(int).tolist()
    return _distinct_first(np.lexsort((-importance, -score)).tolist(), tokens, score > 0)


def legible_first(
    is_legible: Bool[np.ndarray, " n"],
    z: Float[np.ndarray, " n"],
    strength: Float[np.ndarray, " n"],
    tokens: Int[np.ndarray, " n"],
) -> list[int]:
    """Legible features by their largest z-score, then the others; the best legible feature of each token comes first.

    Args:
        is_legible: Whether each feature is legible.
        z: The largest z-score of the tokens that it reads.
        strength: Its strongest virtual weight, for equal z-scores.
        tokens: The token with this z-score.
    """
    order = np.lexsort((-np.nan_to_num(strength), -np.nan_to_num(z), ~is_legible)).tolist()
    return _distinct_first(order, tokens.tolist(), is_legible)


def _distinct_first(order: list[int], tokens: list[int], counts: Bool[np.ndarray, " n"]) -> list[int]:
    """The same numbers; the first number of each token comes before the others, if it counts."""
    first, others, listed = [], [], set()
    for i in order:
        (first if tokens[i] not in listed and counts[i] else others).append(i)
        listed.add(tokens[i])
    return first + others
