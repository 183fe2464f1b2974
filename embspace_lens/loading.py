"""Loading: from the name of a demo model, a folder or the name of a hub model to a TransformerLens model."""

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import psutil
import torch

from . import errors
from .checkpoints.checkpoint import INDEX, SINGLE, Checkpoint
from .demo import catalog
from .files import expand, read_json
from .weights.booting import boot, boot_offloaded

Offload = bool | Literal["auto"]

FREE_SHARE = 0.6
"""The share of the free memory that a loaded model may take; larger ones stay in their checkpoint by default."""

WRONG_FIELD = re.compile(r"Field '(\w+)' expected (\w+), got \w+ \(value: (.*)\)")
"""The message of transformers for a field of a configuration whose value is of the wrong type."""
KINDS = {"int": "an integer", "float": "a number", "str": "a string", "bool": "true or false"}


def load_model(
    name: str | PathLike[str],
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    offload: Offload = "auto",
) -> Any:
    """Load a model into a TransformerBridge, or leave its weights in its checkpoint.

    Args:
        name: A demo model (offline), a local folder (of a model, or of a tuned demo classifier), or a hub model, which
            TransformerLens downloads.
        device: The device; for demo models the CPU by default, for others the choice of TransformerLens.
        dtype: The precision; float32 by default. Weights that stay in their checkpoint have the precision stored there.
        offload: Whether the weights stay in the checkpoint, and each is read when it is needed. With `"auto"`, only if
            they would take more than 60 % of the free memory in the given precision; a warning says so.

    Returns:
        The model in evaluation mode, with its tokenizer.

    Raises:
        EmbspaceError: If there is no such model or device, or the model cannot be loaded.
    """
    if offload not in (True, False, "auto"):
        raise errors.choice("offload", str(offload), ["auto", "True", "False"])
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as reason:
            raise errors.no_device(device, shorten(str(reason), 120)) from reason
    if str(name) in catalog.names():
        if offload is True:
            return catalog.load_offloaded(str(name), device=device or "cpu", dtype=dtype)
        return catalog.load(str(name), device=device or "cpu", dtype=dtype or torch.float32)
    folder = expand(name)
    if catalog.is_classifier(folder):
        if offload is True:
            raise errors.no_offloaded_difference(folder)
        return catalog.load_tuned(folder, device=device or "cpu", dtype=dtype or torch.float32)[0]
    if folder.is_file():
        raise errors.model_is_file(folder)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise errors.no_config(folder)
    if not folder.exists() and (folder.is_absolute() or str(name).startswith(".")):
        raise errors.no_such_folder(folder)
    if folder.is_dir():
        _check_config(folder)
    with _plain_errors(name, folder):
        checkpoint = _checkpoint(folder, offload, dtype or torch.float32)
        if checkpoint is not None:
            return boot_offloaded(str(folder), checkpoint, device=device, dtype=dtype or torch.float32)
        return boot(str(folder) if folder.is_dir() else str(name), device=device, dtype=dtype or torch.float32)


def _checkpoint(folder: Path, offload: Offload, dtype: torch.dtype) -> Checkpoint | None:
    """The checkpoint whose weights are read one by one; None for a model that is to be loaded."""
    if offload is False or not folder.is_dir():
        return None
    if offload == "auto" and not any((folder / file).is_file() for file in (INDEX, SINGLE)):
        return None
    checkpoint = Checkpoint.of_folder(folder)
    if offload == "auto":
        needed, free = checkpoint.n_parameters * dtype.itemsize, psutil.virtual_memory().available
        if needed <= FREE_SHARE * free:
            return None
        warnings.warn(
            f"{folder.name} would take {needed / 1e9:.1f} GB of {free / 1e9:.1f} GB of free memory: its weights stay on disk, and "
            "each is read when it is needed. offload=False (--no-offload) loads it.",
            stacklevel=2,
        )
    return checkpoint


@contextmanager
def _plain_errors(name: str | PathLike[str], folder: Path) -> Iterator[None]:
    """Raise errors of this package for the exceptions of transformers, which are of any class."""
    try:
        yield
    except (errors.EmbspaceError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "UnpicklingError":
            raise errors.weights_not_safe(name) from error
        if (field := WRONG_FIELD.search(str(error))) and field[2] in KINDS:
            value = "null" if field[3] == "None" else field[3]
            raise errors.wrong_field(folder, field[1], value, KINDS[field[2]]) from error
        reason = f"{type(error).__name__}: {shorten(str(error), 240)}"
        if folder.is_dir():
            raise errors.damaged_model(folder, reason) from error
        raise errors.unknown_model(name, catalog.names(), reason) from error


def _check_config(folder: Path) -> None:
    """Check what transformers does not check in a config.json.

    Raises:
        EmbspaceError: If it is no JSON object, its model type is no string, or its dtype does not exist.
    """
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise errors.config_is_no_object(folder, shorten(json.dumps(config), 60))
    if not isinstance(config.get("model_type", ""), str):
        raise errors.wrong_field(folder, "model_type", json.dumps(config["model_type"]), "a string")
    for field in ("dtype", "torch_dtype"):
        dtype = config.get(field)
        if dtype is None or dtype == "auto" or isinstance(dtype, dict):
            continue
        name = str(dtype).removeprefix("torch.")
        if not isinstance(getattr(torch, name, None), torch.dtype):
            raise errors.wrong_field(folder, field, repr(dtype), "the name of a dtype, such as 'float32'")
