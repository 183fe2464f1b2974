"""Files of dictionaries: which layout lies at a path, and dictionaries read from it."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .. import errors
from ..checkpoints.checkpoint import PICKLES
from ..files import expand, read_json
from ..readings.vectors import NOT_RESIDUAL
from . import circuit_tracer, gemma_scope, saelens, sparsify
from .hook_names import layer_of
from .stored import Parts

LABELS = "labels.json"
FOLDER_FILES = (
    saelens.WEIGHTS,
    sparsify.WEIGHTS,
    gemma_scope.SAFETENSORS,
    gemma_scope.CONFIG,
    saelens.CONFIG,
    circuit_tracer.CONFIG,
)
"""Files that stand for their folder."""
SEVERAL_LAYERS = re.compile(r"params_layer_\d+\.safetensors")


def read_parts(
    path: str | os.PathLike[str],
    *,
    layer: int | None,
    output_layer: int | Sequence[int] | None,
    hook: str,
    output_hook: str,
    input_scale: float | None,
) -> Parts:
    """Read the dictionary at a path, whatever its layout; see `Features.load`.

    Raises:
        EmbspaceError: If there is no dictionary, or it cannot be read exactly.
    """
    # Links are not resolved: the cache of the Hugging Face hub links from names with a meaning to names without one.
    path = expand(path).absolute()
    if not path.exists():
        raise errors.no_features(path)
    try:
        parts = _read(path, layer, output_layer, input_scale)
    except OSError as reason:
        raise errors.not_readable(path, reason.strerror or reason) from reason
    if hook:
        parts = replace(parts, hook=hook, layer=layer_of(hook) if layer_of(hook) is not None else parts.layer)
    if output_hook:
        parts = replace(parts, output_hook=output_hook)
    for each in (parts.hook, parts.output_hook):
        if each.rsplit(".", 1)[-1] in NOT_RESIDUAL:
            raise errors.not_residual(parts.name, each)
    return parts


def _read(path: Path, layer: int | None, output_layer: int | Sequence[int] | None, input_scale: float | None) -> Parts:
    is_across = _is_across(path)
    if output_layer is not None and not is_across:
        raise errors.option_of_layout("output_layer", path, "cross-layer transcoders")
    if is_across:
        parts = circuit_tracer.read_across_layers(path, layer, output_layer)
    elif path.suffix == ".npz":
        parts = gemma_scope.read_npz(path)
    elif path.is_file() and circuit_tracer.LAYER_FILE.fullmatch(path.name):
        parts = circuit_tracer.read_layer(path, layer)
    elif path.is_dir() or path.name in FOLDER_FILES:
        return _of_folder(path if path.is_dir() else path.parent, layer, input_scale)
    elif path.suffix in PICKLES:
        raise errors.features_not_safe(path)
    else:
        raise errors.unknown_features_layout(path, [])
    _refuse_input_scale(path, input_scale)
    return parts


def _of_folder(folder: Path, layer: int | None, input_scale: float | None) -> Parts:
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    if saelens.WEIGHTS in names:
        labels = _labels(folder / LABELS) if LABELS in names else None
        return replace(saelens.read_saelens(folder, input_scale), labels=labels)
    _refuse_input_scale(folder, input_scale)
    if sparsify.WEIGHTS in names:
        return sparsify.read_sparsify(folder)
    if gemma_scope.NPZ in names:
        return gemma_scope.read_npz(folder / gemma_scope.NPZ)
    if gemma_scope.SAFETENSORS in names:
        return gemma_scope.read_single_layer(folder)
    if any(circuit_tracer.LAYER_FILE.fullmatch(name) for name in names):
        return circuit_tracer.read_layer(folder, layer)
    config = circuit_tracer.read_config(folder)
    listed = circuit_tracer.listed_transcoder(config, layer)
    if listed is not None:
        return circuit_tracer.read_listed(config, _read(listed[0], None, None, None), listed[1])
    if any(SEVERAL_LAYERS.fullmatch(name) for name in names):
        raise errors.several_layers_not_read(folder)
    unsafe = next((name for name in names if name.endswith(PICKLES)), None)
    raise errors.features_not_safe(folder / unsafe) if unsafe else errors.unknown_features_layout(folder, names)


def _is_across(path: Path) -> bool:
    """Whether a path leads to a cross-layer transcoder."""
    names = [path.name] if path.is_file() else [file.name for file in path.iterdir()]
    return any(circuit_tracer.ACROSS_FILE.fullmatch(name) for name in names)


def _refuse_input_scale(path: Path, input_scale: float | None) -> None:
    if input_scale is not None:
        raise errors.option_of_layout("input_scale", path, "SAELens folders")


def _labels(path: Path) -> list[str]:
    labels = read_json(path)
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise errors.not_labels(path)
    return labels
