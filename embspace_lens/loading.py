"""Loading: from the name of a demo model, a folder or the name of a hub model to a TransformerLens model."""

import json
import re
from os import PathLike
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from . import errors
from .demo import catalog
from .files import expand, read_json
from .weights.booting import boot

WRONG_FIELD = re.compile(r"Field '(\w+)' expected (\w+), got \w+ \(value: (.*)\)")
"""The message of transformers for a field of a configuration whose value is of the wrong type."""
KINDS = {"int": "an integer", "float": "a number", "str": "a string", "bool": "true or false"}


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
    if folder.is_dir():
        _check_config(folder)
    try:
        return boot(str(folder) if folder.is_dir() else str(name), device=device, dtype=dtype)
    except (errors.EmbspaceError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers raises exceptions of any class for damaged files and wrong configurations
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
