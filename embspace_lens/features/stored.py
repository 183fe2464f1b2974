"""The parts of a stored dictionary of features, and the tensors of its files."""

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile, is_zipfile

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .. import errors
from ..checkpoints.checkpoint import FileSource
from ..checkpoints.local_files import LocalFiles
from ..checkpoints.safetensors_header import read_header
from ..files import read_json
from .encoders import Activation, Codes

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Parts:
    """The arguments of `Features`, as a file states them."""

    decoder: Tensor
    encoder: Tensor | None = None
    name: str = "features"
    layer: int | None = None
    hook: str = ""
    labels: Sequence[str] | None = None
    output_hook: str = ""
    activation: Codes | None = None
    decoder_bias: Tensor | None = None
    skip: Tensor | None = None
    trained_on: Literal["raw", "centred", ""] = ""
    notes: tuple[str, ...] = ()


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of one file, in their stored precision.

    Those of a safetensors file are mapped into memory: their values are read when they are used. An npz file is read into
    memory.

    Args:
        path: The file.
        is_lowercase: Whether names are compared without regard to case.

    Raises:
        EmbspaceError: If the file is missing, damaged, or contains Python objects.
    """

    def __init__(self, path: Path, is_lowercase: bool = False) -> None:
        if not path.is_file():
            raise errors.missing_features_file(path.parent, path.name)
        self.path = path
        tensors = _npz(path) if path.suffix == ".npz" else _safetensors(path)
        self._tensors = {name.lower(): each for name, each in tensors.items()} if is_lowercase else tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def matrix(self, name: str, n_dims: int = 2) -> Tensor:
        """A tensor with this number of dimensions, none of which is 0.

        Raises:
            EmbspaceError: If it is missing, or has another shape or type.
        """
        if name not in self:
            raise errors.missing_feature_tensor(self.path, name, sorted(self))
        tensor = self[name]
        if tensor.dtype not in DTYPES:
            raise errors.feature_dtype(self.path, name, tensor.dtype)
        if tensor.ndim != n_dims or not tensor.numel():
            raise errors.stored_shape(self.path, name, tuple(tensor.shape), f"{n_dims} dimensions")
        return tensor

    def get_shaped(self, name: str, *shape: int) -> Tensor:
        """A tensor of this shape. Vectors must be finite; matrices are checked by `Features`.

        Raises:
            EmbspaceError: If it is missing, or has another shape.
        """
        tensor = self.matrix(name, len(shape))
        if tuple(tensor.shape) != shape:
            raise errors.stored_shape(self.path, name, tuple(tensor.shape), str(list(shape)))
        if tensor.ndim == 1 and not tensor.isfinite().all():
            raise errors.not_finite(f"{name} of {self.path}")
        return tensor

    def get_oriented(self, name: str, n_rows: int, n_columns: int) -> Float[Tensor, "n_rows n_columns"]:
        """A matrix of this shape, which may be stored transposed. A square matrix is taken as it is.

        Raises:
            EmbspaceError: If it is missing, or has another shape.
        """
        matrix = self.matrix(name)
        is_transposed = tuple(matrix.shape) == (n_columns, n_rows) and n_rows != n_columns
        return matrix.T if is_transposed else self.get_shaped(name, n_rows, n_columns)

    def check_widths(self, encoder: str, decoder: str) -> None:
        """Check that features are read and written in vectors of one width, the residual stream's.

        Raises:
            EmbspaceError: If the widths differ.
        """
        d_in, (n, d_out) = len(self[encoder]), self[decoder].shape
        if d_in != d_out:
            raise errors.stored_shape(self.path, decoder, (n, d_out), str([n, d_in]))

    def refuse_others(self, known: Sequence[str]) -> None:
        """Check that no tensor of unknown meaning is stored.

        Raises:
            EmbspaceError: If there is one.
        """
        others = sorted(set(self) - set(known))
        if others:
            raise errors.unexpected_feature_tensors(self.path, others, known)


def _safetensors(path: Path) -> dict[str, Tensor]:
    files = LocalFiles(path.parent)
    try:
        size = files.size(path.name)
    except OSError as reason:
        raise errors.not_readable(path, reason.strerror or reason) from reason
    stored = read_header(path.name, size, lambda start, stop: bytes(files.read(path.name, start, stop).numpy()))
    return {name: FileSource(files, each, name).read() for name, each in stored.items()}


def _npz(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            if not is_zipfile(file):
                raise errors.damaged_shard(path, "it is not an npz file")
            file.seek(0)
            with np.load(file) as contents:
                arrays = {name: contents[name] for name in contents.files}
    except errors.EmbspaceError:
        raise
    except (OSError, BadZipFile, EOFError, KeyError, zlib.error) as reason:
        raise errors.damaged_shard(path, reason) from reason
    except ValueError as reason:  # numpy refuses arrays of Python objects, unless it is asked for them
        raise errors.features_not_safe(path) from reason
    try:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    except (ValueError, TypeError) as reason:
        raise errors.not_readable(path, reason) from reason


class Config:
    """The fields of a dictionary's configuration file, checked when they are read."""

    def __init__(self, path: Path, fields: Any) -> None:
        if not isinstance(fields, dict):
            raise errors.not_a_configuration(path)
        self.path, self.fields = path, fields

    @classmethod
    def read(cls, path: Path) -> "Config":
        """Read a JSON file.

        Raises:
            EmbspaceError: If it is missing, damaged, or no JSON object.
        """
        if not path.is_file():
            raise errors.missing_features_file(path.parent, path.name)
        return cls(path, read_json(path))

    def get(self, *names: str) -> Any:
        """The first of these fields that is present and not null; None if there is none."""
        return next((self.fields[name] for name in names if self.fields.get(name) is not None), None)

    def text(self, *names: str) -> str:
        """The first of these fields, which must be a string; empty if there is none."""
        value = self.get(*names)
        if value is not None and not isinstance(value, str):
            raise errors.feature_config(self.path, names[0], value, "a string")
        return value or ""

    def flag(self, name: str, default: bool) -> bool:
        """A field that must be true or false."""
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise errors.feature_config(self.path, name, value, "true or false")
        return default if value is None else value

    def count(self, *names: str) -> int | None:
        """The first of these fields, which must be a whole number of 0 or more."""
        value = self.get(*names)
        if value is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value < math.inf or value != int(value):
            raise errors.feature_config(self.path, names[0], value, "a whole number")
        return int(value)

    def needed_count(self, *names: str) -> int:
        """The first of these fields, which must be a whole number of 1 or more."""
        value = self.count(*names)
        if not value:
            raise errors.feature_config(self.path, names[0], value, "a whole number of 1 or more")
        return value

    def check_size(self, name: str, actual: int) -> None:
        """Check that a size, if it is stated, agrees with the tensors."""
        value = self.count(name)
        if value is not None and value != actual:
            raise errors.feature_config(self.path, name, value, f"{actual}, the size of the stored tensors")


def jumprelu(bias: Tensor | None, threshold: Tensor, has_relu: bool, **options: Any) -> Activation:
    """The activation for a threshold; without a relu, it is JumpReLU only if no threshold is below 0."""
    kind = "jumprelu" if has_relu or bool((threshold >= 0).all()) else "threshold"
    return Activation(kind, bias, threshold=threshold, **options)
