"""What a table holds, and its rows grouped by neuron, head or direction, with the names that readers see."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from .. import errors
from ..tables.columns import GLOSSARY
from ..tables.frames import GIVEN
from .tokens import visible

TOKEN = ("token_index", "token_string")
PAIR = ("dest_token_index", "dest_token_string", "src_token_index", "src_token_string")

REQUIRED = {
    "components": ("weight", "rows", "columns", "norm"),
    "search": (*TOKEN, "score", "neuron", "head", "weight"),
    "pairs": (*PAIR, "score"),
    "tokens": (*TOKEN, "score"),
    "contexts": ("factor", "layer", "rank", "code", "before", "token_string", "after"),
    "saliency": ("factor", "layer", "rank", "offset", "token_string", "saliency"),
    "related_pairs": ("layer", "pair", "sample", "jaccard", "low", "high", "n"),
    "recall": ("target", "layer", "weight", "sample", "recall", "low", "high", "n"),
    "keep_k": ("source", "inverse", "k", "similarity", "n"),
    "stitch": ("recipient", "donor", "inverse", "keep", "accuracy", "low", "high", "n"),
    "displacement": ("layer", "weight", "sample", "share", "low", "high", "n"),
    "importance": ("factor", "layer", "importance"),
    "alignment": ("weight", "layer_a", "layer_b", "correlation"),
}
"""The columns that each kind of table must have, in the order in which `kind` compares them with a table's columns."""

TOKEN_KINDS = ("tokens", "pairs", "search")
_WITH_OTHER_COLUMNS = ("components", *TOKEN_KINDS)
"""Kinds that are recognised beside columns that are not in the glossary, which a merge may add."""

_MAKERS = {
    "tokens": "neurons(), subheads(), singular() or directions()",
    "pairs": "ov() or qk()",
    "search": "search()",
    "components": "components()",
    "related_pairs": "evidence.related_pairs()",
    "recall": "evidence.hidden_state_recall()",
    "keep_k": "evidence.keep_k()",
    "stitch": "stitch_sweep()",
    "displacement": "displacement()",
    "alignment": "align()",
}
"""The functions that make each kind of table, for messages."""

KEYS = ("layer", "expert", "head", "neuron", "subhead", "direction", "factor", "circuit", "weight", "component", "side")
_HASHABLE = ("string", "categorical", "boolean", "integer", "floating")
"""Kinds of columns, as pandas infers them, that may be part of a group's identity."""
MEASURES = {name for name, column in GLOSSARY.items() if column.dtype == "float32"}
MEASURES -= {"score", "singular_value", "norm"}  # columns of tokens, directions and weights

VERBS = {
    "W_in": "reads",
    "W_gate": "gates",
    "W_out": "writes",
    "W_Q": "queries",
    "W_K": "keys",
    "W_V": "values",
    "W_O": "writes",
    "W_OV": "moves",
    "W_QK": "attends",
}
"""What each weight does, in one word."""

CIRCUIT_WEIGHTS = {"ov": "W_OV", "qk": "W_QK"}
"""The weights of the circuits of `virtual_weights`; `direct` has none."""


class TableGroup(NamedTuple):
    """The rows of one neuron, head or direction for one of its weights, best first."""

    name: str
    weight: str
    rows: pd.DataFrame


def features_as_tokens(df: Any) -> Any:
    """A table in which features stand in the columns of tokens, for displays and plots; other tables are returned unchanged.

    The text of a feature is its label, or `#17` if that is its index.
    """
    columns = set(map(str, getattr(df, "columns", ())))
    for end in ("", "dest_", "src_"):
        names = [f"{end}feature_index", f"{end}feature_label"]
        if not columns.issuperset(names):
            continue
        index, labels = df[names[0]], df[names[1]].astype(object)
        labels = labels.mask(labels == index.astype(str), "#" + labels)
        features = {f"{end}token_index": index, f"{end}token_string": labels}
        is_token = index < 0
        values = {name: df[name].where(is_token, of) if name in columns else of for name, of in features.items()}
        entries = "tokens and features" if f"{end}token_index" in columns else "features"
        attrs, df = df.attrs, df.drop(columns=names).assign(**values)
        df.attrs = attrs | {"embspace_entries": entries}
    return df


