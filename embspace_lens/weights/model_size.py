"""Whether a model is loaded, or stays in its checkpoint: its size in memory beside the memory that is free."""

import json
import warnings
from pathlib import Path
from typing import Literal

import psutil
import torch

from .. import errors
from ..checkpoints.checkpoint import INDEX, SINGLE, Checkpoint
from ..checkpoints.dequantization import format_name
from ..checkpoints.local_files import LocalFiles

Offload = bool | Literal["auto"]

FREE_SHARE = 0.6
"""The share of the free memory that a loaded model may take; larger ones stay in their checkpoint by default."""


def offloaded_checkpoint(
    name: str, folder: Path, offload: Offload, cache: bool, dtype: torch.dtype, device: str | None = None
) -> Checkpoint | None:
    """The checkpoint in which a model's weights stay; None for a model that is to be loaded.

    Args:
        name: The folder, or the name of a hub model.
        folder: The folder, whether it exists or not.
        offload: Whether the weights stay there; `"auto"` by their size. Those of a quantised checkpoint always do.
        cache: Whether what is fetched stays on disk.
        dtype: The precision in which they would be loaded.
        device: The device on which they would be.

    Raises:
        EmbspaceError: If the checkpoint is damaged; or if a quantised model is to be loaded, or a hub model cannot be found.
    """
    is_here = folder.is_dir()
    checkpoint = _in_folder(folder, offload) if is_here else _on_the_hub(name, offload, cache)
    if checkpoint is None:
        return None
    if is_quantized(checkpoint):
        if offload is False:
            raise errors.quantized_not_loaded(name)
        return checkpoint
    if offload != "auto":
        return checkpoint if offload else None
    needed, free = checkpoint.n_parameters * dtype.itemsize, free_memory(device)
    if needed <= FREE_SHARE * free:
        return None
    place = "on disk" if isinstance(checkpoint.files, LocalFiles) else "on the hub"
    warnings.warn(
        f"{folder.name} would take {needed / 1e9:.1f} GB of {free / 1e9:.1f} GB of free memory: its weights stay {place}, and "
        "each is read when it is needed. offload=False (--no-offload) loads it.",
        stacklevel=3,
    )
    return checkpoint


def is_quantized(checkpoint: Checkpoint) -> bool:
    """Whether the configuration beside a checkpoint names a quantisation."""
    return bool(format_name(json.loads(checkpoint.files.text("config.json"))))


def free_memory(device: str | None = None) -> int:
    """The free memory of a CUDA device, or of this machine or container, in bytes."""
    if device is not None and device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    limit, used = (Path("/sys/fs/cgroup", file) for file in ("memory.max", "memory.current"))
    try:
        return min(free, max(0, int(limit.read_text()) - int(used.read_text())))
    except (OSError, ValueError):  # no control group, or one without a limit
        return free


def _in_folder(folder: Path, offload: Offload) -> Checkpoint | None:
    """The checkpoint in a folder; None if it has no safetensors and may be loaded by transformers."""
    has_index = any((folder / file).is_file() for file in (INDEX, SINGLE))
    return Checkpoint.of_folder(folder) if has_index or offload is True else None


def _on_the_hub(name: str, offload: Offload, cache: bool) -> Checkpoint | None:
    """The checkpoint of a hub model, which may be downloaded; None if transformers is to find it, or to say what is wrong."""
    from huggingface_hub import constants, try_to_load_from_cache

    if offload is False:
        return None
    if "/" not in name:
        if offload is True:
            raise errors.no_hub_address(name)
        return None
    configuration = try_to_load_from_cache(name, "config.json")
    if isinstance(configuration, str):
        try:
            return Checkpoint.of_folder(Path(configuration).parent)
        except errors.EmbspaceError:  # not all of it was downloaded
            pass
    try:
        if constants.HF_HUB_OFFLINE:
            raise errors.hub_is_offline(name)
        return Checkpoint.of_url(f"hf://{name}", cache)
    except errors.EmbspaceError:
        if offload is True:
            raise
        return None
