"""The components in the rows of a table: neurons, heads, sub-heads and directions."""

from typing import Any, Literal, NamedTuple

import pandas as pd

from .. import errors
from ..tables.columns import GLOSSARY
from ..tables.frames import tidy
from ..tables.selection import weight_names
from ..weights.experts import NO_EXPERT
from ..weights.parameter_names import ATTENTION

KEYS = ("factor", "layer", "expert", "head", "neuron", "subhead", "weight", "direction")
NOT_APPLICABLE = -1  # an integer key that a component does not have

Kind = Literal["neuron", "head", "subhead", "direction", "feature"]


class Component(NamedTuple):
    """One neuron, head, sub-head, direction or feature; −1 and "" for keys that do not apply."""

    kind: Kind
    layer: int
    expert: int = NO_EXPERT
    head: int = NOT_APPLICABLE
    neuron: int = NOT_APPLICABLE
    subhead: int = NOT_APPLICABLE
    weight: str = ""
    direction: str | int = ""
    feature: int = NOT_APPLICABLE


def table_keys(df: Any, *, of_features: bool = False) -> pd.DataFrame:
    """The keys of a table's components, one row per distinct combination, sorted.

    Args:
        df: The table.
        of_features: Whether the components are the features in its rows, by `feature_index`.

    Raises:
        EmbspaceError: If `df` is not a table, or names no components.
    """
    if not isinstance(df, pd.DataFrame):
        raise errors.not_table("df", df, "lens.neurons(layer=0)")
    if of_features:
        return _feature_keys(df)
    if "component" in df:
        raise errors.singular_directions_given()
    if "layer" not in df or not {"neuron", "head", "direction", "factor"} & set(df.columns):
        raise errors.no_component_columns(df.columns)
    columns = [name for name in KEYS if name in df.columns]
    distinct = df[columns].drop_duplicates()
    for name in columns:
        if GLOSSARY[name].dtype == "int64":
            _check_whole_numbers(name, distinct[name])
    keys = tidy(columns, [{name: distinct[name].tolist() for name in columns}] if len(distinct) else [])
    return keys.sort_values(columns, kind="stable", ignore_index=True)


def _feature_keys(df: pd.DataFrame) -> pd.DataFrame:
    """The distinct features in a table's rows."""
    if "feature_index" in df:
        _check_whole_numbers("feature_index", df["feature_index"])
        features = sorted({int(i) for i in df["feature_index"] if i >= 0})
        if features:
            return tidy(["feature_index"], [{"feature_index": features}])
    raise errors.no_features_in_table(df.columns)


def _check_whole_numbers(name: str, column: Any) -> None:
    """Raise if a key is not a whole number: a missing key (NaN) would become the key of another component."""
    numbers: Any = pd.to_numeric(column, errors="coerce")
    invalid = (numbers % 1 != 0).to_numpy().nonzero()[0]
    if len(invalid):
        raise errors.not_whole_number(name, column.tolist()[invalid[0]], column.index[invalid[0]])


def parse_components(keys: pd.DataFrame) -> list[Component]:
    """The component of each row of keys. Only sub-heads depend on the row's weight.

    Raises:
        EmbspaceError: If a row names no component, or a sub-head's weight is unknown.
    """
    return [_parse_row(row) for row in keys.to_dict("records")]


def _parse_row(row: dict[Any, Any]) -> Component:
    if "feature_index" in row:
        return Component("feature", NOT_APPLICABLE, feature=row["feature_index"])
    layer = row["layer"]
    expert, head, neuron, subhead = (row.get(name, NOT_APPLICABLE) for name in ("expert", "head", "neuron", "subhead"))
    for name in ("direction", "factor"):
        if name in row:
            return Component("direction", layer, direction=row[name])
    if neuron >= 0:
        return Component("neuron", layer, expert=expert, neuron=neuron)
    if head >= 0 and subhead >= 0:
        (weight,) = weight_names(row.get("weight", ""), ATTENTION)
        return Component("subhead", layer, head=head, subhead=subhead, weight=weight)
    if head >= 0:
        return Component("head", layer, head=head)
    raise errors.row_without_component(layer)
