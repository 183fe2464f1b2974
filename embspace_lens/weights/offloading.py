"""Offloading: models whose parameters stay in their checkpoint, and are read when they are needed."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .. import errors
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.dequantization import dequantized, format_name, unquantized_config
from ..checkpoints.gguf_checkpoint import open_gguf
from ..checkpoints.lazy_tensor import LazyTensor
from ..checkpoints.local_files import LocalFiles
from ..checkpoints.small_files import fetch_small_files
from .booting import CheckedClass, config_overrides, no_installation


def boot_offloaded(
    name: str, checkpoint: Mapping[str, LazyTensor], *, shown_as: str | None = None, **arguments: Any
) -> Any:
    """Boot a TransformerBridge whose parameters are read from a checkpoint when they are needed.

    transformers renames and merges the checkpoint's tensors as if it loaded them, and TransformerLens splits them, but they are
    lazy, so that nothing is read.

    Args:
        name: A folder with the configuration and the tokenizer.
        checkpoint: The parameters: a `Checkpoint`, a `GgufCheckpoint`, or the result of `dequantized`.
        shown_as: What error messages call the model; its name by default.
        **arguments: Those of `TransformerBridge.boot_transformers`. Weights are moved to the device after they are read.

    Raises:
        EmbspaceError: As `boot`.
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.utilities.devices import get_device

    arguments = config_overrides(name) | arguments
    device = torch.device(arguments.pop("device", None) or get_device())
    with no_installation():
        model = TransformerBridge.boot_transformers(
            name, model_class=CheckedClass(checkpoint, shown_as), device="cpu", **arguments
        )
    model.requires_grad_(False).eval()
    for parameter in model.parameters():
        if isinstance(parameter, LazyTensor):
            parameter.place = device
    model.__dict__["checkpoint"] = checkpoint
    return model


def boot_checkpoint(checkpoint: Checkpoint, name: str, **arguments: Any) -> Any:
    """Boot a TransformerBridge whose parameters are read from a checkpoint, and dequantised, when they are needed.

    Args:
        checkpoint: The files, here or behind a network. The configuration and the tokenizer lie beside them.
        name: The folder, the hub model, or the address; its last part is the model's name.
        **arguments: Those of `TransformerBridge.boot_transformers`.

    Raises:
        EmbspaceError: As `boot`; if the checkpoint is quantised in a format that is not read; or if there is an adapter.
    """
    files = checkpoint.files
    if files.exists("adapter_config.json"):
        raise errors.adapter_not_read(name)
    if isinstance(files, LocalFiles) and not format_name(json.loads(files.text("config.json"))):
        model = boot_offloaded(str(files.folder), checkpoint, shown_as=name, **arguments)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            folder = fetch_small_files(files, Path(temporary, "model"))
            config = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
            (folder / "config.json").write_text(json.dumps(unquantized_config(config)))
            model = boot_offloaded(str(folder), dequantized(checkpoint, config), shown_as=name, **arguments)
    model.cfg.model_name = name.rstrip("/").rpartition("/")[2].partition("@")[0] if "://" in name else name
    return model


def boot_gguf(path: Path, **arguments: Any) -> Any:
    """Boot a TransformerBridge whose parameters are read from a GGUF file, and dequantised, when they are needed.

    Args:
        path: The file, or one of the files of a split checkpoint. Its metadata gives the configuration and the tokenizer.
        **arguments: Those of `TransformerBridge.boot_transformers`.

    Raises:
        EmbspaceError: As `boot` and `open_gguf`.
    """
    checkpoint = open_gguf(path)
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder, path.stem)  # the model's name is that of its folder
        checkpoint.save_configuration(named)
        model = boot_offloaded(str(named), checkpoint, shown_as=str(path), **arguments)
    model.cfg.model_name = path.stem
    if checkpoint.rotary_factors is not None:
        for module in model.original_model.modules():
            for name in {"inv_freq", "original_inv_freq"} & module._buffers.keys():
                frequencies: Any = module._buffers[name]
                module._buffers[name] = frequencies / checkpoint.rotary_factors.to(frequencies.device)
    return model
