"""How many lines a table has, and the parts of a search and of explained contexts that are one line each."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from .table_groups import KEYS, added_keys, count_groups, name_of
from .tokens import format_score, ordinal, pair

CONTEXT = ["factor", "layer", "rank"]
"""The keys of a context."""


class SearchLine(NamedTuple):
    """The components of one weight that score a token highest, best first; `name` tells apart several tokens or models."""

    name: str
    weight: str
    components: list[dict[str, Any]]


def search_lines(df: pd.DataFrame, n: int | None = None) -> list[SearchLine]:
    """One line for each weight of a search, with its first n components (all for None)."""
    added = added_keys(df, [name for name in KEYS if name in df.columns])
    if "token_string" in df.columns and len(df["token_string"].unique()) > 1:
        added.append("token_string")
    lines = []
    by_weight: Any = df.groupby([*added, "weight"], sort=False, observed=True)
    for (*names, weight), rows in by_weight:
        components: Any = rows.sort_values("rank", kind="stable").iloc[:n].to_dict("records")
        lines.append(SearchLine(", ".join(map(str, names)), str(weight), components))
    return lines


def searched_token(df: pd.DataFrame) -> tuple[str, int] | None:
    """The token that a search is for, and its id; None if there are several, or none."""
    if "token_string" not in df.columns or "token_index" not in df.columns:
        return None
    columns: Any = df[["token_string", "token_index"]]
    tokens = columns.drop_duplicates().to_dict("records")
    return (str(tokens[0]["token_string"]), int(tokens[0]["token_index"])) if len(tokens) == 1 else None


def search_title(df: pd.DataFrame, token: str) -> str:
    """The heading of a search: whether the scores are the highest or the lowest, and whether ranks are shown."""
    changes = df.groupby("weight", observed=True)["score"].diff().to_numpy(dtype=float)
    which = "lowest" if np.any(changes > 0) and not np.any(changes < 0) else "highest"
    has_ranks = "token_rank" in df.columns and np.any(df["token_rank"].to_numpy() >= 0)
    return f"components that score {token} {which}" + (" (and its rank among their tokens)" if has_ranks else "")


def component_name(row: dict[str, Any]) -> str:
    """A component of a search: `L3N120`; for a head that scores a pair highest, `L2H5 ␣a→␣b`."""
    source, target = row.get("src_token_string"), row.get("dest_token_string")
    if isinstance(source, str) and isinstance(target, str) and source and target:
        # As in a table of pairs, the query is first in W_QK.
        return f"{name_of(row)} {pair(target, source) if row.get('weight') == 'W_QK' else pair(source, target)}"
    return name_of(row)


def score_and_rank(row: dict[str, Any]) -> str:
    """The score of a component of a search, and the token's rank among the component's tokens if it is known: `0.369 (4th)`."""
    rank = int(row.get("token_rank", -1))
    return format_score(row["score"]) + ("" if rank < 0 else f" ({ordinal(rank + 1)})")


def context_numbers(df: pd.DataFrame) -> pd.Series:
    """For each row of a table of saliency, the number of its context in the table's order."""
    return df.groupby(CONTEXT, sort=False).ngroup()


def count_lines(df: pd.DataFrame, table_kind: str, n: int | None) -> tuple[int, int]:
    """How many lines are shown for n, and how many the table has; for a search, components instead of lines."""
    if table_kind == "search":
        return sum(len(line.components) for line in search_lines(df, n)), len(df)
    if table_kind in ("tokens", "pairs"):
        total = count_groups(df)
    elif table_kind == "saliency":
        total = len(df[CONTEXT].drop_duplicates())
    else:
        total = len(df)
    return (total if n is None else min(n, total)), total
