"""Tensors of batches on disk, so that long work can be interrupted, resumed and read again."""

import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .. import errors
from ..files import make_folder, write_whole


class StateCache:
    """A folder of safetensors files, one per batch; each file holds a digest of its batch and of `source`.

    Args:
        folder: The folder; it is created if it does not exist.
        source: A text that identifies what the tensors were computed from, besides the batch: the model and the layers.

    Raises:
        EmbspaceError: If the folder cannot be created.
    """

    def __init__(self, folder: str | os.PathLike[str], source: str) -> None:
        self.folder, self.source = make_folder(folder), source

    def get(self, index: int, tokens: Int[Tensor, "batch pos"]) -> dict[str, Tensor] | None:
        """The tensors of a batch; None if they are not in the cache.

        Args:
            index: The batch's index.
            tokens: The batch's tokens.

        Raises:
            EmbspaceError: If the file is damaged, or holds tensors of other tokens, other layers or another model.
        """
        path = self._path(index)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("key") != self._key(tokens):
                    raise errors.other_states(path)
                return {name: file.get_tensor(name).clone() for name in file.keys()}
        except (SafetensorError, OSError) as reason:
            raise errors.damaged_states(path, reason) from reason

    def put(self, index: int, tokens: Int[Tensor, "batch pos"], tensors: Mapping[str, Tensor]) -> None:
        """Store the tensors of a batch; an interruption leaves no incomplete file.

        Raises:
            EmbspaceError: If the file cannot be written. Files written before are unchanged.
        """
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_whole(self._path(index), save(on_cpu, metadata={"key": self._key(tokens)}))

    def _path(self, index: int) -> Path:
        return self.folder / f"states-{index:06d}.safetensors"

    def _key(self, tokens: Int[Tensor, "batch pos"]) -> str:
        text = f"{self.source}|{tuple(tokens.shape)}|".encode()
        return sha256(text + tokens.cpu().contiguous().numpy().tobytes()).hexdigest()
