"""Factors and means that SAELens applies beside the matrices of a dictionary, folded into the matrices."""

from dataclasses import replace

import torch
from torch import Tensor

from .. import errors
from ..search.tiles import upcast
from .encoders import Activation
from .stored import Config, Parts, StoredTensors

SCALES = ("finetuning_scaling_factor", "scaling_factor")
NOTES = {
    "layer_norm": "The encoder reads vectors minus their mean, divided by their standard deviation.",
    "constant_norm_rescale": "The encoder reads vectors divided by their norm, times the square root of d_model.",
    "expected_average_only_in": "The encoder reads vectors times a factor that the files do not contain: pass input_scale.",
}


def with_scaled_decoder(parts: Parts, config: Config, tensors: StoredTensors) -> Parts:
    """Fold the factors of fine-tuned codes into the decoder.

    Raises:
        EmbspaceError: If the configuration contradicts the factors.
    """
    name = next((name for name in SCALES if name in tensors), None)
    if name is None:
        return parts
    scale = tensors.get_shaped(name, len(parts.decoder))
    if bool((scale == 1).all()):
        return parts
    if not config.flag("finetuning_scaling_factor", False):
        raise errors.feature_config(config.path, "finetuning_scaling_factor", False, f"true, although {name} is not 1")
    note = "The decoder contains the factors by which fine-tuning scaled the codes."
    return replace(parts, decoder=upcast(parts.decoder) * upcast(scale)[:, None], notes=(*parts.notes, note))


def with_unit_decoder(parts: Parts, activation: Activation) -> Parts:
    """Fold the norms of the decoder's rows, by which codes are multiplied before they are selected."""
    decoder = upcast(parts.decoder)
    norms = decoder.norm(dim=1)
    if torch.allclose(norms, torch.ones_like(norms), atol=1e-2) or parts.encoder is None or activation.bias is None:
        return parts  # as SAELens saves it
    return replace(
        parts,
        decoder=decoder / norms[:, None],
        encoder=upcast(parts.encoder) * norms,
        activation=replace(activation, bias=upcast(activation.bias) * norms),
    )


def with_folded_normalization(parts: Parts, scale: float | None) -> Parts:
    """Fold what is linear in a normalisation of the inputs: a constant factor, or the mean of each vector.

    A note states what is not folded. It is kept when the dictionary is saved, so that nothing is folded twice.
    """
    activation = parts.activation
    if not isinstance(activation, Activation) or parts.encoder is None or not activation.normalization:
        return parts
    encoder, b_in = upcast(parts.encoder), activation.input_bias
    if activation.normalization == "expected_average_only_in" and scale is not None:
        return replace(
            parts,
            encoder=encoder * scale,
            decoder=upcast(parts.decoder) / scale,
            decoder_bias=_divided(parts.decoder_bias, scale),
            activation=replace(activation, input_bias=_divided(b_in, scale), normalization=""),
        )
    note = NOTES[activation.normalization]
    if note in parts.notes:
        return parts
    parts = replace(parts, notes=(*parts.notes, note))
    if activation.normalization != "layer_norm":
        return parts
    mean = encoder.mean(0)
    if b_in is not None:  # the input bias has a mean of its own, which the encoder no longer reads
        activation = with_shift(activation, -upcast(b_in).sum() * mean)
    return replace(parts, encoder=encoder - mean, activation=activation)


def with_shift(activation: Activation, shift: Tensor) -> Activation:
    """The activation with another bias before its non-linearity."""
    if activation.kind == "gated":
        gain = 1 if activation.log_gain is None else upcast(activation.log_gain).exp()
        gate_bias = _sum(activation.gate_bias, shift)
        return replace(activation, bias=_sum(activation.bias, shift * gain), gate_bias=gate_bias)
    return replace(activation, bias=_sum(activation.bias, shift))


def _sum(bias: Tensor | None, shift: Tensor) -> Tensor:
    return shift if bias is None else upcast(bias) + shift


def _divided(bias: Tensor | None, scale: float) -> Tensor | None:
    return None if bias is None else upcast(bias) / scale
