"""Atomic files: written completely or not at all. Pipes, devices and standard output are written into."""

import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import errors


def expand(path: str | os.PathLike[str]) -> Path:
    """The path with `~` replaced by the home folder.

    Raises:
        EmbspaceError: If there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as reason:
        raise errors.no_home(path) from reason


def refuse_unwritable(path: str | os.PathLike[str]) -> Path:
    """The path with `~` expanded; for a check before a long computation whose result is to be written there.

    Raises:
        EmbspaceError: If the path is a folder, or its folder does not exist.
    """
    path = expand(path)
    if path.is_dir():
        raise errors.is_folder(path)
    if not path.parent.is_dir():
        raise errors.no_folder(path, path.parent)
    return path


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path, whose file becomes the file `path` when the `with` block ends without an error.

    A link stays a link; its target is replaced. What is not a regular file (a pipe, a device, standard output) stays what
    it is, and the bytes are written into it.

    Raises:
        EmbspaceError: If the file cannot be written; an existing file is then unchanged.
    """
    path = refuse_unwritable(path)
    try:
        if _is_stream(path):
            with tempfile.TemporaryDirectory() as folder:
                partial = Path(folder) / "data"
                yield partial
                _write_into(path, partial)
            return
        target = Path(os.path.realpath(path))
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        try:
            yield partial
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as reason:
        raise errors.not_written(path, reason.strerror or reason) from reason


def _is_stream(path: Path) -> bool:
    """Whether bytes are written into a path: it leads to a pipe, a device, or an open file of this process."""
    return _descriptor(path) is not None or (path.exists() and not path.is_file())


def _descriptor(path: Path) -> int | None:
    """The number of the open file that a path leads to, such as 1 for /dev/stdout; None for any other path."""
    for _ in range(40):  # the limit of Linux for links that lead to links
        folder = os.path.realpath(path.parent)
        if folder in ("/dev/fd", f"/proc/{os.getpid()}/fd"):
            return int(path.name) if path.name.isdigit() else None
        path = Path(folder) / path.name
        if not path.is_symlink():
            break
        path = path.parent / path.readlink()
    return None


def _write_into(path: Path, source: Path) -> None:
    """Write the bytes of a file into a pipe, a device or an open file of this process.

    An open file is written through a copy of its descriptor: opened again by name, a file that the shell opened would be
    truncated, and later output would overwrite it.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    descriptor = _descriptor(path)
    with (
        source.open("rb") as data,
        open(path if descriptor is None else os.dup(descriptor), "wb") as target,
    ):
        shutil.copyfileobj(data, target)


def write_whole(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write a file completely or not at all (see `whole`), and return its path."""
    path = refuse_unwritable(path)
    with whole(path) as partial:
        partial.write_bytes(data)
    return path


def write_json(path: str | os.PathLike[str], data: Any) -> Path:
    """Write JSON completely or not at all, and return its path."""
    return write_whole(path, (json.dumps(data, indent=1) + "\n").encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read JSON, with or without a byte-order mark.

    Raises:
        EmbspaceError: If the file does not exist, or is damaged.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except RecursionError as reason:
        raise errors.not_readable(path, "its lists are nested too deeply") from reason
    except (OSError, ValueError) as reason:
        raise errors.not_readable(path, reason) from reason


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """The path of a folder, which is created if needed.

    Raises:
        EmbspaceError: If it cannot be created.
    """
    path = expand(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise errors.folder_not_made(path, reason.strerror or reason) from reason
    return path
