"""Files mapped into memory: their pages are read when they are used, and the system may drop them at any time."""

import mmap
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

# Without it, Linux refuses to map a file that is larger than the memory. Python has no name for it before 3.13.
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def map_file(path: Path) -> UInt8[Tensor, " n_bytes"]:
    """The bytes of a file, of any size. Changes of the tensor stay in this process.

    Raises:
        OSError: If the file cannot be mapped.
    """
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return torch.empty(0, dtype=torch.uint8)
        if sys.platform == "win32":
            pages: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        else:
            protection = mmap.PROT_READ | mmap.PROT_WRITE
            pages = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE | NO_RESERVE, prot=protection)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.frombuffer(pages, dtype=torch.uint8)
