"""Offloading: models whose parameters stay in their checkpoint, and are read when they are needed."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
        **arguments: Those of `TransformerBridge.boot_transformers`.

    Raises:
        EmbspaceError: As `boot`.
    """
    from transformer_lens.model_bridge import TransformerBridge

    arguments = config_overrides(name) | arguments
    with no_installation():
        model = TransformerBridge.boot_transformers(name, model_class=CheckedClass(checkpoint, shown_as), **arguments)
    model.requires_grad_(False).eval()
    model.__dict__["checkpoint"] = checkpoint
    return model


def boot_checkpoint(checkpoint: Checkpoint, location: str, **arguments: Any) -> Any:
    """Boot a TransformerBridge whose parameters are read from a checkpoint, and dequantised, when they are needed.

    Args:
        checkpoint: The files, here or behind a network. The configuration and the tokenizer lie beside them.
        location: The folder or its address; its last part is the model's name.
        **arguments: Those of `TransformerBridge.boot_transformers`.

    Raises:
        EmbspaceError: As `boot`; or if the checkpoint is quantised in a format that is not read.
    """
    if isinstance(checkpoint.files, LocalFiles) and not format_name(json.loads(checkpoint.files.text("config.json"))):
        return boot_offloaded(location, checkpoint, **arguments)
    with tempfile.TemporaryDirectory() as temporary:
        name = location.rstrip("/").rpartition("/")[2].partition("@")[0]
        folder = fetch_small_files(checkpoint.files, Path(temporary, name or "model"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
        (folder / "config.json").write_text(json.dumps(unquantized_config(config)))
        return boot_offloaded(str(folder), dequantized(checkpoint, config), shown_as=location, **arguments)


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
