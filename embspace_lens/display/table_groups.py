"""Whose tokens a row holds: the neurons, heads and directions of a table, named as people name them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd

from ..errors import EmbspaceError
from ..tables.columns import GLOSSARY

KEYS = ("layer", "expert", "head", "neuron", "subhead", "direction", "factor", "weight", "component", "side")
TOKEN = ("token_index", "token_string")
MEASURES = {name for name, column in GLOSSARY.items() if column.dtype == "float32"}
MEASURES -= {"score", "singular_value", "norm"}  # of tokens, directions and weights
PAIR = ("dest_token_index", "dest_token_string", "src_token_index", "src_token_string")

VERBS = {
    "W_in": "reads",
    "W_gate": "gated by",
    "W_out": "writes",
    "W_Q": "asks for",
    "W_K": "found by",
    "W_V": "takes",
    "W_O": "writes",
    "W_OV": "moves",
    "W_QK": "attends",
}
"""What a weight does, in a word."""


class Unit(NamedTuple):
    """One neuron, head or direction, through one of its weights: its name, that weight, and its rows, best first."""

    name: str
    weight: str
    rows: pd.DataFrame


def kind(df: Any) -> str:
    """Which table this is: `"tokens"`, `"pairs"`, `"search"`, `"components"`, `"contexts"`, `"saliency"`, or `"measurements"`.

    Raises:
        EmbspaceError: If it is none of them.
    """
    columns = set(getattr(df, "columns", ()))
    if columns >= {"weight", "rows", "columns", "norm"}:
        return "components"
    if "score" in columns and columns >= set(PAIR):
        return "pairs"
    if "score" in columns and columns >= set(TOKEN):
        return "search" if columns >= {"neuron", "head", "weight"} else "tokens"
    if columns >= {"factor", "layer", "rank"} and columns <= set(GLOSSARY):
        if columns >= {"code", "before", "token_string", "after"}:
            return "contexts"
        if columns >= {"offset", "token_string", "saliency"}:
            return "saliency"
    if columns & MEASURES and columns <= set(GLOSSARY):
        return "measurements"
    raise EmbspaceError(
        "This is not one of EmbeddingLens's tables: it lacks token_index, token_string and score, or pairs of them; "
        f"its columns are {', '.join(map(repr, map(str, list(getattr(df, 'columns', ()))[:12]))) or 'none'}."
    )


def tokens_or_pairs(df: Any, caller: str, kinds: tuple[str, ...] = ("tokens", "pairs")) -> str:
    """The table's kind, where the caller can use it.

    Raises:
        EmbspaceError: If it is of another kind.
    """
    found = kind(df)
    if found not in kinds:
        tables = {
            "tokens": "neurons(), subheads(), singular() or directions()",
            "pairs": "ov() or qk()",
            "search": "search()",
        }
        asked = ", ".join(tables[name] for name in kinds)
        raise EmbspaceError(
            f"{caller} takes a table of {asked}; this one is of {found}{'()' if found in ('search', 'components') else ''}."
        )
    return found


def keys(df: pd.DataFrame) -> list[str]:
    """The columns that tell one unit from another."""
    return [name for name in KEYS if name in df.columns]


def name_of(row: Any) -> str:
    """`L3N120`, `L3E2N120`, `L2H5`, `L2H5.17`, `F30`, or a direction's own name.

    Args:
        row: A mapping, or a row of a table; −1 stands for "none of these".
    """

    def part(letter: str, column: str) -> str:
        number = row.get(column, -1)
        return f"{letter}{number}" if number == number and number >= 0 else ""

    if "direction" in row:
        return str(row["direction"])
    name = part("L", "layer") + part("E", "expert") + part("H", "head") + part(".", "subhead") + part("N", "neuron")
    return name + part("F", "factor")


def weight_of(row: Any) -> str:
    """`W_out`; for a singular direction `W_OV 0 read`."""
    more = [row[column] for column in ("component", "side") if column in row]
    return " ".join(map(str, [row["weight"], *more] if "weight" in row else more))


def count(df: pd.DataFrame) -> int:
    """How many units a table holds."""
    return len(df[keys(df)].drop_duplicates())


def head(df: pd.DataFrame, n: int | None) -> pd.DataFrame:
    """The rows of a table's first n units (all for None)."""
    names = keys(df)
    if n is None or not names:
        return df
    first = df[names].drop_duplicates().head(n)
    kept = df[names].merge(first.assign(_kept=True), on=names, how="left")["_kept"].notna()
    return df.loc[kept.to_numpy()]


def units(df: pd.DataFrame, n: int | None = None) -> Iterator[Unit]:
    """The first n units of a table (all for None), in its order, each with its rows, best first."""
    names = keys(df)
    rows = head(df, n)
    if not names:
        if len(rows):
            yield Unit("", "", rows)
        return
    for _, group in rows.groupby(names, sort=False, observed=True, dropna=False):
        group = group.sort_values("rank", kind="stable") if "rank" in group.columns else group
        row = group.iloc[0][names].to_dict()
        yield Unit(name_of(row), weight_of(row), group)


def ends(rows: pd.DataFrame) -> tuple[str, str]:
    """The two ends of a pair, in the order of the arrow: source → promoted for W_OV, query → key for W_QK."""
    query_first = "weight" in rows.columns and len(rows) and rows["weight"].iloc[0] == "W_QK"
    return ("dest", "src") if query_first else ("src", "dest")


def in_glossary_order(columns: list[str]) -> list[str]:
    """Columns as tables of this package order them; what is not ours comes last."""
    order = {name: place for place, name in enumerate(GLOSSARY)}
    return sorted(columns, key=lambda name: order.get(name, len(order)))
