"""A folder behind a network: the state of its files, and ranges of their bytes, by requests that are repeated if they fail."""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from fsspec.asyn import AsyncFileSystem
from fsspec.config import conf
from fsspec.core import url_to_fs

from .. import errors

T = TypeVar("T")

N_ATTEMPTS = 6
FIRST_PAUSE = 0.25
"""The pause before a request is repeated, in seconds. It doubles each time."""
CONNECT_SECONDS = 30
SILENT_SECONDS = 60
"""After so long without a byte, a request fails."""

VERSION_FIELDS = (
    "blobid",
    "contentmd5",
    "created",
    "digest",
    "etag",
    "generation",
    "lastmodified",
    "md5hash",
    "mtime",
    "size",
    "updated",
    "xethash",
)
"""What servers call the version of a file, in small letters."""
MISSING = (403, 404, 410)
"""The status of files that do not exist; 403 is the answer of object stores to those who may not list files."""
TEMPORARY = (408, 425, 429)
"""The status of requests that may succeed later, as those from 500."""
UNLISTED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""Weights to look for where files cannot be listed."""


def is_url(name: object) -> bool:
    """Whether a name is an address such as `hf://…`, `https://…` or `s3://…`, and not a path.

    >>> is_url("hf://openai-community/gpt2"), is_url("openai-community/gpt2")
    (True, False)
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", str(name)) is not None


def public_url(url: str) -> str:
    """An address without user name, password, query and fragment, for messages.

    >>> public_url("https://user:password@host/folder?signature=1")
    'https://host/folder'
    """
    return re.sub(r"^([^:/]+://)[^/?#]*@", r"\1", re.split(r"[?#]", url)[0]).rstrip("/")


