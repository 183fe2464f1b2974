"""The header of a safetensors file: which tensor lies where."""

import json
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import torch

from .. import errors

LENGTH_BYTES = 8
LARGEST_HEADER = 100_000_000
"""The limit of the safetensors format, in bytes."""

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}


class StoredTensor(NamedTuple):
    """Where a tensor lies.

    Attributes:
        file: The name of its file.
        dtype: Its precision.
        shape: Its shape.
        start: The position of its first byte in the file.
    """

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def entry(self, index: int) -> "StoredTensor":
        """One entry of the first dimension."""
        part = self._replace(shape=self.shape[1:])
        return part._replace(start=self.start + index * part.n_bytes)


def read_header(file: str, size: int, read: Callable[[int, int], bytes]) -> dict[str, StoredTensor]:
    """Read where each tensor of a safetensors file lies.

    Args:
        file: The file's name.
        size: Its size in bytes.
        read: Returns the bytes of the file from one position to another.

    Returns:
        The tensors by name.

    Raises:
        EmbspaceError: If the file is truncated, or is not a safetensors file.
    """
    if size < LENGTH_BYTES:
        raise errors.damaged_shard(file, f"it has {size} bytes")
    length = int.from_bytes(read(0, LENGTH_BYTES), "little")
    data_start = LENGTH_BYTES + length
    if length > LARGEST_HEADER:
        raise errors.damaged_shard(file, "it does not begin with the header of a safetensors file")
    if data_start > size:
        raise errors.damaged_shard(file, f"its header ends at byte {data_start:,}, but it has {size:,} bytes")
    text = read(LENGTH_BYTES, data_start)
    try:
        header = json.loads(text)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        stored = {name: _stored(file, data_start, entry) for name, entry in entries.items()}
        ends = [data_start + entry["data_offsets"][1] for entry in entries.values()]
    except errors.EmbspaceError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as reason:
        raise errors.damaged_shard(file, f"its header cannot be read ({type(reason).__name__})") from reason
    for (name, tensor), end in zip(stored.items(), ends):
        if tensor.start < data_start or tensor.start + tensor.n_bytes != end:
            raise errors.damaged_shard(file, f"the place of {name} does not agree with its shape")
    if max(ends, default=data_start) > size:
        raise errors.damaged_shard(file, f"its tensors end at byte {max(ends):,}, but it has {size:,} bytes")
    return stored


def _stored(file: str, data_start: int, entry: dict) -> StoredTensor:
    shape = tuple(int(n) for n in entry["shape"])
    if min(shape, default=0) < 0:
        raise ValueError(shape)
    if entry["dtype"] not in DTYPES:
        raise errors.unknown_stored_dtype(file, entry["dtype"], list(DTYPES))
    return StoredTensor(file, DTYPES[entry["dtype"]], shape, data_start + int(entry["data_offsets"][0]))


def natural_order(key: str) -> list[str | int]:
    """A key for sorting the names of weights, in which block 2 precedes block 10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", key))]
