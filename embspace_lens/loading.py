"""Loading: names, folders and checkpoints → models."""

from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from . import errors
from .demo import catalog
from .weights.booting import boot


def load_model(name: str | PathLike[str], *, device: str | None = None, dtype: torch.dtype | None = None) -> Any:
    """Load a demo model, a local folder, or a hub model into a TransformerBridge.

    Raises:
        EmbspaceError: If it is none of them, or cannot be loaded.
    """
    if str(name) in catalog.names():
        return catalog.load(str(name), device=device or "cpu", dtype=dtype or torch.float32)
    folder = Path(name).expanduser()
    if catalog.is_classifier(folder):
        return catalog.load_tuned(folder, device=device or "cpu", dtype=dtype or torch.float32)[0]
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise errors.EmbspaceError(f"{folder} holds no config.json, so it is not a model's folder.")
    if not folder.exists() and (folder.is_absolute() or str(name).startswith(".")):
        raise errors.EmbspaceError(f"{folder} does not exist.")
    where = str(folder) if folder.is_dir() else str(name)
    try:
        return boot(where, device=device, dtype=dtype or torch.float32)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as reason:
        first_line = (str(reason).splitlines() or [""])[0]
        told = f"{type(reason).__name__}: {first_line}"
        if folder.is_dir():
            raise errors.EmbspaceError(
                f"{folder} could not be loaded ({told}). Is a file damaged or missing?"
            ) from reason
        raise errors.EmbspaceError(
            f"{name} could not be loaded: it is no demo model ({', '.join(catalog.names())}), no local folder, and the hub did not "
            f"give it ({told})."
        ) from reason
