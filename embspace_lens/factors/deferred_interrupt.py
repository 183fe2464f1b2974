"""Ctrl-C that waits until a change is complete."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Raise the KeyboardInterrupt of a Ctrl-C at the end of the `with` block; a second Ctrl-C interrupts the block itself.

    Outside of the main thread, which alone receives Ctrl-C, the block runs as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def receive(signal_number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(signal_number)
        print("Interrupted: this step is completed first. Press Ctrl-C again to stop at once.", file=sys.stderr)

    previous = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, receive)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous if previous is not None else signal.default_int_handler)
    if received:
        raise KeyboardInterrupt
