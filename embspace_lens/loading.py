"""Loading: from the name of a demo model, a folder or the name of a hub model to a TransformerLens model."""

import functools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from . import errors
from .checkpoints.checkpoint import Checkpoint
from .checkpoints.gguf_checkpoint import gguf_in
from .checkpoints.remote_folder import is_url, public_url
from .demo import catalog
from .files import expand, read_json
from .weights.booting import boot
from .weights.model_size import Offload, offloaded_checkpoint
from .weights.offloading import boot_checkpoint, boot_gguf
from .weights.recorded_models import recorded_host

WRONG_FIELD = re.compile(r"Field '(\w+)' expected (\w+), got \w+ \(value: (.*)\)")
"""The message of transformers for a field of a configuration whose value is of the wrong type."""
KINDS = {"int": "an integer", "float": "a number", "str": "a string", "bool": "true or false"}


def load_model(
    name: str | PathLike[str],
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    offload: Offload = "auto",
    cache: bool = True,
) -> Any:
    """Load a model into a TransformerBridge, or leave its weights in its checkpoint.

    Args:
        name: A demo model (offline), a local folder (of a model, or of a tuned demo classifier), a GGUF file, a hub model, which
            TransformerLens downloads, or the address of a folder: `hf://organisation/model`, `https://…`, `s3://…`.
        device: The device; for demo models the CPU by default, for others the choice of TransformerLens.
        dtype: The precision; float32 by default. Weights that stay in their checkpoint keep a narrower stored precision
            until they are used.
        offload: Whether the weights stay in the checkpoint, and each is read when it is needed. With `"auto"`, only if
            they would take more than 60 % of the free memory in the given precision, with a warning. Those of quantised
            checkpoints, GGUF files and addresses always do.
        cache: Whether what is fetched from an address stays on disk, in `$EMBSPACE_LENS_CACHE` (by default, the folder
            `embspace_lens` in the user's folder of caches) up to `$EMBSPACE_LENS_CACHE_GB` (50); otherwise it is in a temporary
            folder until the process ends.

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
    options: dict[str, Any] = {"device": device, "dtype": dtype or torch.float32}
    on_cpu: dict[str, Any] = options | {"device": device or "cpu"}
    if str(name) in catalog.names():
        load = catalog.load_offloaded if offload is True else catalog.load
        return load(str(name), **on_cpu)
    if is_url(str(name)):
        if offload is False:
            raise errors.address_not_loaded(public_url(str(name)))
        with _plain_errors(public_url(str(name))):
            return boot_checkpoint(Checkpoint.of_url(str(name), cache), public_url(str(name)), **options)
    path = expand(name)
    if catalog.is_classifier(path):
        if offload is True:
            raise errors.no_offloaded_difference(path)
        return catalog.load_tuned(path, **on_cpu)[0]
    if path.is_file() and path.suffix == ".gguf":
        return _load_gguf(path, offload, options)
    if path.is_file():
        raise errors.model_is_file(path)
    if path.is_dir() and not any(path.glob("*.safetensors")) and (file := gguf_in(path)) is not None:
        return _load_gguf(file, offload, options)
    if path.is_dir() and not (path / "config.json").is_file():
        raise errors.no_config(path)
    if not path.exists() and (path.is_absolute() or str(name).startswith(".")):
        raise errors.no_such_folder(path)
    if path.is_dir():
        _check_config(path)
    with _plain_errors(name, path):
        checkpoint = offloaded_checkpoint(str(name), path, offload, cache, dtype or torch.float32, device)
        if checkpoint is not None:
            return boot_checkpoint(checkpoint, str(path) if path.is_dir() else str(name), **options)
        return boot(str(path) if path.is_dir() else str(name), **options)


def open_model(name: str, load: Callable[..., Any], *, device: str | None, offload: Offload, cache: bool) -> Any:
    """As `load_model`, for processes that read a few weights: transformers and TransformerLens are not imported before they are needed.

    Demo models and folders with safetensors, on the CPU, are recorded when they are booted for the first time (see
    `recorded_host`).

    Args:
        name: As for `load_model`.
        load: `load_model` with these arguments.
        device: As for `load_model`.
        offload: As for `load_model`; with False, no record is made or used.
        cache: As for `load_model`; with False, no record is made or used.

    Returns:
        The model, or a `Host` with its weights. Both are arguments of `EmbeddingLens`.

    Raises:
        EmbspaceError: As `load_model`.
    """
    folders = _recorded_folders(name, device) if cache and offload is not False else []

    @functools.cache  # it warns once
    def is_offloaded() -> bool:
        if name in catalog.names():
            return offload is True
        return offloaded_checkpoint(name, folders[0], offload, cache, torch.float32, device) is not None

    host = recorded_host(name, folders, load, is_offloaded) if folders else None
    return load() if host is None else host


def _recorded_folders(name: str, device: str | None) -> list[Path]:
    """The folders of the checkpoint and of the tokenizer of a model that may be recorded; empty for other models."""
    if device not in (None, "cpu") or is_url(name):
        return []
    if name in catalog.names():
        return catalog.folders(name)
    if device is None and (torch.cuda.is_available() or torch.backends.mps.is_available()):
        return []
    path = expand(name)
    files = {"config.json", "difference.json", "adapter_config.json"}
    return [path] if {file for file in files if (path / file).is_file()} == {"config.json"} else []


def _load_gguf(path: Path, offload: Offload, options: dict[str, Any]) -> Any:
    if offload is False:
        raise errors.quantized_not_loaded(path)
    with _plain_errors(path, path):
        return boot_gguf(path, **options)


@contextmanager
def _plain_errors(name: str | PathLike[str], path: Path | None = None) -> Iterator[None]:
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
            raise errors.wrong_field(name, field[1], value, KINDS[field[2]]) from error
        reason = f"{type(error).__name__}: {shorten(str(error), 240)}"
        if path is None or path.exists():
            raise errors.damaged_model(name, reason) from error
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
