"""Tables of measurements as cells of text."""

from typing import Any

import pandas as pd

from .tokens import display, visible


def format_measure(value: float) -> str:
    """A measured number to three significant figures: 0.0152, 1, 4.2e−05; n/a for NaN."""
    return "n/a" if value != value else f"{value:.3g}".replace("-", "−")


def n_numeric_at_end(df: pd.DataFrame) -> int:
    """The number of columns after the last column of text."""
    is_numeric = [pd.api.types.is_numeric_dtype(dtype) for dtype in df.dtypes]
    return len(is_numeric) if all(is_numeric) else is_numeric[::-1].index(False)


def text_cells(df: pd.DataFrame, n: int | None = None) -> list[list[str]]:
    """The first n rows (all for None) as text: numbers to three significant figures, tokens and strings made visible."""
    columns = [_column_cells(name, df[name].iloc[:n]) for name in map(str, df.columns)]
    return [list(row) for row in zip(*columns, strict=True)]


def _column_cells(name: str, values: Any) -> list[str]:
    if pd.api.types.is_float_dtype(values.dtype):
        return list(map(format_measure, values))
    shown = display if name.endswith("token_string") else visible
    return [shown(str(value)) for value in values]
