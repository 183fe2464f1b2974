"""Files are written completely or not at all."""

import pytest

from embspace_lens import EmbspaceError
from embspace_lens.files import read_json, whole, write_json, write_whole


def test_json_is_read_as_it_was_written(tmp_path):
    path = write_json(tmp_path / "a.json", {"b": [1, None, "c"]})
    assert read_json(path) == {"b": [1, None, "c"]}


def test_an_interrupted_write_changes_nothing(tmp_path):
    path = write_whole(tmp_path / "a", b"before")
    with pytest.raises(KeyboardInterrupt), whole(path) as partial:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_unwritable_and_unreadable_paths_raise(tmp_path):
    with pytest.raises(EmbspaceError, match=r"is a folder\. Name a file\.$"):
        write_whole(tmp_path, b"")
    with pytest.raises(EmbspaceError, match=r"cannot be written: .*no is not a folder\. Create it first\.$"):
        write_whole(tmp_path / "no" / "a", b"")
    (tmp_path / "b.json").write_text("{")
    for name in ("a.json", "b.json"):
        with pytest.raises(EmbspaceError, match="cannot be read: "):
            read_json(tmp_path / name)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("before")
    monkeypatch.setattr(
        "pathlib.Path.replace", lambda self, target: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(EmbspaceError, match=r"cannot be written: No space left. Nothing was changed"):
        write_whole(path, b"after")
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1
    monkeypatch.undo()
    assert write_whole(path, b"after").read_bytes() == b"after"
    with pytest.raises(EmbspaceError, match=r"is a folder. Name a file"):
        write_whole(tmp_path, b"")
    with pytest.raises(EmbspaceError, match=r"is not a folder. Create it first"):
        write_whole(tmp_path / "no" / "a.txt", b"")
