"""Files are written completely or not at all."""

import os
import stat
import subprocess
import sys
import threading

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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names on this system")
def test_pipes_are_written_into(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    received = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_bytes()), daemon=True)
    reader.start()
    write_whole(tmp_path / "pipe", b"data")
    reader.join(timeout=10)
    assert received == [b"data"] and (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 1


def make_device(path, minor):
    """A character device in the test's folder: 3 is the null device, 7 the full one. Tests never name a device of the system,
    because a defect would replace it by a file if the tests run as root.
    """
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, minor))
        path.open("wb").close()
    except (AttributeError, OSError):
        pytest.skip("devices cannot be made here")


def test_devices_are_written_into(tmp_path):
    make_device(tmp_path / "null", 3)
    (tmp_path / "link").symlink_to("null")
    for name in ("null", "link"):
        write_whole(tmp_path / name, b"data")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "null").is_char_device()


@pytest.mark.parametrize("target", ["there", "absent"])
def test_links_stay_links(tmp_path, target):
    (tmp_path / "there").write_text("before")
    (tmp_path / "link").symlink_to(target)
    write_whole(tmp_path / "link", b"after")
    assert (tmp_path / "link").is_symlink() and (tmp_path / target).read_text() == "after"


@pytest.mark.skipif(not os.path.exists("/proc/self/fd/1"), reason="no /proc on this system")
def test_standard_output_is_written_in_order(tmp_path):
    code = f"""
from pathlib import Path
from embspace_lens.files import _descriptor, write_whole
print("first")
write_whole("/proc/self/fd/1", b"second\\n")
write_whole({str(tmp_path / "link")!r}, b"third\\n")
print("fourth", _descriptor(Path("/dev/stdout")))
"""
    (tmp_path / "link").symlink_to("/proc/self/fd/1")
    command = [sys.executable, "-c", code]
    piped = subprocess.run(command, capture_output=True, check=True).stdout
    with open(tmp_path / "file", "wb") as file:
        file.write(b"zeroth\n")
        file.flush()
        subprocess.run(command, stdout=file, check=True)
    assert piped == b"first\nsecond\nthird\nfourth 1\n"
    assert (tmp_path / "file").read_bytes() == b"zeroth\n" + piped


def test_a_full_device_raises(tmp_path):
    make_device(tmp_path / "full", 7)
    with pytest.raises(EmbspaceError, match="full cannot be written: No space left on device"):
        write_whole(tmp_path / "full", b"data")


def test_homes_of_unknown_users_raise():
    with pytest.raises(EmbspaceError, match="names the home folder of a user who does not exist"):
        write_whole("~nobody-at-all/file", b"data")


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"é": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == {"é": 1}
