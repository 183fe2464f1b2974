"""The rules of tidy tables, checked by one helper for every public function and every option."""

import numpy as np
import pandas as pd

from embspace_lens.tables.columns import GLOSSARY


def check_tidy(frame: pd.DataFrame, grain: list[str], columns: list[str]) -> None:
    """A plain frame; declared columns, order and dtypes; the grain identifies a row and orders the table."""
    assert type(frame) is pd.DataFrame
    assert isinstance(frame.index, pd.RangeIndex) and frame.index.start == 0 and frame.index.step == 1
    assert frame.columns.tolist() == columns
    assert columns == [name for name in GLOSSARY if name in columns], "columns in the glossary's order"
    for name in columns:
        declared, dtype = GLOSSARY[name].dtype, frame[name].dtype
        if declared == "category":
            assert isinstance(dtype, pd.CategoricalDtype)
            assert frame[name].notna().all()
        elif declared == "str":
            assert pd.api.types.is_string_dtype(dtype)
            assert all(type(cell) is str for cell in frame[name])
        else:
            assert dtype == np.dtype(declared)
    assert not frame.duplicated(grain).any(), "the grain identifies a row"
    in_order = frame.sort_values(grain, kind="stable").index
    assert in_order.equals(frame.index) or (in_order == frame.index).all(), "sorted by grain"
