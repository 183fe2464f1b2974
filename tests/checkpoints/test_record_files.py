"""Files of records: keys change with each file on which a record depends; damaged and missing records are None."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from embspace_lens.checkpoints import record_files
from embspace_lens.checkpoints.record_files import read_record, record_key, write_record

KEY = "0" * 64
RECORD = {"a": [1, None, "\udc80 ü"], "b": {"c": 0.5}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "merges.txt", "tokenizer.model"):
        (folder / name).write_text("{}")
    save_file({"x": torch.zeros(3)}, folder / "model.safetensors")
    return folder


def record_file() -> Path:
    return Path(os.environ["EMBSPACE_LENS_CACHE"]) / "records" / KEY


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "merges.txt", "tokenizer.model", "added_tokens.json"]
)
def test_the_content_of_configurations_and_tokenizers_is_part_of_the_key(folder, name):
    key = record_key([folder], ["name"])
    assert record_key([folder], ["name"]) == key
    os.utime(folder / "config.json", (1, 1))
    assert record_key([folder], ["name"]) == key, "the time of a change is not"
    (folder / name).write_text("[]")
    os.utime(folder / name, (1, 1))
    assert record_key([folder], ["name"]) != key


def test_headers_and_times_of_weights_are_part_of_the_key(folder):
    keys = {record_key([folder], ["name"])}
    os.utime(folder / "model.safetensors", (1, 1))
    keys.add(record_key([folder], ["name"]))
    for tensors in ({"y": torch.zeros(3)}, {"y": torch.zeros(3, dtype=torch.int32)}):  # of the same size
        save_file(tensors, folder / "model.safetensors")
        os.utime(folder / "model.safetensors", (1, 1))
        keys.add(record_key([folder], ["name"]))
    assert len(keys) == 4


def test_facts_and_the_order_of_folders_are_part_of_the_key(folder, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    folders = [folder, tmp_path / "tokenizer"]
    keys = [record_key(folders, ["a"]), record_key(folders[::-1], ["a"]), record_key(folders, ["b"])]
    assert len({*keys, record_key([folder], ["a"])}) == 4


def test_records_are_read_as_they_were_written():
    assert read_record(KEY) is None
    write_record(KEY, RECORD)
    assert read_record(KEY) == RECORD


@pytest.mark.parametrize("keep", [0, 10, 64, 65, 70, -1])
def test_truncated_records_are_not_read(keep):
    write_record(KEY, RECORD)
    record_file().write_bytes(record_file().read_bytes()[:keep])
    assert read_record(KEY) is None


def test_changed_records_are_not_read():
    write_record(KEY, RECORD)
    content = record_file().read_bytes()
    for changed in (content.replace(b"0.5", b"0.6"), b"\xff" * 80, b"null", content.replace(b"\n", b"")):
        record_file().write_bytes(changed)
        assert read_record(KEY) is None


def test_folders_that_cannot_be_written_raise_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("EMBSPACE_LENS_CACHE", str(tmp_path / "file"))
    write_record(KEY, RECORD)
    assert read_record(KEY) is None


def test_records_used_longest_ago_are_removed(monkeypatch):
    monkeypatch.setattr(record_files, "MAX_RECORDS", 3)
    keys = [digit * 64 for digit in "abc"]
    for i, key in enumerate(keys):
        write_record(key, i)
        os.utime(record_file().with_name(key), (i, i))
    assert read_record(keys[0]) == 0  # now the most recently used one
    write_record(KEY, RECORD)
    assert [read_record(key) for key in keys] == [0, None, 2] and read_record(KEY) == RECORD


def test_processes_that_write_the_same_record_leave_a_whole_one():
    code = (
        "from embspace_lens.checkpoints.record_files import write_record\n"
        f"for i in range(40): write_record({KEY!r}, list(range(20_000)))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    expected, seen = list(range(20_000)), []
    while any(writer.poll() is None for writer in writers):
        seen.append(read_record(KEY))
    assert all(writer.returncode == 0 for writer in writers)
    assert read_record(KEY) == expected
    whole = [record == expected for record in seen]
    assert whole == sorted(whole), "once there is a record, it is always whole"
    assert [path.name for path in record_file().parent.iterdir()] == [KEY]
