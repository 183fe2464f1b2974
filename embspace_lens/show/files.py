"""Files written whole or not at all."""

import os
import secrets
from pathlib import Path

from ..errors import EmbspaceError


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


def write_whole(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write a file under a temporary name in its folder, then give it its own.

    Raises:
        EmbspaceError: If it cannot be written; what was there is then as it was.
    """
    path = refuse_unwritable(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        try:
            partial.write_bytes(data)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as reason:
        raise EmbspaceError(f"{path} cannot be written: {reason.strerror or reason}. Nothing was changed.") from reason
    return path
