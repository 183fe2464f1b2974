"""Files of a checkpoint behind a network. Only the ranges that are read are fetched, each once, into a cache on disk."""

import atexit
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from .. import errors
from .file_mapping import map_file
from .range_cache import CachedRange, RangeCache
from .remote_folder import RemoteFolder

PIECE_BYTES = 8 * 2**20
"""The largest range of one request."""
N_THREADS = 8
"""How many requests fetch one range. So many pieces are in memory."""
N_ATTEMPTS = 3
"""How often a range is fetched that another process removes from the cache at once."""
READ_AHEAD_RANGES = 256
"""How many ranges wait to be read ahead; others are ignored."""
WIDEST_DTYPE = 8
"""In bytes. torch views bytes as numbers only at a multiple of their width."""


class RemoteFiles:
    """The files of a folder at an address of `fsspec`.

    Args:
        url: The address of the folder (see `RemoteFolder`).
        cache: Whether ranges stay on disk when the process ends (see `RangeCache.of_user`).

    Raises:
        EmbspaceError: If the protocol is not known, or needs a library that is not installed.
    """

    def __init__(self, url: str, cache: bool = True) -> None:
        self.folder = RemoteFolder(url)
        self.cache = RangeCache.of_user() if cache else RangeCache.temporary()
        self._claims: list[tuple[str, int, int]] = []
        self._changed = threading.Condition()
        self._ahead: queue.Queue[tuple[str, int, int]] = queue.Queue(READ_AHEAD_RANGES)
        self._reader: threading.Thread | None = None
        self._closed = threading.Event()

    def __repr__(self) -> str:
        return self.folder.url

    @property
    def bytes_read(self) -> int:
        """How many bytes were fetched; those that were in the cache do not count."""
        return self.folder.bytes_read

    def exists(self, file: str) -> bool:
        """Whether there is such a file."""
        return self.folder.exists(file)

    def names(self) -> list[str]:
        """The names of all files, as far as the protocol can list them."""
        return self.folder.names()

    def size(self, file: str) -> int:
        """The size of a file in bytes."""
        return self.folder.size(file)

    def text(self, file: str) -> str:
        """A small file as text."""
        return bytes(self.read(file, 0, self.size(file)).numpy()).decode("utf-8-sig")

    def read(self, file: str, start: int, stop: int) -> UInt8[Tensor, " n_bytes"]:
        """The bytes of a file from one position to another, mapped into memory from the cache.

        Raises:
            EmbspaceError: If the file is too short, the server ignores ranges, or the range cannot be fetched or written.
        """
        if stop > self.size(file):
            raise errors.damaged_shard(file, f"it has {self.size(file):,} bytes, and byte {stop:,} is needed")
        if start == stop:
            return torch.empty(0, dtype=torch.uint8)
        cached, content = self._mapped(file, start, stop)
        view = content[start - cached.start : stop - cached.start]
        return view.clone() if (start - cached.start) % WIDEST_DTYPE else view

    def read_ahead(self, ranges: Iterable[tuple[str, int, int]]) -> None:
        """Fetch ranges into the cache in the background, and return at once. Those that fail are fetched when they are read."""
        for each in ranges:
            with suppress(queue.Full):
                self._ahead.put_nowait(each)
        if self._reader is None:
            self._reader = threading.Thread(target=self._fetch_ahead, name="read ahead", daemon=True)
            self._reader.start()
            atexit.register(self.close)

    def close(self) -> None:
        """End reading ahead, and remove the range that is not complete."""
        self._closed.set()
        if self._reader is not None:
            self._reader.join(timeout=5)

    def _fetch_ahead(self) -> None:
        while not self._closed.is_set():
            with suppress(queue.Empty, errors.EmbspaceError):
                file, start, stop = self._ahead.get(timeout=0.2)
                if start < stop <= self.size(file):
                    self._cached(file, start, stop, self._closed)

    def _mapped(self, file: str, start: int, stop: int) -> tuple[CachedRange, Tensor]:
        """A file of the cache that contains a range, and its bytes."""
        for _ in range(N_ATTEMPTS):
            cached = self._cached(file, start, stop)
            try:
                return cached, map_file(cached.path)
            except OSError as reason:
                if cached.path.exists():
                    raise errors.not_readable(cached.path, reason) from reason
        raise errors.cache_not_written(self.cache.folder, "another process removes the files at once")

    def _cached(self, file: str, start: int, stop: int, cancelled: threading.Event | None = None) -> CachedRange:
        """A file of the cache that contains a range, which is fetched if it is not there, unless that is cancelled."""
        key = self.folder.version(file)
        with self._claimed(file, start, stop):
            cached = self.cache.find(key, start, stop)
            if cached is not None:
                return cached
            with self.cache.new(key, start, stop) as new:
                missing = self.cache.copy_parts(key, start, stop, new.path)
                pieces = [
                    (position, min(position + PIECE_BYTES, last))
                    for first, last in missing
                    for position in range(first, last, PIECE_BYTES)
                ]
                _in_threads(lambda first, last: self._write(new, file, first, last), pieces, cancelled)
        return CachedRange(start, stop, self.cache.path(key, start, stop))

    @contextmanager
    def _claimed(self, file: str, start: int, stop: int) -> Iterator[None]:
        """Wait until no other thread fetches bytes of a range, and let no other thread fetch them for as long as the context lasts."""
        with self._changed:
            self._changed.wait_for(
                lambda: not any(file == other and start < last and first < stop for other, first, last in self._claims)
            )
            self._claims.append((file, start, stop))
        try:
            yield
        finally:
            with self._changed:
                self._claims.remove((file, start, stop))
                self._changed.notify_all()

    def _write(self, new: CachedRange, file: str, start: int, stop: int) -> None:
        """Fetch a piece of a range, and write it into the range's file."""
        data = self.folder.fetch(file, start, stop)
        write_at(new.path, start - new.start, data)


def write_at(path: Path, position: int, data: bytes) -> None:
    """Write bytes into an existing file."""
    with path.open("r+b") as file:
        file.seek(position)
        file.write(data)


def _in_threads(
    work: Callable[[int, int], None], pieces: Sequence[tuple[int, int]], cancelled: threading.Event | None
) -> None:
    """Call a function for each piece, in several threads. After an exception, which is raised, no further piece begins.

    The threads do not outlive the process. Those that are at work when an exception is raised here, such as KeyboardInterrupt,
    end with the piece that they fetch.

    Raises:
        EmbspaceError: If it is cancelled.
    """
    remaining, lock = iter(pieces), threading.Lock()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            while not failures:
                with lock:
                    piece = next(remaining, None)
                if piece is None:
                    return
                work(*piece)
        except BaseException as reason:
            failures.append(reason)

    threads = [threading.Thread(target=run, daemon=True) for _ in pieces[:N_THREADS]]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive() and not failures:
                thread.join(timeout=0.1)
                if cancelled is not None and cancelled.is_set():
                    raise errors.fetching_cancelled()
    except BaseException as reason:
        failures.append(reason)
        raise
    if failures:
        raise failures[0]
