"""GGUF files: their metadata, and their tensors, which are dequantised when they are read."""

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import errors
from .checkpoint import FileSource
from .lazy_tensor import LazyTensor, Operation, Source
from .local_files import LocalFiles
from .safetensors_header import StoredTensor

MAGIC = b"GGUF"
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
DAMAGED = (ValueError, KeyError, IndexError, TypeError, OverflowError)
"""What the package gguf raises for a header that it cannot read."""


class GgufFile(Mapping[str, LazyTensor]):
    """The tensors of a GGUF file by the names that they have in it. The files of a split checkpoint are one mapping.

    Args:
        path: The file, or one of the files of a split checkpoint.

    Attributes:
        files: The files of its folder.
        shards: The names of its files; the first one has the metadata.
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
        for shard in self.shards:
            reader = _reader(self.files, shard)
            if shard == self.shards[0]:
                self._fields = reader.fields
            for tensor in reader.tensors:
                self._add(shard, tensor)

    def __getitem__(self, name: str) -> LazyTensor:
        stored, type_name, shape = self.stored[name], self.types[name], self._shapes[name]
        values = LazyTensor(
            FileSource(self.files, stored), torch.empty(stored.shape, dtype=stored.dtype, device="meta")
        )
        if type_name in UNQUANTIZED:
            return values
        like = torch.empty(shape, dtype=torch.float32, device="meta")
        return LazyTensor(Dequantization(functools.partial(dequantized, type_name=type_name), (values,)), like)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def metadata(self, key: str, default: Any = None) -> Any:
        """A value of the file's metadata, such as that of "general.architecture"."""
        field = self._fields.get(key)
        return default if field is None else field.contents()

    def n_elements(self) -> int:
        """How many numbers all tensors hold."""
        return sum(int(np.prod(shape)) for shape in self._shapes.values())

    def _add(self, shard: str, tensor: Any) -> None:
        type_name = tensor.tensor_type.name
        shape = tuple(int(n) for n in reversed(tensor.shape))  # in the file, the last dimension is the first
        if type_name in UNQUANTIZED:
            stored = StoredTensor(shard, UNQUANTIZED[type_name], shape, int(tensor.data_offset))
        elif _can_dequantize(type_name):
            rows = tuple(int(n) for n in tensor.data.shape)  # the last dimension counts bytes
            stored = StoredTensor(shard, torch.uint8, rows, int(tensor.data_offset))
        else:
            raise errors.gguf_type(shard, tensor.name, type_name)
        self.types[tensor.name], self.stored[tensor.name], self._shapes[tensor.name] = type_name, stored, shape


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


@functools.cache
def _can_dequantize(type_name: str) -> bool:
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
    total = int(match[3])
    shards = [f"{match[1]}-{i:05}-of-{match[3]}.gguf" for i in range(1, total + 1)]
    missing = [shard for shard in shards if not files.exists(shard)]
    if missing:
        raise errors.missing_shard(path, missing[0], len(missing), total)
    return shards


def _reader(files: LocalFiles, shard: str) -> Any:
    """The header of a GGUF file."""
    try:
        import gguf
    except ImportError as reason:
        raise errors.missing_extra("gguf", "gguf") from reason
    path = files.folder / shard
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise errors.not_gguf(path)
    try:
        reader = gguf.GGUFReader(path)
    except DAMAGED as reason:
        unknown = re.match(r"(\d+) is not a valid GGMLQuantizationType", str(reason))
        if unknown:
            raise errors.gguf_type(shard, "a tensor", f"type {unknown[1]}") from reason
        message = f"it has {files.size(shard):,} bytes, and its header or a tensor does not fit into it ({reason})"
        raise errors.damaged_shard(path, message) from reason
    if reader.byte_order != "I":
        raise errors.damaged_shard(path, "the order of its bytes is not that of this machine")
    return reader