def kind(df: Any) -> str:
    """What a table holds: one of `frames.KINDS`.

    The kind in `df.attrs` is returned if the table still has that kind's columns. Otherwise the kind is inferred from the
    columns, because pandas drops `attrs` in merges.

    Raises:
        EmbspaceError: If it is not a table of this package.
    """
    columns = {name.replace("feature_label", "token_string") for name in map(str, getattr(df, "columns", ()))}
    columns = {name.replace("feature_index", "token_index") for name in columns}
    stored = getattr(df, "attrs", {}).get("embspace_kind")
    if stored in REQUIRED and columns.issuperset(REQUIRED[stored]):
        return stored
    ours = columns <= set(GLOSSARY)
    for name, required in REQUIRED.items():
        if name == "alignment" and columns != set(required):
            continue  # a table of matched neurons also has these columns
        if columns.issuperset(required) and (ours or name in _WITH_OTHER_COLUMNS):
            return name
    if ours and columns & MEASURES:
        return "measurements"
    raise errors.not_a_table(list(map(str, getattr(df, "columns", ()))))


def check_kind(df: Any, caller: str, kinds: Sequence[str] = ("tokens", "pairs")) -> str:
    """The table's kind, which must be one that the caller accepts.

    Raises:
        EmbspaceError: If it is of another kind.
    """
    table_kind = kind(df)
    if table_kind not in kinds:
        accepted = [_MAKERS.get(name, name) for name in kinds]
        raise errors.wrong_kind(caller, accepted, _MAKERS.get(table_kind, table_kind))
    return table_kind


def check_columns(df: Any, table_kind: str, caller: str) -> None:
    """Check that a table has rows, and the columns of a kind.

    Raises:
        EmbspaceError: If a column is missing, or the table is empty.
    """
    missing = [name for name in REQUIRED[table_kind] if name not in getattr(df, "columns", ())]
    if missing:
        raise errors.missing_columns(caller, missing)
    if df.empty:
        raise errors.empty_table()


def key_columns(df: pd.DataFrame) -> list[str]:
    """The columns that identify a group: its component's keys, then those of `added_keys`."""
    names = [name for name in KEYS if name in df.columns]
    return [*names, *added_keys(df, names)]


def added_keys(df: pd.DataFrame, names: list[str]) -> list[str]:
    """Other columns that are part of a group's identity, such as `model` in the tables of two models put together.

    They are the columns of text outside the glossary with one value for each group, and, if a group has several rows of one
    rank, the columns that tell these rows apart.
    """
    content = {*KEYS, "rank", "token_rank", "score", *TOKEN, *PAIR}
    others = [str(name) for name in df.columns if name not in content and df.columns.is_unique]
    others = [name for name in others if not name.endswith(GIVEN)]  # values of the rows given to `lens.read`
    types = {name: pd.api.types.infer_dtype(df[name], skipna=True) for name in others}
    others = [name for name in others if types[name] in _HASHABLE]
    if not others or df.empty:
        return []

    def count(columns: list[str]) -> int:
        return len(df[columns].drop_duplicates()) if columns else 1

    n_groups = count(names)
    is_text = {name: name not in GLOSSARY and types[name] in ("string", "categorical", "boolean") for name in others}
    added = [name for name in others if is_text[name] and count([*names, name]) == n_groups]
    is_search = {"neuron", "head"} <= set(names)  # its rank is that of the component among others
    identity = [name for name in ("rank", TOKEN[0], PAIR[0], PAIR[2]) if name in df.columns and not is_search]
    n_rows = count([*names, *added, *identity[:1]])
    for name in sorted(set(others) - set(added), key=lambda name: (types[name] == "floating", others.index(name))):
        n_more = count([*names, *added, name, *identity[:1]])
        if n_more > n_rows and n_rows < len(df):
            added.append(name)
            n_rows = n_more
    return added


def group_numbers(df: pd.DataFrame, names: list[str]) -> np.ndarray:
    """For each row the number of its group, in the table's order; a rank that a group has already begins a further group."""
    if not names and "rank" not in df.columns:
        return np.zeros(len(df), dtype=int)
    options: Any = {"sort": False, "observed": True, "dropna": False}
    numbers = df.groupby(names, **options).ngroup().to_numpy() if names else np.zeros(len(df), dtype=int)
    if "rank" in df.columns and not {"neuron", "head"} <= set(names):
        repetition = df.groupby([*names, "rank"], **options).cumcount().to_numpy()
        if repetition.any():
            numbers, _ = pd.factorize(numbers * (int(repetition.max()) + 1) + repetition)
    return numbers


