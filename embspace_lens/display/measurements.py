"""Tables of measurements, which hold numbers rather than tokens, as cells to be read."""

import pandas as pd

from ..tables.columns import GLOSSARY


def measure(value: float) -> str:
    """A measured number to three significant figures: 0.0152, 1, 4.2e-05."""
    return "n/a" if value != value else f"{value:.3g}".replace("-", "−")


def n_numeric(df: pd.DataFrame) -> int:
    """How many of the last columns hold numbers."""
    numeric = [pd.api.types.is_numeric_dtype(dtype) for dtype in df.dtypes]
    return len(numeric) if all(numeric) else numeric[::-1].index(False)


def cells(df: pd.DataFrame, n: int | None = None) -> list[list[str]]:
    """The first n rows of a table as texts, numbers to three significant figures."""
    columns = [
        [measure(float(value)) if GLOSSARY[name].dtype == "float32" else str(value) for value in df[name].iloc[:n]]
        for name in df.columns
    ]
    return [list(row) for row in zip(*columns, strict=True)]
