"""Files are written completely or not at all."""

import pytest

from embspace_lens import EmbspaceError
from embspace_lens.files import write_whole


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
    with pytest.raises(EmbspaceError, match=r"is not a folder. Make it first"):
        write_whole(tmp_path / "no" / "a.txt", b"")
