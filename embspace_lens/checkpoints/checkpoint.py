"""A checkpoint: the names of its parameters, and each parameter as a tensor that is read when it is needed."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils import _pytree as pytree

from .. import errors
from .lazy_tensor import LazyTensor, Operation
from .local_files import LocalFiles
from .remote_files import RemoteFiles
from .safetensors_header import StoredTensor, natural_order, read_header

T = TypeVar("T")

N_THREADS = 8
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@runtime_checkable
class Files(Protocol):
    """The files of a checkpoint, here or elsewhere."""

    @property
    def bytes_read(self) -> int: ...
    def exists(self, file: str) -> bool: ...
    def names(self) -> list[str]: ...
    def size(self, file: str) -> int: ...
    def text(self, file: str) -> str: ...
    def read(self, file: str, start: int, stop: int) -> UInt8[Tensor, " n_bytes"]: ...
    def read_ahead(self, ranges: Iterable[tuple[str, int, int]]) -> None: ...


class FileSource(NamedTuple):
    """The values of a tensor in a file.

    Attributes:
        files: The files of the checkpoint.
        stored: Where the values lie.
        name: The tensor's name in the checkpoint.
        path: The entry of that tensor, `(i, …)`; empty for the whole tensor.
    """

    files: Files
    stored: StoredTensor
    name: str
    path: tuple[int, ...] = ()

    def read(self) -> Tensor:
        """The values, as stored."""
        stored = self.stored
        values = self.files.read(stored.file, stored.start, stored.start + stored.n_bytes)
        if stored.start % stored.dtype.itemsize:  # old files may lie at odd positions, which torch cannot view
            values = values.clone()
        return values.view(stored.dtype).reshape(stored.shape)

    def entry(self, index: int) -> "FileSource":
        """One entry of the first dimension."""
        return FileSource(self.files, self.stored.entry(index), self.name, (*self.path, index))


class Checkpoint(Mapping[str, LazyTensor]):
    """The parameters of a checkpoint by their stored names, in natural order.

    Args:
        files: The files.

    Attributes:
        n_bytes: The size of all parameters.

    Raises:
        EmbspaceError: If there is no safetensors file, a shard is missing, truncated or damaged, or its index is.
    """

    def __init__(self, files: Files) -> None:
        self.files = files
        headers = _at_once(lambda shard: _header(files, shard), _shards(files))
        stored = {name: tensor for header in headers for name, tensor in header.items()}
        self._stored = {name: stored[name] for name in sorted(stored, key=natural_order)}

    @classmethod
    def of_folder(cls, folder: Path) -> "Checkpoint":
        """The checkpoint in a folder."""
        return cls(LocalFiles(folder))

    @classmethod
    def of_url(cls, url: str, cache: bool = True) -> "Checkpoint":
        """The checkpoint in a remote folder, such as `hf://organisation/model`, of which only what is needed is fetched.

        Args:
            url: The address of the folder.
            cache: Whether what was fetched stays on disk, in $EMBSPACE_LENS_CACHE or the user's folder of caches.
        """
        return cls(RemoteFiles(url, cache))

    def __getitem__(self, name: str) -> LazyTensor:
        stored = self._stored[name]
        source = FileSource(self.files, stored, name)
        return LazyTensor(source, torch.empty(stored.shape, dtype=stored.dtype, device="meta"))

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __repr__(self) -> str:
        return f"Checkpoint({self.files}: {len(self)} tensors, {self.n_bytes:,} bytes)"

    @property
    def n_bytes(self) -> int:
        return sum(stored.n_bytes for stored in self._stored.values())

    @property
    def n_parameters(self) -> int:
        """How many numbers all parameters hold."""
        return sum(stored.n_bytes // stored.dtype.itemsize for stored in self._stored.values())


def ranges_of(tensor: Tensor | None) -> Iterator[tuple[str, int, int]]:
    """The ranges of files that a lazy tensor's values come from."""
    pending = [tensor.source] if isinstance(tensor, LazyTensor) else []
    while pending:
        source = pending.pop()
        if isinstance(source, FileSource):
            stored = source.stored
            yield stored.file, stored.start, stored.start + stored.n_bytes
        elif isinstance(source, Operation):
            leaves = pytree.tree_leaves(source.args)
            pending += [leaf.source for leaf in leaves if isinstance(leaf, LazyTensor)]


def is_transpose(a: Tensor, b: Tensor) -> bool:
    """Whether two lazy tensors are transposes of each other, made of the same bytes (tied embeddings)."""
    parts = list(ranges_of(a))
    return a.shape == b.shape[::-1] and bool(parts) and parts == list(ranges_of(b))


def _shards(files: Files) -> list[str]:
    """The names of the safetensors files; of a single file and an index, transformers reads the single file."""
    if files.exists(SINGLE):
        return [SINGLE]
    if files.exists(INDEX):
        try:
            shards = sorted(set(json.loads(files.text(INDEX))["weight_map"].values()))
            if any(Path(shard).name != shard for shard in shards):
                raise ValueError(shards)
        except errors.EmbspaceError:  # it cannot be fetched
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as reason:
            raise errors.damaged_shard(INDEX, f"it is not an index ({type(reason).__name__})") from reason
        missing = [shard for shard, exists in zip(shards, _at_once(files.exists, shards)) if not exists]
        if missing:
            raise errors.missing_shard(str(files), missing[0], len(missing), len(shards))
        return shards
    names = files.names()
    if any(name.endswith(PICKLES) for name in names):
        raise errors.weights_not_safe(files)
    raise errors.no_checkpoint(str(files), [name for name in names if name.endswith(".safetensors")])


def _at_once(function: Callable[[str], T], shards: list[str]) -> list[T]:
    """Call a function for all shards in several threads, because each call may wait for a server."""
    with ThreadPoolExecutor(N_THREADS) as threads:
        return list(threads.map(function, shards))


def _header(files: Files, shard: str) -> dict[str, StoredTensor]:
    return read_header(shard, files.size(shard), lambda start, stop: bytes(files.read(shard, start, stop).numpy()))
