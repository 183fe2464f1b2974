"""The header of a GGUF file: its metadata, and which tensor lies where.

The package gguf reads headers too, but it needs a minute for a file with 128,000 tokens. Here, lists of strings (the tokenizer's)
are skipped, and nothing but the header is read.
"""

import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

from .. import errors

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
"""Tensors begin at multiples of this number of bytes, unless the metadata has another one."""
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The types of numbers in metadata, as format characters of the module `struct`."""
STRING, ARRAY = 8, 9
MAX_DIMENSIONS = 4


class Field(NamedTuple):
    """A value of the metadata.

    Attributes:
        kind: The number of its type.
        value: The value; None for a list of strings.
    """

    kind: int
    value: Any


class TensorPlace(NamedTuple):
    """Where a tensor lies.

    Attributes:
        kind: The number of its type.
        shape: Its shape; the last dimension is contiguous.
        start: The position of its first byte in the file.
    """

    kind: int
    shape: tuple[int, ...]
    start: int


class GgufHeader(NamedTuple):
    """The metadata by their keys, and the tensors by their names."""

    metadata: dict[str, Field]
    tensors: dict[str, TensorPlace]


def read_gguf_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file.

    Raises:
        EmbspaceError: If the file is truncated or damaged, or is not a GGUF file.
    """
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise errors.not_gguf(path)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _parse(_Cursor(data))
            except (struct.error, ValueError, KeyError, OverflowError, MemoryError) as reason:
                raise errors.damaged_shard(path, f"its header cannot be read ({reason})") from reason


class _Cursor:
    """Reads values one after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.position = len(MAGIC)

    def numbers(self, layout: str) -> tuple[Any, ...]:
        layout = f"<{layout}"
        values = struct.unpack_from(layout, self.data, self.position)
        self.position += struct.calcsize(layout)
        return values

    def string(self) -> str:
        (length,) = self.numbers("Q")
        (text,) = self.numbers(f"{length}s")
        return text.decode("utf-8")

    def skip_string(self) -> None:
        (length,) = self.numbers("Q")
        self.position += length

    def field(self) -> Field:
        (kind,) = self.numbers("I")
        if kind in NUMBERS:
            return Field(kind, self.numbers(NUMBERS[kind])[0])
        if kind == STRING:
            return Field(kind, self.string())
        if kind != ARRAY:
            raise ValueError(f"unknown type {kind} of metadata")
        element_kind, count = self.numbers("IQ")
        if element_kind in NUMBERS:
            return Field(kind, list(self.numbers(f"{count}{NUMBERS[element_kind]}")))
        if element_kind != STRING:
            raise ValueError(f"unknown type {element_kind} of a list")
        for _ in range(count):
            self.skip_string()
        return Field(kind, None)

    def tensor(self) -> TensorPlace:
        """A tensor whose position is counted from the end of the header."""
        (n_dimensions,) = self.numbers("I")
        if n_dimensions > MAX_DIMENSIONS:
            raise ValueError(f"a tensor of {n_dimensions} dimensions")
        shape = self.numbers(f"{n_dimensions}Q")
        kind, start = self.numbers("IQ")
        return TensorPlace(kind, tuple(reversed(shape)), start)


def _parse(cursor: _Cursor) -> GgufHeader:
    version, n_tensors, n_fields = cursor.numbers("IQQ")
    if version not in VERSIONS:
        raise ValueError(f"version {version} is not one of {VERSIONS}")
    metadata: dict[str, Field] = {}
    for _ in range(n_fields):
        key = cursor.string()
        metadata[key] = cursor.field()
    places: dict[str, TensorPlace] = {}
    for _ in range(n_tensors):
        name = cursor.string()
        places[name] = cursor.tensor()
    alignment = metadata["general.alignment"].value if "general.alignment" in metadata else ALIGNMENT
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"an alignment of {alignment} bytes")
    data_start = -(-cursor.position // alignment) * alignment
    return GgufHeader(
        metadata, {name: place._replace(start=data_start + place.start) for name, place in places.items()}
    )
