"""Files of records: what was learned about a checkpoint when its model was booted, for the next process."""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import errors
from ..files import make_folder, write_whole
from .range_cache import user_cache
from .safetensors_header import LARGEST_HEADER, LENGTH_BYTES

MAX_RECORDS = 32
CONTENT_ENDINGS = (".json", ".txt", ".model", ".jinja", ".codes", ".spm", ".py")
"""The endings of configurations, tokenizers and code, whose whole content is part of a key."""


def record_key(folders: Iterable[Path], facts: Iterable[Any]) -> str:
    """The key of a record: another one if any file of the folders changes, or any of the facts.

    Of a safetensors file, the header is read, and its size and time of change stand for its values. Values are not recorded.

    Args:
        folders: The folders of the checkpoint and its tokenizer, without their sub-folders.
        facts: What else the record depends on, such as options and versions.

    Raises:
        OSError: If a file cannot be read.
    """
    digest = hashlib.sha256(json.dumps([str(fact) for fact in facts]).encode())
    for folder in folders:
        with os.scandir(folder) as entries:
            files = sorted((entry.name, Path(entry.path)) for entry in entries if entry.is_file())
        for name, path in files:
            status = path.stat()
            content = _content(path)
            times = [] if name.endswith(CONTENT_ENDINGS) else [status.st_mtime_ns]
            digest.update(json.dumps([name, status.st_size, *times, hashlib.sha256(content).hexdigest()]).encode())
        digest.update(b"end of folder")
    return digest.hexdigest()


def _content(path: Path) -> bytes:
    """The content of a small file, the header of a safetensors file; nothing of any other file."""
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            return file.read(min(length, LARGEST_HEADER))
    return path.read_bytes() if path.name.endswith(CONTENT_ENDINGS) else b""


def read_record(key: str) -> Any:
    """A record, now the most recently used one; None if there is none, or it is damaged."""
    path = _path(key)
    try:
        digest, _, text = path.read_text("ascii").partition("\n")
        if digest != _digest(text):
            return None
        with suppress(OSError):  # a cache of another user
            os.utime(path)
        return json.loads(text)
    except (OSError, ValueError, RecursionError):
        return None


def write_record(key: str, record: Any) -> None:
    """Write a record, and remove those used longest ago if there are many; nothing happens if the cache cannot be written."""
    path, text = _path(key), json.dumps(record, separators=(",", ":"))
    with suppress(errors.EmbspaceError):
        make_folder(path.parent)
        write_whole(path, f"{_digest(text)}\n{text}".encode("ascii"))
        _trim(path.parent)


def _trim(folder: Path) -> None:
    """Remove the records used longest ago, and files that a killed process left."""
    times = []
    for path in folder.iterdir():
        with suppress(OSError):
            times.append((path.stat().st_mtime, path))
    for _, path in sorted(times, reverse=True)[MAX_RECORDS:]:
        with suppress(OSError):  # another process removed it
            path.unlink()


def _path(key: str) -> Path:
    return user_cache() / "records" / key


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
