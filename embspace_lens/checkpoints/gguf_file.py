"""GGUF files: their tensors, which are dequantised when they are read."""

import functools
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import errors
from .checkpoint import FileSource
from .gguf_header import Field, TensorPlace, read_gguf_header
from .lazy_tensor import LazyTensor, Operation, Source
from .local_files import LocalFiles
from .safetensors_header import StoredTensor

SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
"""The name of one file of a checkpoint that was split."""
UNQUANTIZED = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
"""Types whose values are stored one by one."""


class GgufFile(Mapping[str, LazyTensor]):
    """The tensors of a GGUF file by the names that they have in it. The files of a split checkpoint are one mapping.

    Args:
        path: The file, or one of the files of a split checkpoint.

    Attributes:
        files: The files of its folder.
        shards: The names of its files; the first one has the metadata.
        metadata: Values such as that of "general.architecture".
        types: How each tensor is stored, such as "Q4_K" or "F32".
        stored: Where the bytes of each tensor lie.

    Raises:
        EmbspaceError: If the package gguf is missing, or a file is missing, truncated, damaged, not a GGUF file or stores
            a tensor in a type that the package cannot dequantise.
    """

    def __init__(self, path: Path) -> None:
        self.files = LocalFiles(path.parent)
        self.shards = _shards(self.files, path)
        self.types: dict[str, str] = {}
        self.stored: dict[str, StoredTensor] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        headers = [read_gguf_header(self.files.folder / shard) for shard in self.shards]
        self.metadata: dict[str, Field] = headers[0].metadata
        for shard, header in zip(self.shards, headers):
            for name, place in header.tensors.items():
                self._add(shard, name, place)

    def __getitem__(self, name: str) -> LazyTensor:
        stored, type_name, shape = self.stored[name], self.types[name], self._shapes[name]
        values = LazyTensor(
            FileSource(self.files, stored, name), torch.empty(stored.shape, dtype=stored.dtype, device="meta")
        )
        if type_name in UNQUANTIZED:
            return values
        like = torch.empty(shape, dtype=torch.float32, device="meta")
        return LazyTensor(Dequantization(functools.partial(dequantized, type_name=type_name), (values,)), like)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def path(self) -> Path:
        """The first file."""
        return self.files.folder / self.shards[0]

    @property
    def n_elements(self) -> int:
        """How many numbers all tensors hold."""
        return sum(math.prod(shape) for shape in self._shapes.values())

    def value(self, key: str) -> Any:
        """A value of the metadata; None if it is missing."""
        return self.metadata[key].value if key in self.metadata else None

    def _add(self, shard: str, name: str, place: TensorPlace) -> None:
        type_name, block_elements, block_bytes = _type(shard, name, place.kind)
        dtype, shape = UNQUANTIZED.get(type_name, torch.uint8), place.shape
        if type_name not in UNQUANTIZED:
            if not shape or shape[-1] % block_elements:
                message = f"the rows of {name} do not consist of blocks of {block_elements} numbers"
                raise errors.damaged_shard(self.files.folder / shard, message)
            shape = (*shape[:-1], shape[-1] // block_elements * block_bytes)
        stored = StoredTensor(shard, dtype, shape, place.start)
        end, size = stored.start + stored.n_bytes, self.files.size(shard)
        if end > size:
            message = f"{name} ends at byte {end:,}, but the file has {size:,} bytes"
            raise errors.damaged_shard(self.files.folder / shard, message)
        self.types[name], self.stored[name], self._shapes[name] = type_name, stored, place.shape


class Dequantization(Operation):
    """The values of a quantised tensor. One entry of a stack of matrices is read alone, because no block spans two rows."""

    def entry(self, index: int) -> Source:
        """One entry of the first dimension."""
        (blocks,) = self.args
        return super().entry(index) if blocks.ndim == 1 else Dequantization(self.function, (blocks[index],))


def dequantized(blocks: Tensor, type_name: str) -> Tensor:
    """The values of quantised rows.

    Args:
        blocks: The bytes; each row holds whole blocks.
        type_name: The type of the blocks, such as "Q4_K".
    """
    import gguf

    array: Any = blocks.numpy()
    return torch.from_numpy(gguf.dequantize(array, gguf.GGMLQuantizationType[type_name]))


def _type(file: str, tensor: str, number: int) -> tuple[str, int, int]:
    """The name of a type, and how many numbers and bytes one of its blocks holds."""
    try:
        import gguf
    except ImportError as reason:
        raise errors.missing_extra("gguf", "gguf") from reason
    try:
        kind = gguf.GGMLQuantizationType(number)
    except ValueError as reason:
        raise errors.gguf_type(file, tensor, f"type {number}") from reason
    if kind.name not in UNQUANTIZED and not _has_dequantizer(kind.name):
        raise errors.gguf_type(file, tensor, kind.name)
    return kind.name, *gguf.GGML_QUANT_SIZES[kind]


@functools.cache
def _has_dequantizer(type_name: str) -> bool:
    import gguf

    kind = gguf.GGMLQuantizationType[type_name]
    try:
        gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _shards(files: LocalFiles, path: Path) -> list[str]:
    """The names of all files of a checkpoint."""
    match = SHARD.fullmatch(path.name)
    if not match:
        return [path.name]
    shards = [f"{match[1]}-{i:05}-of-{match[3]}.gguf" for i in range(1, int(match[3]) + 1)]
    missing = [shard for shard in shards if not files.exists(shard)]
    if missing:
        raise errors.missing_shard(path, missing[0], len(missing), len(shards))
    return shards
