"""Dictionaries written in the layout of SAELens 6."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .. import errors
from ..files import make_folder, whole, write_json
from ..search.tiles import upcast
from .encoders import Activation, SparseCoding
from .files import LABELS
from .folded_scales import with_shift
from .saelens import CONFIG, DECODER, FACTORS, WEIGHTS
from .stored import Parts


def write_parts(parts: Parts, folder: str | os.PathLike[str], dtype: torch.dtype | None) -> Path:
    """Write `cfg.json`, `sae_weights.safetensors`, and `labels.json` if there are labels; see `Features.save`.

    Raises:
        EmbspaceError: If a file cannot be written, or the codes are computed in a way that has no place in the layout.
    """
    architecture, tensors, options = _contents(parts)
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        too_large = next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)
        if too_large is not None:
            raise errors.not_finite(f"{too_large} of {parts.name} in {dtype}")
    n, d_model = parts.decoder.shape
    metadata: dict[str, Any] = {
        "name": parts.name,
        "hook_name": parts.hook or None,
        "hook_layer": parts.layer,
        "hook_name_out": parts.output_hook or None,
    }
    if parts.notes:
        metadata["notes"] = list(parts.notes)
    if parts.trained_on:
        metadata["model_from_pretrained_kwargs"] = {"center_writing_weights": parts.trained_on == "centred"}
    config = {
        "d_in": d_model,
        "d_sae": n,
        **({"d_out": d_model} if architecture.endswith("transcoder") else {}),
        "dtype": str(tensors["W_dec"].dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **options,
        "metadata": metadata,
        "architecture": architecture,
    }
    path = make_folder(folder)
    # Without its configuration, a folder is not read: an interrupted save is never a mixture of two dictionaries.
    try:
        for name in (CONFIG, LABELS):
            (path / name).unlink(missing_ok=True)
    except OSError as reason:
        raise errors.not_written(path, reason.strerror or reason) from reason
    with whole(path / WEIGHTS) as partial:
        save_file(_separate(tensors), partial)
    if parts.labels is not None:
        write_json(path / LABELS, list(parts.labels))
    write_json(path / CONFIG, config)
    return path


def _contents(parts: Parts) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """The architecture, the tensors, and the fields of the configuration that depend on it."""
    activation, tensors = parts.activation, {"W_dec": parts.decoder}
    if isinstance(activation, SparseCoding):
        if parts.encoder is None or not torch.equal(parts.encoder, parts.decoder.T):
            raise errors.activation_not_saved(
                parts.name, "sparse codes of an encoder that is not the decoder's transpose"
            )
        return FACTORS, tensors, {"l1": float(activation.l1)}
    if parts.encoder is None or activation is None:
        others = {
            "W_enc": parts.encoder,
            "b_dec": parts.decoder_bias,
            "W_skip": None if parts.skip is None else parts.skip.T,
        }
        return DECODER, tensors | {name: each for name, each in others.items() if each is not None}, {}
    if not isinstance(activation, Activation):
        raise errors.activation_not_saved(parts.name, type(activation).__name__)
    is_transcoder = parts.skip is not None or parts.output_hook not in ("", parts.hook)
    suffix = ("skip_transcoder" if parts.skip is not None else "transcoder") if is_transcoder else ""
    # SAELens has transcoders only for relu and jumprelu. It refuses the names that are composed here for the others.
    kind = activation.kind if activation.kind != "relu" else "" if is_transcoder else "standard"
    is_subtracted = not is_transcoder and _are_equal(activation.input_bias, parts.decoder_bias)
    if activation.input_bias is not None and not is_subtracted:
        shift = -(upcast(activation.input_bias) @ upcast(parts.encoder))
        activation = replace(with_shift(activation, shift), input_bias=None)
    tensors |= {"W_enc": parts.encoder, **_vectors(parts, activation)}
    if parts.skip is not None:
        tensors["W_skip"] = parts.skip.T
    options: dict[str, Any] = {
        "apply_b_dec_to_input": is_subtracted,
        "normalize_activations": activation.normalization or "none",
    }
    if activation.k is not None:
        options |= {"k": activation.k, "rescale_acts_by_decoder_norm": False}
    return "_".join(word for word in (kind, suffix) if word), tensors, options


def _are_equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and torch.equal(a, b)


def _vectors(parts: Parts, activation: Activation) -> dict[str, Tensor]:
    """The vectors of an architecture, with zeros for what is absent."""
    n, d_model = parts.decoder.shape
    dtype = parts.decoder.dtype
    names = {
        "gated": {"b_mag": activation.bias, "b_gate": activation.gate_bias, "r_mag": activation.log_gain},
        "jumprelu": {"b_enc": activation.bias, "threshold": activation.threshold},
        "threshold": {"b_enc": activation.bias, "threshold": activation.threshold},
    }.get(activation.kind, {"b_enc": activation.bias})
    vectors = {name: torch.zeros(n, dtype=dtype) if each is None else each for name, each in names.items()}
    bias = torch.zeros(d_model, dtype=dtype) if parts.decoder_bias is None else parts.decoder_bias
    return {"b_dec": bias, **vectors}


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, without shared memory, which safetensors refuses."""
    separate: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in tensors.items():
        tensor = tensor.cpu().contiguous()
        tensor = tensor.clone() if tensor.data_ptr() in separate else tensor
        separate[tensor.data_ptr()] = name, tensor
    return dict(separate.values())