class RemoteFolder:
    """A folder at an address of `fsspec`.

    Access to private files follows the conventions of the library of the protocol: the login of the hub for `hf://`, the
    environment for `s3://` and `gs://`.

    Args:
        url: The address.

    Attributes:
        url: The address without credentials.
        bytes_read: How many bytes were fetched.

    Raises:
        EmbspaceError: If the protocol is not known, or needs a library that is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = public_url(url)
        self.bytes_read = 0
        self._is_http = url.lower().startswith(("http://", "https://"))
        self._file_system: Any
        try:
            self._file_system, root = url_to_fs(url, **(_http_options() if self._is_http else {}))
        except (ImportError, ValueError) as reason:
            raise errors.unknown_protocol(self.url, reason if isinstance(reason, ImportError) else None) from None
        except Exception as reason:  # libraries that look for credentials at once have exceptions of their own
            raise errors.not_fetched(self.url, _described(reason)) from None
        self._root, mark, query = root.partition("?") if self._is_http else (root, "", "")
        self._query = mark + query
        self._infos: dict[str, dict[str, Any] | None] = {}
        self._lock = threading.Lock()

    def exists(self, file: str) -> bool:
        """Whether there is such a file."""
        return self._info(file) is not None

    def names(self) -> list[str]:
        """The names of all files; over HTTP, which has no lists of files, those of some files of weights."""
        if self._is_http:
            return [file for file in UNLISTED if self.exists(file)]
        entries = self._repeated("", lambda: self._file_system.ls(self._root, detail=True)) or []
        return sorted(entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "file")

    def size(self, file: str) -> int:
        """The size of a file in bytes.

        Raises:
            EmbspaceError: If there is no such file, or the server does not state its size.
        """
        size = self._existing(file).get("size")
        if size is None:
            raise errors.not_fetched(f"{self.url}/{file}", "the server does not state its size")
        return int(size)

    def version(self, file: str) -> str:
        """A name for the contents of a file: a hash of its address and of what the server states about its version.

        Raises:
            EmbspaceError: If there is no such file.
        """
        info = {re.sub("[-_]", "", key.lower()): str(value) for key, value in self._existing(file).items()}
        version = {key: info[key] for key in VERSION_FIELDS if key in info}
        address = f"{self.url}/{file}{self._query}"
        return hashlib.sha256(json.dumps([address, version], sort_keys=True).encode()).hexdigest()[:40]

    def fetch(self, file: str, start: int, stop: int) -> bytes:
        """The bytes of a file from one position to another.

        Raises:
            EmbspaceError: If they cannot be fetched, or the server ignores ranges.
        """
        if self._existing(file).get("partial") is False:  # the server states that it has no ranges
            raise errors.no_ranges(self.url)

        def request() -> bytes:
            data = self._range(file, start, stop)
            if len(data) != stop - start:
                raise ShortResponse(f"{len(data):,} of {stop - start:,} bytes arrived")
            return data

        data = self._repeated(file, request)
        if data is None:
            raise errors.not_fetched(f"{self.url}/{file}", "there is no such file any more, or it may not be read")
        with self._lock:
            self.bytes_read += len(data)
        return data

    def _range(self, file: str, start: int, stop: int) -> bytes:
        path = self._path(file)
        data: Any
        if self._is_http:  # cat_file would read the whole file from a server that ignores ranges
            with self._file_system.open(path, "rb", block_size=1, cache_type="none", size=self.size(file)) as stream:
                stream.seek(start)
                data = stream.read(stop - start)
        else:
            options = {} if isinstance(self._file_system, AsyncFileSystem) else {"cache_type": "none"}
            data = self._file_system.cat_file(path, start=start, end=stop, **options)
        return data

    def _path(self, file: str) -> str:
        return f"{self._root.rstrip('/')}/{file}{self._query}"

    def _existing(self, file: str) -> dict[str, Any]:
        info = self._info(file)
        if info is None:
            raise errors.not_fetched(f"{self.url}/{file}", "there is no such file, or it may not be read")
        return info

    def _info(self, file: str) -> dict[str, Any] | None:
        """What the server states about a file, asked once; None if there is no such file."""
        if file not in self._infos:
            info = self._repeated(file, lambda: self._file_system.info(self._path(file)))
            self._infos[file] = info if info is not None and info["type"] == "file" else None
        return self._infos[file]

    def _repeated(self, file: str, request: Callable[[], T]) -> T | None:
        """The result of a request, which is repeated while the connection breaks; None if there is no such file.

        Exceptions are not chained: their messages contain the whole address.
        """
        description = ""
        for attempt in range(N_ATTEMPTS):
            time.sleep(FIRST_PAUSE * 2 ** (attempt - 1) if attempt else 0)
            try:
                return request()
            except errors.EmbspaceError:
                raise
            except Exception as reason:  # each protocol's library has exceptions of its own
                if isinstance(reason, FileNotFoundError) and self._is_http and isinstance(reason.__cause__, Exception):
                    reason = reason.__cause__  # HTTPFileSystem.info raises FileNotFoundError for all exceptions
                if isinstance(reason, FileNotFoundError) or _status(reason) in MISSING:
                    return None
                if isinstance(reason, ValueError) and "range requests" in str(reason):
                    raise errors.no_ranges(self.url) from None
                description = _described(reason)
                if _is_permanent(reason):
                    break
        raise errors.not_fetched(f"{self.url}/{file}", description) from None


class ShortResponse(Exception):
    """A response with fewer bytes than were requested."""


def _http_options() -> dict[str, Any]:
    """Options of HTTPFileSystem: no compression, no limit of the whole time; those of fsspec's configuration come first."""
    try:
        import aiohttp
    except ImportError:  # url_to_fs raises the error
        return {}
    configured = {**conf.get("http", {}), **conf.get("https", {})}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS)
    return {
        "headers": {"Accept-Encoding": "identity"} | configured.get("headers", {}),
        "client_kwargs": {"timeout": timeout} | configured.get("client_kwargs", {}),
    }


def _status(reason: Exception) -> int | None:
    """The HTTP status of a failed request, as aiohttp, the hub's library and gcsfs state it."""
    response = getattr(reason, "response", None)
    for owner, name in ((reason, "status"), (response, "status_code"), (reason, "code")):
        if str(getattr(owner, name, "")).isdigit():
            return int(getattr(owner, name))
    return None


def _is_permanent(reason: Exception) -> bool:
    """Whether a repeated request fails too."""
    status = _status(reason)
    if status is not None:
        return status < 500 and status not in TEMPORARY
    return isinstance(reason, PermissionError | ImportError | NotImplementedError | ValueError)


def _described(reason: Exception) -> str:
    """The reason of a failed request in words, without the address that most messages contain."""
    status = _status(reason)
    if status is not None:
        return f"the server answered with status {status}"
    if isinstance(reason, ShortResponse):
        return str(reason)
    if isinstance(reason, PermissionError):
        return "access is denied"
    if isinstance(reason, TimeoutError):
        return "the server did not answer in time"
    if isinstance(reason, OSError) and (reason.errno or 0) > 0:
        return os.strerror(reason.errno or 0)
    return f"the connection broke ({type(reason).__name__})"
