"""Texts are read from every file format."""

import pandas as pd
import pytest

from embspace_lens import EmbspaceError
from embspace_lens.forward.texts import read_labelled, read_texts, texts_of


@pytest.mark.parametrize("suffix", ["txt", "parquet", "jsonl", "jsonl.bz2", "csv"])
def test_texts_are_read_from_every_file_format(tmp_path, suffix):
    path = tmp_path / f"reviews.{suffix}"
    frame = pd.DataFrame({"text": ["one two", "three", "  "], "split": ["train", "test", "train"]})
    if suffix == "txt":
        path.write_text("one two\n\nthree\n \n  \n")
    elif suffix == "parquet":
        frame.to_parquet(path)
    elif suffix == "csv":
        frame.to_csv(path)
    else:
        frame.to_json(path, orient="records", lines=True)
    assert read_texts(path) == ["one two", "three"]
    if suffix != "txt":
        assert read_texts(path, where="split == 'test'") == ["three"]
        with pytest.raises(EmbspaceError, match="has no column 'body'. Its columns are"):
            read_texts(path, column="body")
        with pytest.raises(EmbspaceError, match="holds no text where split == 'dev'"):
            read_texts(path, where="split == 'dev'")
    else:
        with pytest.raises(EmbspaceError, match="needs a table"):
            read_texts(path, where="split == 'test'")
    with pytest.raises(EmbspaceError, match="is not a file"):
        read_texts(tmp_path / "nothing.txt")


def test_rows_without_text_or_label_are_left_out(tmp_path):
    path = tmp_path / "reviews.csv"
    frame = pd.DataFrame({"text": ["one", "two", None, " ", "five"], "label": ["a", None, "a", "b", "b"]})
    frame.to_csv(path)
    assert read_labelled(path) == (["one", "five"], ["a", "b"])
    with pytest.raises(EmbspaceError, match="holds only 'a' where label == 'a'; two classes are needed."):
        read_labelled(path, where="label == 'a'")
    with pytest.raises(EmbspaceError, match="is not a table"):
        read_labelled(tmp_path / "reviews.txt")
    with pytest.raises(EmbspaceError, match="where='label =' is not a condition"):
        read_texts(path, where="label =")


def test_damaged_tables_raise_an_error(tmp_path):
    path = tmp_path / "reviews.parquet"
    path.write_bytes(b"no parquet")
    with pytest.raises(EmbspaceError, match="It is damaged, or its name has the wrong ending"):
        read_texts(path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("one\ntext", "texts is one string"),
        (None, "texts=None holds no texts"),
        (pd.DataFrame({"review": ["one"]}), "The table has no column 'text'. Its columns are 'review'."),
    ],
)
def test_sources_without_texts_raise_an_error(source, message):
    with pytest.raises(EmbspaceError, match=message):
        texts_of(source)
