"""Times and memory of a function compared with those of a baseline."""

import resource
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

REPEATS = 5


class Measurement(NamedTuple):
    """One row of the table.

    Attributes:
        name: What is measured, and the baseline.
        ours: Seconds of this package.
        baseline: Seconds of the baseline.
        ratio: baseline / ours.
        extra_mb: Peak memory of this package above the memory in use before, in MB.
    """

    name: str
    ours: float
    baseline: float
    ratio: float
    extra_mb: float


def seconds(function: Callable[[], object]) -> float:
    """The time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def extra_memory(function: Callable[[], object]) -> float:
    """Increase of peak resident memory during a call, in MB, sampled a thousand times per second; NaN outside Linux."""
    statm, page_size = Path("/proc/self/statm"), resource.getpagesize()
    if not statm.exists():
        return float("nan")

    def resident() -> int:
        return int(statm.read_text().split()[1]) * page_size

    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    function()
    done.set()
    watcher.join()
    return max(0, peak - before) / 1e6


def compare(
    name: str, ours: Callable[[], object], baseline: Callable[[], object], repeats: int = REPEATS
) -> Measurement:
    """Median times of two functions that are called in turn, so that other load on the machine affects both."""
    memory = extra_memory(ours)  # the first call of each is not timed, unless there is only one
    if repeats > 1:
        baseline()
    times = [(seconds(ours), seconds(baseline)) for _ in range(repeats)]
    time_ours, time_baseline = (statistics.median(column) for column in zip(*times, strict=True))
    return Measurement(name, time_ours, time_baseline, time_baseline / time_ours, memory)


def print_header() -> None:
    """Print the titles of the columns."""
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; ratio = baseline / ours")
    print(f"{'':110}{'ours':>10}{'baseline':>10}{'ratio':>8}{'+MB':>6}")


def print_measurement(row: Measurement) -> None:
    """Print one row; times and memory that were not measured stay empty."""
    is_timed = row.ours == row.ours
    times = f"{row.ours:9.4f}s{row.baseline:9.4f}s{row.ratio:8.2f}" if is_timed else " " * 28
    memory = f"{row.extra_mb:6.0f}" if row.extra_mb == row.extra_mb else ""
    print(f"{row.name:110}{times}{memory}", flush=True)
