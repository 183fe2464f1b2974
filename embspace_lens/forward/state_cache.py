"""Tensors kept on disk batch by batch, so that long work can be stopped, gone on with, and read again."""

import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import EmbspaceError
from ..files import write_whole


class Shards:
    """A folder of safetensors files, one for each batch; each says what it was made from.

    Args:
        folder: Where they are kept; made if need be.
        source: What all of them are made from, as text: a model, layers.

    Raises:
        EmbspaceError: If the folder cannot be made.
    """

    def __init__(self, folder: str | os.PathLike[str], source: str) -> None:
        self.folder, self.source = Path(folder).expanduser(), source
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as reason:
            raise EmbspaceError(f"{self.folder} cannot be made a folder: {reason.strerror or reason}.") from reason

    def _path(self, number: int) -> Path:
        return self.folder / f"states-{number:06d}.safetensors"

    def _key(self, batch: Tensor) -> str:
        text = f"{self.source}|{tuple(batch.shape)}|".encode()
        return sha256(text + batch.cpu().contiguous().numpy().tobytes()).hexdigest()

    def get(self, number: int, batch: Tensor) -> dict[str, Tensor] | None:
        """What was kept of a batch; None if there is nothing yet.

        Raises:
            EmbspaceError: If the file is damaged, or was made from other tokens, layers or another model.
        """
        path = self._path(number)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                key = (file.metadata() or {}).get("key")
                if key != self._key(batch):
                    raise EmbspaceError(
                        f"{path} was made from other texts, other layers or another model. Name another folder, or remove it."
                    )
                return {name: file.get_tensor(name).clone() for name in file.keys()}
        except (SafetensorError, OSError) as reason:
            raise EmbspaceError(f"{path} cannot be read ({reason}). Remove it, and it is made again.") from reason

    def put(self, number: int, batch: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Keep what was made of a batch; the file is there whole or not at all.

        Raises:
            EmbspaceError: If it cannot be written; what was kept before stays.
        """
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_whole(self._path(number), save(kept, metadata={"key": self._key(batch)}))
