"""A cache on disk of ranges of remote files. Its size is bounded."""

import os
import re
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .. import errors
from ..files import expand, make_folder, whole

FOLDER_VARIABLE = "EMBSPACE_LENS_CACHE"
SIZE_VARIABLE = "EMBSPACE_LENS_CACHE_GB"
DEFAULT_GB = 50.0
GB = 10**9
COPY_BYTES = 2**20
RANGE_NAME = re.compile(r"\d+-\d+")
PARTIAL_NAME = re.compile(r"\.\d+-\d+\.[0-9a-f]+\.partial")
STALE_SECONDS = 24 * 3600
"""After this time, a temporary file belongs to a process that was killed."""


class CachedRange(NamedTuple):
    """A file of the cache.

    Attributes:
        start: The position of its first byte in the remote file.
        stop: The position after its last byte.
        path: The file.
    """

    start: int
    stop: int
    path: Path


class RangeCache:
    """Ranges of remote files in a folder, one file for each range. Several processes may share the folder.

    A range is written into a temporary file, which is renamed when it is complete. Where all files together exceed the bound,
    those used longest ago are removed.

    Args:
        folder: The folder. Only files in its sub-folder `ranges` are written and removed.
        max_bytes: The bound.

    Raises:
        EmbspaceError: If the folder cannot be created.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = make_folder(folder / "ranges")
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._n_bytes = max_bytes  # not measured yet
        self._n_new = 0  # since it was measured

    @classmethod
    def of_user(cls) -> "RangeCache":
        """The cache in $EMBSPACE_LENS_CACHE, or else in the user's folder of caches. It has at most $EMBSPACE_LENS_CACHE_GB.

        Raises:
            EmbspaceError: If the bound is not a positive number, or the folder cannot be created.
        """
        return cls(user_cache(), _max_bytes())

    @classmethod
    def temporary(cls) -> "RangeCache":
        """A cache in a temporary folder, which is removed when the process ends."""
        folder = Path(tempfile.mkdtemp(prefix="embspace-lens-"))
        cache = cls(folder, _max_bytes())
        weakref.finalize(cache, shutil.rmtree, folder, ignore_errors=True)
        return cache

    def path(self, key: str, start: int, stop: int) -> Path:
        """The file of a range.

        Args:
            key: The remote file and its version.
            start: The position of the first byte.
            stop: The position after the last byte.
        """
        return self.folder / key / f"{start}-{stop}"

    def find(self, key: str, start: int, stop: int) -> CachedRange | None:
        """A file that contains a range, now the most recently used one; None if there is none."""
        for cached in self._ranges(key):
            if cached.start <= start and stop <= cached.stop:
                try:
                    os.utime(cached.path)
                except FileNotFoundError:  # another process removed it
                    continue
                except OSError:  # a cache of another user
                    pass
                return cached
        return None

    @contextmanager
    def new(self, key: str, start: int, stop: int) -> Iterator[CachedRange]:
        """Yield an empty temporary file, which becomes the file of a range when the `with` block ends without an error.

        Raises:
            EmbspaceError: If it cannot be written; there is no such file then.
        """
        path = self.path(key, start, stop)
        make_folder(path.parent)
        parts = [cached for cached in self._ranges(key) if start <= cached.start and cached.stop <= stop]
        with whole(path) as partial:
            try:
                partial.touch()
                yield CachedRange(start, stop, partial)
            except OSError as reason:
                raise errors.cache_not_written(self.folder, reason.strerror or reason) from reason
        for part in parts:
            if part.path != path:
                _remove(part.path)
        self._count(stop - start, path)

    def copy_parts(self, key: str, start: int, stop: int, path: Path) -> list[tuple[int, int]]:
        """Copy the cached parts of a range into a file that holds the range, and return the other parts."""
        missing, position = [], start
        for cached in sorted(self._ranges(key)):
            first, last = max(cached.start, position), min(cached.stop, stop)
            if first >= last:
                continue
            try:
                with cached.path.open("rb") as part, path.open("r+b") as target:
                    part.seek(first - cached.start)
                    target.seek(first - start)
                    _copy(part, target, last - first)
            except FileNotFoundError:  # another process removed it
                continue
            if position < first:
                missing.append((position, first))
            position = last
        return [*missing, (position, stop)] if position < stop else missing

    def _ranges(self, key: str) -> list[CachedRange]:
        """The complete ranges of a remote file."""
        try:
            entries = list(os.scandir(self.folder / key))
        except FileNotFoundError:
            return []
        ranges = []
        for entry in entries:
            if RANGE_NAME.fullmatch(entry.name):
                start, stop = map(int, entry.name.split("-"))
                with suppress(FileNotFoundError):
                    if entry.stat().st_size == stop - start:
                        ranges.append(CachedRange(start, stop, Path(entry.path)))
        return ranges

    def _count(self, n_bytes: int, path: Path) -> None:
        """Count a new file. Measure the cache, and remove other files, where the bound may be exceeded.

        Ranges that other processes add are seen when the cache is measured, which happens at least each time that a
        twentieth of the bound was added.
        """
        with self._lock:
            self._n_bytes += n_bytes
            self._n_new += n_bytes
            if self._n_bytes > self.max_bytes or self._n_new > self.max_bytes / 20:
                self._n_bytes, self._n_new = self._trimmed(path), 0

    def _trimmed(self, kept: Path) -> int:
        """Remove the files used longest ago, but not the one to be kept; return the size of all that remain."""
        files = []
        for path in self.folder.glob("*/*"):
            with suppress(FileNotFoundError):
                status = path.stat()
                if RANGE_NAME.fullmatch(path.name):
                    files.append((status.st_mtime, status.st_size, path))
                elif PARTIAL_NAME.fullmatch(path.name) and time.time() - status.st_mtime > STALE_SECONDS:
                    _remove(path)
        n_bytes = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if n_bytes > self.max_bytes and path != kept:
                _remove(path)
                n_bytes -= size
        return n_bytes


def user_cache() -> Path:
    """The folder in $EMBSPACE_LENS_CACHE, or else `embspace_lens` in the user's folder of caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expand(os.environ.get(FOLDER_VARIABLE) or Path(caches) / "embspace_lens")


def _max_bytes() -> int:
    """The bound in $EMBSPACE_LENS_CACHE_GB."""
    text = os.environ.get(SIZE_VARIABLE) or str(DEFAULT_GB)
    try:
        gb = float(text)
    except ValueError as reason:
        raise errors.wrong_cache_size(SIZE_VARIABLE, text) from reason
    if not 0 < gb < float("inf"):
        raise errors.wrong_cache_size(SIZE_VARIABLE, text)
    return int(gb * GB)


def _remove(path: Path) -> None:
    """Remove a file, unless the system does not allow it: on Windows, files that are mapped into memory."""
    with suppress(OSError):
        path.unlink()


def _copy(source: BinaryIO, target: BinaryIO, n_bytes: int) -> None:
    while n_bytes:
        data = source.read(min(n_bytes, COPY_BYTES))
        target.write(data)
        n_bytes -= len(data)