def name_of(row: Mapping[Any, Any]) -> str:
    """`L3N120`, `L3E2N120`, `L2H5`, `L2H5.17`, `F30`, or the name of a direction.

    Args:
        row: Columns and values of a row; −1 or NaN in a column leaves out its part.
    """

    def part(letter: str, column: str) -> str:
        index = row.get(column, -1)
        return f"{letter}{index}" if index == index and index >= 0 else ""

    if "direction" in row:
        return visible(str(row["direction"]))
    name = part("L", "layer") + part("E", "expert") + part("H", "head") + part(".", "subhead") + part("N", "neuron")
    return name + part("F", "factor")


def weight_of(row: Mapping[Any, Any]) -> str:
    """`W_out`; for a singular direction `W_OV 0 read`; for a virtual weight `W_OV`, or `direct`."""
    parts = [str(row[column]) for column in ("circuit", "weight", "component", "side") if column in row]
    return " ".join(CIRCUIT_WEIGHTS.get(part, part) for part in parts)


def noun_of(df: pd.DataFrame) -> str:
    """What a group of the table is, in one word; empty if all rows are one group."""
    columns = set(df.columns)
    if columns >= {"neuron", "head"}:
        return "component"
    nouns = {"neuron": "neuron", "subhead": "sub-head", "direction": "direction", "factor": "factor", "head": "head"}
    return next((noun for column, noun in nouns.items() if column in columns), "layer" if "layer" in columns else "")


def title_of(df: pd.DataFrame) -> str:
    """The title of a column of groups' names: `neuron`, or `neuron, model` if the table has keys that a user added."""
    names = [name for name in KEYS if name in df.columns]
    return ", ".join(part for part in (noun_of(df), *added_keys(df, names)) if part)


def count_groups(df: pd.DataFrame) -> int:
    """How many groups a table holds."""
    return int(group_numbers(df, key_columns(df)).max(initial=-1)) + 1


def first_groups(df: pd.DataFrame, n: int | None) -> pd.DataFrame:
    """The rows of a table's first n groups (all for None)."""
    return df if n is None else df.loc[group_numbers(df, key_columns(df)) < n]


def table_groups(df: pd.DataFrame, n: int | None = None) -> Iterator[TableGroup]:
    """The first n groups of a table (all for None), in the table's order, each with its rows, best first."""
    names = key_columns(df)
    numbers = group_numbers(df, names)
    if n is not None:
        df, numbers = df.loc[numbers < n], numbers[numbers < n]
    added = [name for name in names if name not in KEYS]
    order = np.lexsort((df["rank"].to_numpy(), numbers)) if "rank" in df.columns else np.argsort(numbers, kind="stable")
    rows = df.iloc[order]
    starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
    ends = [*starts[1:], len(rows)] if len(rows) else []
    keys_of_groups = rows.iloc[starts][names].to_dict("records")
    for start, end, keys in zip(starts, ends, keys_of_groups, strict=True):
        group = rows.iloc[start:end]
        name = ", ".join(part for part in (name_of(keys), *(visible(str(keys[column])) for column in added)) if part)
        yield TableGroup(name, weight_of(keys), group)


def holds_pairs(rows: pd.DataFrame) -> bool:
    """Whether the rows of one component hold pairs of tokens; a table of `lens.read` may hold tokens and pairs."""
    if not set(PAIR) <= set(rows.columns):
        return False
    return "token_index" not in rows.columns or bool((rows["token_index"] < 0).all())


def pair_ends(rows: pd.DataFrame) -> tuple[str, str]:
    """The two ends of a pair, in the order of the arrow: source → promoted for W_OV, query → key for W_QK."""
    first = {name: rows[name].iloc[0] for name in ("circuit", "weight") if name in rows.columns and len(rows)}
    query_first = "W_QK" in weight_of(first)
    return ("dest", "src") if query_first else ("src", "dest")


def in_glossary_order(columns: list[str]) -> list[str]:
    """Column names in the order of the package's tables; other names last."""
    order = {name: i for i, name in enumerate(GLOSSARY)}
    return sorted(columns, key=lambda name: order.get(name, len(order)))
