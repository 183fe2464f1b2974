"""Files of texts that are damaged, and conditions that are not valid, are refused."""

import bz2
import re

import pandas as pd
import pytest

from embspace_lens import EmbspaceError
from embspace_lens.forward.texts import read_texts


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.parquet", b"PAR1 and then nothing"),
        ("b.parquet", b""),
        ("a.jsonl", b'{"text": "one"}\n{"te'),
        ("a.csv", b""),
        ("b.csv", b"\xff\xfe\x00text\n"),
        ("c.csv", b'text\n"not closed'),
        ("d.csv.gz", b"not gzip"),
        ("e.jsonl.bz2", bz2.compress(b'{"text": "one"}\n' * 99)[:-20]),
        ("a.txt", b"\xff\xfe\x00\x80"),
    ],
)
def test_damaged_files_of_texts_are_refused(name, data, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(EmbspaceError, match=re.escape(name) + " cannot be read"):
        read_texts(tmp_path / name)


@pytest.mark.parametrize("where", ["nope > 3", "n >", "n + 1", "n.nope()", "@x > 1"])
def test_invalid_condition_on_rows_is_refused(where, tmp_path):
    pd.DataFrame({"text": ["a", "b"], "n": [1, 2]}).to_csv(tmp_path / "t.csv")
    assert read_texts(tmp_path / "t.csv", where="n > 1") == ["b"]
    with pytest.raises(EmbspaceError, match="is not a condition on the rows"):
        read_texts(tmp_path / "t.csv", where=where)
