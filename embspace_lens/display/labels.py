"""One label per neuron, head or direction: its best tokens as displayed."""

import pandas as pd

from .table_groups import TOKEN_KINDS, check_kind, group_numbers, in_glossary_order, key_columns
from .tokens import display, pair


def label_groups(df: pd.DataFrame, k: int) -> pd.DataFrame:
    """Join the first k tokens (or pairs) of each group of a table to one label.

    Returns:
        One row per group, with its keys and `label`, in the table's order.

    Raises:
        EmbspaceError: If it is not a table of tokens or pairs.
    """
    table_kind = check_kind(df, "label()", TOKEN_KINDS)
    names = key_columns(df)
    df = df.assign(_group=group_numbers(df, names))
    if "rank" in df.columns:
        df = df.sort_values("rank", kind="stable")
    df = df.groupby("_group", sort=True).head(k)
    labels = df.assign(label=_texts(df, table_kind)).groupby("_group", sort=True)["label"].agg(" ".join)
    keys = df.drop_duplicates("_group").sort_values("_group")[in_glossary_order(names)].reset_index(drop=True)
    return keys.assign(label=labels.astype("str").to_numpy() if len(labels) else pd.Series([], dtype="str"))


def _texts(df: pd.DataFrame, table_kind: str) -> list[str]:
    """Each row's token or pair."""
    if table_kind != "pairs":
        return list(map(display, df["token_string"]))
    is_query_first = (df["weight"] == "W_QK").tolist() if "weight" in df.columns else [False] * len(df)
    rows = zip(df["src_token_string"], df["dest_token_string"], is_query_first, strict=True)
    return [pair(dest, src) if query_first else pair(src, dest) for src, dest, query_first in rows]
