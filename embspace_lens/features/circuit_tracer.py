"""Transcoders in the layouts of circuit-tracer: `layer_{i}.safetensors`, and `W_enc_{i}` with `W_dec_{i}` across layers."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .. import errors
from ..files import expand
from ..search.tiles import chunks, upcast, working_dtype
from .encoders import Activation
from .hook_names import block_hook
from .stored import Config, Parts, StoredTensors, jumprelu

CONFIG = "config.yaml"
LAYER_FILE = re.compile(r"layer_(\d+)\.safetensors")
ACROSS_FILE = re.compile(r"W_(?:enc|dec)_(\d+)\.safetensors")
THRESHOLD = "activation_function.threshold"


def read_config(folder: Path) -> Config:
    """The fields of `config.yaml`; none if there is no such file.

    Raises:
        EmbspaceError: If it is damaged, or needs packages that are missing.
    """
    path = folder / CONFIG
    if not path.is_file():
        return Config(path, {})
    import yaml  # only this layout needs it

    try:
        return Config(path, yaml.safe_load(path.read_text(encoding="utf-8-sig")))
    except (OSError, ValueError, yaml.YAMLError) as reason:
        raise errors.not_readable(path, str(reason).replace("\n", " ")) from reason


def listed_transcoder(config: Config, layer: int | None) -> tuple[Path, int] | None:
    """The path of a layer's transcoder in a list of `config.yaml`, and its layer; None if the file has no list.

    Raises:
        EmbspaceError: If the layer is not given or not in the list, or its transcoder is not on this machine.
    """
    entries = config.get("transcoders")
    if entries is None:
        return None
    if not isinstance(entries, list) or not entries:
        raise errors.feature_config(config.path, "transcoders", entries, "a list of one path per layer")
    paths: dict[int, Any] = {}
    for i, entry in enumerate(entries):  # older files describe each entry
        described = Config(config.path, entry) if isinstance(entry, dict) else None
        stated_layer = described.count("layer") if described else None
        paths[i if stated_layer is None else stated_layer] = described.get("filepath") if described else entry
    layer = _only_layer(config.path, list(paths), layer)
    address = paths[layer]
    if not isinstance(address, str) or "://" in address:
        raise errors.remote_dictionary(config.path, address)
    return config.path.parent / expand(address), layer


def read_layer(path: Path, layer: int | None) -> Parts:
    """Read the transcoder of one layer.

    Args:
        path: A file `layer_{i}.safetensors`, or the folder of such files.
        layer: i; needed for a folder with several files.

    Raises:
        EmbspaceError: If the layer is not given or there is no such file, or its tensors disagree.
    """
    match = LAYER_FILE.fullmatch(path.name) if path.is_file() else None
    if match is None:
        folder = path
        layer = _only_layer(folder, _layers(folder, LAYER_FILE), layer)
    else:
        folder, layer = path.parent, int(match[1])
    config = read_config(folder)
    tensors = StoredTensors(folder / f"layer_{layer}.safetensors")
    n, width = (len(tensors.matrix(name, 1)) for name in ("b_enc", "b_dec"))
    skip = tensors.get_shaped("W_skip", width, width).T if "W_skip" in tensors else None
    tensors.refuse_others(["W_enc", "W_dec", "b_enc", "b_dec", "W_skip", THRESHOLD, "k"])
    return Parts(
        tensors.get_oriented("W_dec", n, width),  # transposed in early uploads
        tensors.get_oriented("W_enc", n, width).T,
        name=f"{folder.name}/layer_{layer}",
        layer=layer,
        hook=block_hook(layer, config.text("feature_input_hook")),
        output_hook=block_hook(layer, config.text("feature_output_hook")),
        activation=_activation(config, tensors, n),
        decoder_bias=tensors.get_shaped("b_dec", width),
        skip=skip,
        trained_on="raw",
    )


def _activation(config: Config, tensors: StoredTensors, n: int) -> Activation:
    bias = tensors.get_shaped("b_enc", n)
    kind = config.text("activation") or ("topk" if "k" in tensors else "")
    if kind == "topk":
        stored = config.get("k") if "k" not in tensors else tensors["k"].item()
        k = Config(config.path, {"k": stored}).needed_count("k")
        return Activation("linear_topk", bias, k=k)
    if kind not in ("", "relu", "jumprelu", "jump_relu"):
        raise errors.feature_config(config.path, "activation", kind, "topk, relu or jumprelu")
    if THRESHOLD in tensors and kind != "relu":
        threshold = tensors[THRESHOLD].reshape(-1)
        if len(threshold) not in (1, n) or not threshold.isfinite().all():
            raise errors.stored_shape(tensors.path, THRESHOLD, tuple(threshold.shape), f"[{n}] finite values")
        return jumprelu(bias, threshold.expand(n), has_relu=False)
    return Activation("relu", bias)


def read_across_layers(path: Path, layer: int | None, output_layer: int | Sequence[int] | None) -> Parts:
    """Read what one layer's features of a cross-layer transcoder write to one layer, or to several together.

    Only the parts that are needed are read. The bias of a written layer belongs to the sum over all source layers, so
    that it is not part of any single one.

    Args:
        path: The folder, or one of the files of the source layer.
        layer: The source layer; needed for a folder with several.
        output_layer: The written layer, or the layers whose decoders are summed.

    Raises:
        EmbspaceError: If a layer is not given or out of range, or the tensors disagree.
    """
    match = ACROSS_FILE.fullmatch(path.name) if path.is_file() else None
    folder = path if match is None else path.parent
    layer = _only_layer(folder, _layers(folder, ACROSS_FILE), layer) if match is None else int(match[1])
    config = read_config(folder)
    tensors = StoredTensors(folder / f"W_enc_{layer}.safetensors")
    decoders = StoredTensors(folder / f"W_dec_{layer}.safetensors")
    n, width = (len(tensors.matrix(f"{name}_{layer}", 1)) for name in ("b_enc", "b_dec"))
    bias = tensors.get_shaped(f"b_enc_{layer}", n)
    threshold = f"threshold_{layer}"
    has_threshold = threshold in tensors
    tensors.refuse_others([f"{name}_{layer}" for name in ("W_enc", "b_enc", "b_dec", "threshold")])
    decoders.refuse_others([f"W_dec_{layer}"])
    stack = decoders.matrix(f"W_dec_{layer}", 3)
    stack = decoders.get_shaped(f"W_dec_{layer}", n, stack.shape[1], width)
    layers = list(output_layer) if isinstance(output_layer, Sequence) else [output_layer]
    if not layers or not all(isinstance(each, int) and 0 <= each - layer < stack.shape[1] for each in layers):
        raise errors.written_layer(folder, output_layer, layer, layer + stack.shape[1] - 1)
    written = sorted({int(each) for each in layers if each is not None})
    summed = f"The decoder is the sum of what is written to the layers {written[0]} to {written[-1]}."
    return Parts(
        _summed(stack, [each - layer for each in written]),
        tensors.get_oriented(f"W_enc_{layer}", n, width).T,
        name=f"{folder.name}/{layer}→{','.join(map(str, written))}",
        layer=layer,
        hook=block_hook(layer, config.text("feature_input_hook")),
        output_hook=block_hook(written[-1], config.text("feature_output_hook")),
        activation=jumprelu(bias, tensors.get_shaped(threshold, n), has_relu=False)
        if has_threshold
        else Activation("relu", bias),
        trained_on="raw",
        notes=(summed,) if len(written) > 1 else (),
    )


def _summed(stack: Float[Tensor, "n n_layers d_model"], layers: list[int]) -> Float[Tensor, "n d_model"]:
    """The decoder of one layer as it is stored, or the sum of several in working precision."""
    if len(layers) == 1:
        return stack[:, layers[0]]
    total = torch.empty(len(stack), stack.shape[2], dtype=working_dtype(stack.dtype))
    for part in chunks(len(stack), 4 * stack.shape[2] * len(layers)):
        total[part] = sum(upcast(stack[part, layer]) for layer in layers)
    return total


def _layers(folder: Path, pattern: re.Pattern[str]) -> list[int]:
    return sorted({int(match[1]) for file in folder.iterdir() if (match := pattern.fullmatch(file.name))})


def _only_layer(path: Path, layers: list[int], layer: int | None) -> int:
    """The layer, which need not be given if there is only one."""
    if layer is None and len(layers) == 1:
        return layers[0]
    if layer not in layers:
        raise errors.dictionary_layer(path, layer, layers)
    return int(layer)


def read_listed(config: Config, parts: Parts, layer: int) -> Parts:
    """A transcoder from the list of `config.yaml`, at the hook points that this file states."""
    return replace(
        parts,
        layer=layer,
        hook=block_hook(layer, config.text("feature_input_hook")) or parts.hook,
        output_hook=block_hook(layer, config.text("feature_output_hook")) or parts.output_hook,
    )
