"""A server of a folder over HTTP with ranges, which can misbehave in the ways that real servers and connections do."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class RangeServer(ThreadingHTTPServer):
    """Serves a folder on 127.0.0.1 at a free port.

    Args:
        folder: The folder.
        ranges: Whether ranges are sent; otherwise each response has the whole file and the status 200.
        drop_every: Break the connection in the middle of each response whose number is a multiple of this; 0 for never.
        short_every: Send half of the range, with a matching Content-Length, likewise.
        busy_every: Answer with the status 503, likewise.
        refuse: The status of all responses; None to serve files.
        missing_status: The status of the response where there is no such file.

    Attributes:
        n_bytes: How many bytes of files were sent; requests for the state of a file send none.
        ranges_sent: The file and the first and last position of each response that is not broken off.
    """

    daemon_threads = True

    def __init__(
        self,
        folder: Path,
        *,
        ranges: bool = True,
        drop_every: int = 0,
        short_every: int = 0,
        busy_every: int = 0,
        refuse: int | None = None,
        missing_status: int = 404,
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.ranges, self.refuse, self.missing_status = ranges, refuse, missing_status
        self.drop_every, self.short_every, self.busy_every = drop_every, short_every, busy_every
        self.n_bytes = self.n_responses = 0
        self.ranges_sent: list[tuple[str, int, int]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may close a connection."""


class Handler(BaseHTTPRequestHandler):
    server: RangeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        path = self.existing()
        if path is not None:
            self.head(200, path, path.stat().st_size)

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):
            return self.hub()
        path, server = self.existing(), self.server
        if path is None:
            return
        size = path.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, stop = (int(wanted[1]), min(int(wanted[2]) + 1, size)) if wanted and server.ranges else (0, size)
        with server.lock:
            server.n_responses += 1
            number = server.n_responses
        drop, short, busy = (
            every and number % every == 0 for every in (server.drop_every, server.short_every, server.busy_every)
        )
        if busy:
            return self.empty(503)
        if short:
            stop = start + (stop - start) // 2
        extra = [("Content-Range", f"bytes {start}-{stop - 1}/{size}")] if wanted and server.ranges else []
        self.head(206 if extra else 200, path, stop - start, extra)
        if drop:
            self.close_connection = True
            stop = start + (stop - start) // 2
        else:
            with server.lock:
                server.ranges_sent.append((path.name, start, stop))
        self.send(path, start, stop)

    def send(self, path: Path, start: int, stop: int) -> None:
        """Send bytes of a file."""
        with path.open("rb") as file:
            file.seek(start)
            while start < stop:
                data = file.read(min(stop - start, 2**16))
                with self.server.lock:  # before the client has them, so that it finds them counted
                    self.server.n_bytes += len(data)
                try:
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True
                    return
                start += len(data)

    def hub(self) -> None:
        """Answer as the Hugging Face hub does when it is asked for a repository or its files."""
        paths = self.server.folder.iterdir()
        files = [{"type": "file", "path": path.name, "size": path.stat().st_size, "oid": path.name} for path in paths]
        data = json.dumps(files if "/tree/" in self.path else {"id": "organisation/model", "sha": "0" * 40}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def existing(self) -> Path | None:
        """The file that is requested; a response is sent if there is none."""
        path = self.server.folder / Path(self.path.partition("?")[0]).name
        if self.server.refuse is None and path.is_file():
            return path
        self.empty(self.server.refuse or self.server.missing_status)
        return None

    def empty(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def head(self, status: int, path: Path, n_bytes: int, extra: Any = ()) -> None:
        state = path.stat()
        self.send_response(status)
        self.send_header("Content-Length", str(n_bytes))
        self.send_header("ETag", f'"{state.st_mtime_ns:x}-{state.st_size:x}"')
        for name, value in extra:
            self.send_header(name, value)
        self.end_headers()


@contextmanager
def serving(folder: Path, **behaviour: Any) -> Iterator[RangeServer]:
    """A running server of a folder; `behaviour` are the arguments of `RangeServer`."""
    with RangeServer(folder, **behaviour) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
