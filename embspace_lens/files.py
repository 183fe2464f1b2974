"""Atomic files: written completely or not at all."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import errors


def refuse_unwritable(path: str | os.PathLike[str]) -> Path:
    """The path with `~` expanded; for a check before a long computation whose result is to be written there.

    Raises:
        EmbspaceError: If the path is a folder, or its folder does not exist.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise errors.is_folder(path)
    if not path.parent.is_dir():
        raise errors.no_folder(path, path.parent)
    return path


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and rename that file to `path` when the `with` block ends without an error.

    Raises:
        EmbspaceError: If the file cannot be written; an existing file is then unchanged.
    """
    path = refuse_unwritable(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as reason:
        raise errors.not_written(path, reason.strerror or reason) from reason


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
    """Read JSON.

    Raises:
        EmbspaceError: If the file does not exist, or is damaged.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise errors.not_readable(path, reason) from reason


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """The path of a folder, which is created if needed.

    Raises:
        EmbspaceError: If it cannot be created.
    """
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise errors.folder_not_made(path, reason.strerror or reason) from reason
    return path
