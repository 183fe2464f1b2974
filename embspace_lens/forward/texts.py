"""Texts, from files and from whatever else holds them."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import EmbspaceError

TABLES = {".parquet", ".jsonl", ".csv"}


def read_texts(path: str | Path, *, column: str = "text", where: str | None = None) -> list[str]:
    """Read the texts of a file: one per row of a Parquet, JSON-lines or CSV column, or one per blank-line-separated block of a text file.

    Args:
        path: `.parquet`, `.jsonl` or `.csv` (the last two also compressed), or any other file as UTF-8 text.
        column: The column that holds the text.
        where: A condition on the rows in the words of `pandas.DataFrame.query`, such as `"split != 'test'"`.

    Returns:
        The texts, in the order of the file, empty ones left out.

    Raises:
        EmbspaceError: If the file does not exist, is damaged, has no such column, or holds no text; or `where` is no condition.
    """
    path = Path(path)
    if set(path.suffixes) & TABLES:
        frame = read_table(path, [column], where)
        texts = frame[column].dropna().astype(str).tolist()
    else:
        _refuse_missing(path)
        if where is not None:
            raise EmbspaceError(f"where={where!r} needs a table, and {path} is a text file. Leave it out.")
        try:
            texts = re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as reason:
            raise EmbspaceError(f"{path} cannot be read as text in UTF-8: {reason}.") from reason
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise EmbspaceError(f"{path} holds no text" + (f" where {where}." if where else "."))
    return texts


def read_labelled(
    path: str | Path, *, column: str = "text", label: str = "label", where: str | None = None
) -> tuple[list[str], list[str]]:
    """Read the texts of a table and their classes, as `read_texts` does; rows without either are left out.

    Raises:
        EmbspaceError: If the file is no table, has no such column, or holds fewer than two classes.
    """
    path = Path(path)
    if not set(path.suffixes) & TABLES:
        raise EmbspaceError(f"{path} is not a table. Labelled texts come from Parquet, JSON lines or CSV.")
    frame = read_table(path, [column, label], where).dropna(subset=[column, label])
    frame = frame[frame[column].astype(str).str.strip() != ""]
    classes = frame[label].astype(str).tolist()
    if len(set(classes)) < 2:
        found = f"only {classes[0]!r}" if classes else "no labelled text"
        raise EmbspaceError(
            f"{path} holds {found}" + (f" where {where}" if where else "") + "; two classes are needed."
        )
    return frame[column].astype(str).tolist(), classes


def _refuse_missing(path: Path) -> None:
    if not path.is_file():
        raise EmbspaceError(f"{path} is not a file. Name a text file, or a table with a column of texts.")


def read_table(path: Path, columns: list[str], where: str | None = None) -> pd.DataFrame:
    """Read a table that has the columns, and of it the rows that `where` names.

    Raises:
        EmbspaceError: If there is no such file, it is damaged or lacks a column, or `where` is no condition on its rows.
    """
    _refuse_missing(path)
    try:
        if ".parquet" in path.suffixes:
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path) if ".csv" in path.suffixes else pd.read_json(path, lines=True)
    except (OSError, EOFError, ValueError) as reason:  # pandas's and arrow's own errors are among them
        raise EmbspaceError(f"{path} cannot be read ({reason}). It is damaged, or not what its name says.") from reason
    for column in columns:
        if column not in frame.columns:
            raise EmbspaceError(
                f"{path} has no column {column!r}; its columns are {', '.join(map(repr, frame.columns))}."
            )
    if not where:
        return frame
    try:
        return frame.query(where)
    except (SyntaxError, ValueError, TypeError, AttributeError, KeyError, NameError) as reason:
        raise EmbspaceError(
            f"where={where!r} is not a condition on the rows of {path}: {reason}. Write it as in \"split == 'test'\"."
        ) from reason


def texts_of(source: Any, *, column: str = "text", where: str | None = None) -> Iterable[str]:
    """Texts from what a user has: a list, any iterable, a dataframe, a Hugging Face dataset, or a file.

    Args:
        source: Texts; a dataframe; a `datasets.Dataset`, of which `column` is read as it is needed; or the path of a file for `read_texts`.
        column: The column of a table or of a dataset.
        where: As for `read_texts`; for files alone.

    Raises:
        EmbspaceError: If there is no such file or column.
    """
    if isinstance(source, str | Path):
        if isinstance(source, str) and (len(source) > 4096 or "\n" in source):
            raise EmbspaceError("texts is one string; give a sequence of texts, [text] for a single one.")
        return read_texts(source, column=column, where=where)
    if isinstance(source, pd.DataFrame):
        if column not in source.columns:
            raise EmbspaceError(
                f"The table has no column {column!r}; its columns are {', '.join(map(repr, source.columns))}."
            )
        return source[column].tolist()
    names = getattr(source, "column_names", None)
    if names is None:
        if not isinstance(source, Iterable):
            raise EmbspaceError(f"texts={source!r} holds no texts; give a list of them, or the path of a file.")
        return source
    if column not in names:
        raise EmbspaceError(f"The dataset has no column {column!r}; its columns are {', '.join(map(repr, names))}.")
    return _Column(source, column)


class _Column:
    """One column of a dataset, a row at a time and as often as is wanted."""

    def __init__(self, dataset: Any, column: str) -> None:
        self.dataset, self.column = dataset, column

    def __iter__(self) -> Any:
        return (row[self.column] for row in self.dataset)

    def __len__(self) -> int:
        return len(self.dataset)
