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

Offload = bool | Literal["auto"]

FREE_SHARE = 0.6
"""The share of the free memory that a loaded model may take; larger ones stay in their checkpoint by default."""


def offloaded_checkpoint(
    name: str, folder: Path, offload: Offload, cache: bool, dtype: torch.dtype
) -> Checkpoint | None:
    """The checkpoint in which a model's weights stay; None for a model that is to be loaded.

    Args:
        name: The folder, or the name of a hub model.
        folder: The folder, whether it exists or not.
        offload: Whether the weights stay there; `"auto"` by their size.
        cache: Whether what is fetched stays on disk.
        dtype: The precision in which they would be loaded.

    Raises:
        EmbspaceError: If the checkpoint is damaged; or if a quantised model, or a hub model without an organisation, is
            given with an option that it does not allow.
    """
    is_here = folder.is_dir()
    if is_here and offload != True and not any((folder / file).is_file() for file in (INDEX, SINGLE)):  # noqa: E712
        return None
    if is_here and (format_name(json.loads((folder / "config.json").read_text(encoding="utf-8-sig")))):
        if offload is False:
            raise errors.quantized_not_loaded(folder)
        return Checkpoint.of_folder(folder)
    if offload is False:
        return None
    checkpoint = Checkpoint.of_folder(folder) if is_here else _on_the_hub(name, offload, cache)
    if checkpoint is None or offload is True:
        return checkpoint
    needed, free = checkpoint.n_parameters * dtype.itemsize, psutil.virtual_memory().available
    if needed <= FREE_SHARE * free:
        return None
    place = "on disk" if is_here else "on the hub"
    warnings.warn(
        f"{folder.name} would take {needed / 1e9:.1f} GB of {free / 1e9:.1f} GB of free memory: its weights stay {place}, and "
        "each is read when it is needed. offload=False (--no-offload) loads it.",
        stacklevel=3,
    )
    return checkpoint


def _on_the_hub(name: str, offload: Offload, cache: bool) -> Checkpoint | None:
    """The checkpoint of a hub model; None for one that was downloaded before, or whose files cannot be listed."""
    from huggingface_hub import try_to_load_from_cache

    if "/" not in name:
        if offload is True:
            raise errors.no_hub_address(name)
        return None
    configuration = try_to_load_from_cache(name, "config.json")
    downloaded = Path(configuration).parent if isinstance(configuration, str) else None
    if downloaded is not None and any((downloaded / file).exists() for file in (INDEX, SINGLE)):
        return Checkpoint.of_folder(downloaded)
    try:
        return Checkpoint.of_url(f"hf://{name}", cache)
    except errors.EmbspaceError:
        if offload is True:
            raise
        return None  # transformers says what is wrong
