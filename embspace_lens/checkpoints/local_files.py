"""Files of a checkpoint on this machine, mapped into memory."""

import bisect
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from .. import errors
from .file_mapping import map_file


class Ranges:
    """A set of bytes of files, as ranges that do not overlap."""

    def __init__(self) -> None:
        self.n_bytes = 0
        self._ranges: dict[str, list[tuple[int, int]]] = {}

    def add(self, file: str, start: int, stop: int) -> None:
        """Add the bytes from one position to another."""
        ranges = self._ranges.setdefault(file, [])
        first = bisect.bisect_left(ranges, start, key=lambda each: each[1])
        last = bisect.bisect_right(ranges, stop, key=lambda each: each[0])
        touching = ranges[first:last]
        if touching:
            start, stop = min(start, touching[0][0]), max(stop, touching[-1][1])
        self.n_bytes += stop - start - sum(end - begin for begin, end in touching)
        ranges[first:last] = [(start, stop)]


class LocalFiles:
    """The files of a folder. Their bytes are mapped into memory, so that they are read when they are used, and never copied.

    Attributes:
        bytes_read: How many bytes of the files were used, each counted once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._used = Ranges()
        self._maps: dict[str, Tensor] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return str(self.folder)

    @property
    def bytes_read(self) -> int:
        return self._used.n_bytes

    def exists(self, file: str) -> bool:
        """Whether there is such a file."""
        return (self.folder / file).is_file()

    def names(self) -> list[str]:
        """The names of all files."""
        return sorted(path.name for path in self.folder.iterdir() if path.is_file())

    def size(self, file: str) -> int:
        """The size of a file in bytes."""
        return (self.folder / file).stat().st_size

    def text(self, file: str) -> str:
        """A small file as text."""
        return (self.folder / file).read_text(encoding="utf-8-sig")

    def read(self, file: str, start: int, stop: int) -> UInt8[Tensor, " n_bytes"]:
        """The bytes of a file from one position to another, without a copy.

        Raises:
            EmbspaceError: If the file became shorter.
        """
        with self._lock:
            if file not in self._maps:
                self._maps[file] = self._map(file)
            content = self._maps[file]
            self._used.add(file, start, stop)
        if stop > len(content):
            raise errors.damaged_shard(file, f"it has {len(content):,} bytes, and byte {stop:,} is needed")
        return content[start:stop]

    def _map(self, file: str) -> UInt8[Tensor, " n_bytes"]:
        try:
            return map_file(self.folder / file)
        except OSError as reason:
            raise errors.not_readable(self.folder / file, reason.strerror or reason) from reason

    def read_ahead(self, ranges: Iterable[tuple[str, int, int]]) -> None:
        """Ask the system to read ranges of files into its cache, and return at once."""
        if not hasattr(os, "posix_fadvise"):  # on macOS and Windows, the system's own read-ahead remains
            return
        for file, start, stop in ranges:
            descriptor = os.open(self.folder / file, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, start, stop - start, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)
