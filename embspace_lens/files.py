"""Files written whole or not at all."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import EmbspaceError


def refuse_unwritable(path: str | os.PathLike[str]) -> Path:
    """Say early that a path cannot be written, before the work that would be lost.

    Raises:
        EmbspaceError: If it is a folder, or lies in none.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise EmbspaceError(f"{path} is a folder. Name a file.")
    if not path.parent.is_dir():
        raise EmbspaceError(f"{path} cannot be written: {path.parent} is not a folder. Make it first.")
    return path


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name in the file's folder; it becomes the file's own when the block ends well.

    Raises:
        EmbspaceError: If it cannot be written; what was there is then as it was.
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
        raise EmbspaceError(f"{path} cannot be written: {reason.strerror or reason}. Nothing was changed.") from reason


def write_whole(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write a file whole or not at all (see `whole`)."""
    with whole(path) as partial:
        partial.write_bytes(data)
    return refuse_unwritable(path)


def write_json(path: str | os.PathLike[str], data: Any) -> Path:
    """Write JSON whole or not at all."""
    return write_whole(path, (json.dumps(data, indent=1) + "\n").encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read JSON.

    Raises:
        EmbspaceError: If there is no such file, or it is damaged.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise EmbspaceError(f"{path} cannot be read: {reason}.") from reason
