"""Finished contexts of `saliency` in a file, from which an interrupted run resumes."""

import os
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from .. import errors
from ..files import write_whole

SECONDS = 60  # the minimum time between two writes
DIGEST = 16  # bytes of a context's key


class SaliencyCheckpoint:
    """The saliency of finished contexts, by keys that depend on all that a result depends on.

    A result of another model, dictionary, text or option has another key. Such results are ignored, and kept in the file.

    Args:
        path: The file; read if it exists. Without a path, nothing is read or written.

    Raises:
        EmbspaceError: If the file is not such a checkpoint.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else Path(path).expanduser()
        self.results: dict[bytes, np.ndarray] = {}
        self.is_saved, self.save_time = True, time.monotonic()
        if self.path is None or not self.path.exists():
            return
        try:
            tensors = load_file(self.path)
            keys, lengths, values = (tensors[name].numpy() for name in ("keys", "lengths", "saliency"))
            parts = np.split(values, np.cumsum(lengths)[:-1])
            self.results = {key.tobytes(): part for key, part in zip(keys, parts)}
        except (OSError, KeyError, ValueError, SafetensorError) as reason:
            raise errors.not_a_saliency_checkpoint(self.path, reason) from reason

    def add(self, key: bytes, saliency: np.ndarray) -> None:
        """Add a finished context, and write the file if the last time is long enough ago."""
        self.results[key] = saliency.astype(np.float32)
        self.is_saved = False
        if time.monotonic() - self.save_time > SECONDS:
            self.save()

    def save(self) -> None:
        """Write the file, if a path was given and a context was added since the last time."""
        if self.path is None or self.is_saved:
            return
        keys = np.frombuffer(b"".join(self.results), dtype=np.uint8).reshape(-1, DIGEST)
        lengths = np.array([len(part) for part in self.results.values()], dtype=np.int64)
        tensors = {"keys": keys.copy(), "lengths": lengths, "saliency": np.concatenate([*self.results.values()])}
        write_whole(self.path, save({name: torch.from_numpy(array) for name, array in tensors.items()}))
        self.is_saved, self.save_time = True, time.monotonic()
