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
    sharpness = table["sharpness"].to_numpy(dtype=float)
    order = pd.DataFrame({"score": np.nan_to_num(sharpness) * importance, "importance": importance})
    order["token"] = table["token_index"].fillna(-1).to_numpy()
    order = order.sort_values(["score", "importance"], ascending=False, kind="stable")
    is_repeat = order["token"].duplicated() | (order["score"] <= 0)
    return [*order.index[~is_repeat], *order.index[is_repeat]]
