"""One label per neuron, head or direction: its best tokens as displayed."""

import pandas as pd

from .table_groups import TOKEN_KINDS, check_kind, group_numbers, holds_pairs, in_glossary_order, key_columns, pair_ends
from .tokens import display, pair


def label_groups(df: pd.DataFrame, k: int) -> pd.DataFrame:
    """Join the first k tokens (or pairs) of each group of a table to one label.

    Returns:
        One row per group, with its keys and `label`, in the table's order.

    Raises:
        EmbspaceError: If it is not a table of tokens or pairs.
    """
    check_kind(df, "label()", TOKEN_KINDS)
    names = key_columns(df)
    df = df.assign(_group=group_numbers(df, names))
    if "rank" in df.columns:
        df = df.sort_values("rank", kind="stable")
    df = df.groupby("_group", sort=True).head(k)
    labels = df.assign(label=_texts(df)).groupby("_group", sort=True)["label"].agg(" ".join)
    keys = df.drop_duplicates("_group").sort_values("_group")[in_glossary_order(names)].reset_index(drop=True)
    return keys.assign(label=labels.astype("str").to_numpy() if len(labels) else pd.Series([], dtype="str"))


def _texts(df: pd.DataFrame) -> list[str]:
    """Each row's token or pair."""
    texts = []
    df = df.reset_index(drop=True)
    for _, rows in df.groupby("_group", sort=False):
        if holds_pairs(rows):
            left, right = (rows[f"{end}_token_string"] for end in pair_ends(rows))
            texts.append(pd.Series(list(map(pair, left, right)), index=rows.index))
        else:
            texts.append(rows["token_string"].map(display))
    return pd.concat(texts).sort_index().tolist() if texts else []
