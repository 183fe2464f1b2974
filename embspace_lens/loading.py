"""Loading: from the name of a demo model, a folder or the name of a hub model to a TransformerLens model."""

from os import PathLike
from textwrap import shorten
from typing import Any

import torch

from . import errors
from .demo import catalog
from .files import expand
from .weights.booting import boot


def load_model(name: str | PathLike[str], *, device: str | None = None, dtype: torch.dtype | None = None) -> Any:
    """Load a model into a TransformerBridge.

    Args:
        name: A demo model (offline), a local folder (of a model, or of a tuned demo classifier), or a hub model, which
            TransformerLens downloads.
        device: The device; for demo models the CPU by default, for others the choice of TransformerLens.
        dtype: The precision; float32 by default.

    Returns:
        The model in evaluation mode, with its tokenizer.

    Raises:
        EmbspaceError: If there is no such model or device, or the model cannot be loaded.
    """
    dtype = dtype or torch.float32
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as reason:
            raise errors.no_device(device, shorten(str(reason), 120)) from reason
    if str(name) in catalog.names():
        return catalog.load(str(name), device=device or "cpu", dtype=dtype)
    folder = expand(name)
    if catalog.is_classifier(folder):
        model, _ = catalog.load_tuned(folder, device=device or "cpu", dtype=dtype)
        return model
    if folder.is_file():
        raise errors.model_is_file(folder)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise errors.no_config(folder)
    if not folder.exists() and (folder.is_absolute() or str(name).startswith(".")):
        raise errors.no_such_folder(folder)
    try:
        return boot(str(folder) if folder.is_dir() else str(name), device=device, dtype=dtype)
    except (errors.EmbspaceError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers raises exceptions of any class for damaged files and wrong configurations
        if type(error).__name__ == "UnpicklingError":
            raise errors.weights_not_safe(name) from error
        reason = f"{type(error).__name__}: {shorten(str(error), 240)}"
        if folder.is_dir():
            raise errors.damaged_model(folder, reason) from error
        raise errors.unknown_model(name, catalog.names(), reason) from error
