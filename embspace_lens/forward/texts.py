"""Texts from files, tables, datasets and lists."""

import re
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd

from .. import errors

TABLES = {".parquet", ".jsonl", ".csv"}
LONGEST_PATH = 4096  # a longer string is a text

TextSource = Any
"""A list or any iterable of texts, a dataframe, a Hugging Face dataset, or the path of a file."""


def read_texts(path: str | PathLike[str], *, column: str = "text", where: str | None = None) -> list[str]:
    r"""Read the texts of a file: the rows of a table's column, or the paragraphs of a text file (separated by blank lines).

    Args:
        path: A `.parquet`, `.jsonl` or `.csv` table (the last two may be compressed), or any other file in UTF-8.
        column: The column that holds the texts.
        where: A condition on the rows in the syntax of `pandas.DataFrame.query`, such as `"split != 'test'"`.

    Returns:
        The texts in the order of the file, without empty ones.

    Raises:
        EmbspaceError: If the file does not exist, is damaged, lacks the column or has no text; or `where` is not a condition.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "two.txt")
        ...     _ = path.write_text("One text.\n\nAnother text.", encoding="utf-8")
        ...     read_texts(path)
        ['One text.', 'Another text.']
    """
    path = Path(path)
    if _is_table(path):
        texts = read_table(path, [column], where)[column].dropna().astype(str).tolist()
    else:
        _check_file(path)
        if where is not None:
            raise errors.where_without_table(where, path)
        try:
            texts = re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as reason:
            raise errors.not_utf8(path, reason) from reason
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise errors.no_text(path, where)
    return texts


def read_labelled(
    path: str | PathLike[str], *, column: str = "text", label: str = "label", where: str | None = None
) -> tuple[list[str], list[str]]:
    r"""Read the texts of a table and their classes, as `read_texts` does, without rows that lack a text or a class.

    Args:
        path: A table, as in `read_texts`.
        column: The column that holds the texts.
        label: The column that holds the classes.
        where: As in `read_texts`.

    Returns:
        The texts, and the class of each text.

    Raises:
        EmbspaceError: If the file is not a table, lacks a column, or has fewer than two classes.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "two.csv")
        ...     _ = path.write_text("text,label\nGood.,positive\nBad.,negative\n", encoding="utf-8")
        ...     read_labelled(path)
        (['Good.', 'Bad.'], ['positive', 'negative'])
    """
    path = Path(path)
    if not _is_table(path):
        raise errors.labels_without_table(path)
    frame = read_table(path, [column, label], where).dropna(subset=[column, label])
    frame = frame[frame[column].astype(str).str.strip() != ""]
    classes = frame[label].astype(str).tolist()
    if len(set(classes)) < 2:
        raise errors.too_few_classes(path, classes[0] if classes else None, where)
    return frame[column].astype(str).tolist(), classes


def read_table(path: Path, columns: list[str], where: str | None = None) -> pd.DataFrame:
    """Read the rows of a table for which the condition `where` holds.

    Raises:
        EmbspaceError: If the file does not exist, is damaged or lacks a column, or `where` is not a condition on its rows.
    """
    _check_file(path)
    try:
        if ".parquet" in path.suffixes:
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path) if ".csv" in path.suffixes else pd.read_json(path, lines=True)
    except (OSError, EOFError, ValueError) as reason:  # base classes of the errors of pandas and pyarrow
        raise errors.damaged_table(path, reason) from reason
    for column in columns:
        if column not in frame.columns:
            raise errors.missing_column(str(path), column, frame.columns)
    if not where:
        return frame
    try:
        return frame.query(where)
    except (SyntaxError, ValueError, TypeError, AttributeError, KeyError, NameError) as reason:
        raise errors.bad_condition(where, path, reason) from reason


def texts_of(source: TextSource, *, column: str = "text", where: str | None = None) -> Iterable[str]:
    """The texts of a list, any iterable, a dataframe, a Hugging Face dataset, or a file.

    Args:
        source: Texts; a dataframe; a `datasets.Dataset`, which is read row by row; or a path for `read_texts`.
        column: The column that holds the texts, for a table or dataset.
        where: A condition on the rows of a file, as in `read_texts`.

    Raises:
        EmbspaceError: If there is no such file or column, or `source` is one string or has no texts.
    """
    if isinstance(source, str | Path):
        if isinstance(source, str) and (len(source) > LONGEST_PATH or "\n" in source):
            raise errors.single_text()
        return read_texts(source, column=column, where=where)
    if isinstance(source, pd.DataFrame):
        if column not in source.columns:
            raise errors.missing_column("The table", column, source.columns)
        return source[column].tolist()
    names = getattr(source, "column_names", None)
    if names is None:
        if not isinstance(source, Iterable):
            raise errors.no_texts(source)
        return source
    if column not in names:
        raise errors.missing_column("The dataset", column, names)
    return _Column(source, column)


class _Column:
    """One column of a dataset, which is read row by row in every iteration."""

    def __init__(self, dataset: Any, column: str) -> None:
        self.dataset, self.column = dataset, column

    def __iter__(self) -> Iterator[str]:
        return (row[self.column] for row in self.dataset)

    def __len__(self) -> int:
        return len(self.dataset)


def _is_table(path: Path) -> bool:
    return bool(set(path.suffixes) & TABLES)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise errors.not_a_file(path)
