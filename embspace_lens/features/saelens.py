"""Dictionaries in SAELens's layout, `cfg.json` and `sae_weights.safetensors`, of its versions up to 6."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from .. import errors
from ..tables.checks import check_number
from .encoders import Activation, ActivationKind, Normalization, SparseCoding
from .folded_scales import SCALES, with_folded_normalization, with_scaled_decoder, with_unit_decoder
from .hook_names import layer_of, module_hooks
from .stored import Config, Parts, StoredTensors, jumprelu

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
FACTORS, DECODER = "transformer_factors", "decoder"
"""Architectures that SAELens does not have: sparse codes, and directions without codes."""
KINDS: dict[str, ActivationKind] = {
    "standard": "relu",
    "gated": "gated",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
    "tanh_relu": "tanh_relu",
    "threshold": "threshold",
    "linear_topk": "linear_topk",
    "signed_topk": "signed_topk",
    "groupmax": "groupmax",
}
"""Of each architecture, the kind of its activation. SAELens has no architecture for the last five."""
FUNCTIONS: dict[str, ActivationKind] = {"relu": "relu", "tanh-relu": "tanh_relu", "topk": "topk"}
"""Activation functions of the configurations before version 6."""
NORMALIZATIONS: dict[Any, Normalization] = {
    None: "",
    "none": "",
    False: "",
    True: "expected_average_only_in",
    "expected_average_only_in": "expected_average_only_in",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm_rescale",
}
CENTRED_BEFORE = (3, 19, 2)
"""Before this version, SAELens trained on models that TransformerLens had centred."""
LAYER_NORM_MODELS = ("gpt2", "pythia", "gpt-neo", "opt-")
"""Names of models with LayerNorm. TransformerLens does not centre models with RMSNorm."""


def read_saelens(folder: Path, input_scale: float | None) -> Parts:
    """Read a folder of SAELens, or of `Features.save`.

    Args:
        folder: The folder.
        input_scale: The factor by which inputs were multiplied, where the files do not contain it.

    Raises:
        EmbspaceError: If the dictionary has an architecture that is not read, or its files disagree.
    """
    config = Config.read(folder / CONFIG)
    metadata = config.get("metadata")
    # Version 6 moved what describes the training into "metadata".
    config = Config(config.path, {**(metadata if isinstance(metadata, Mapping) else {}), **config.fields})
    tensors = StoredTensors(folder / WEIGHTS)
    architecture = config.text("architecture") or "standard"
    decoder = tensors.matrix("W_dec")
    n, d_out = decoder.shape
    config.check_size("d_sae", n)
    hook = _hook(config.text("hook_name", "hook_point"))
    parts = Parts(
        decoder,
        name=config.text("name") or folder.name,
        layer=layer_of(hook) if hook else None,
        hook=hook,
        output_hook=_hook(config.text("hook_name_out")),
        trained_on=_trained_on(config, "metadata" in config.fields),
        notes=tuple(map(str, config.get("notes") or ())),
    )
    stated_layer = config.count("hook_layer", "hook_point_layer")
    parts = replace(parts, layer=stated_layer if parts.layer is None else parts.layer)
    if (
        config.get("hook_head_index", "hook_point_head_index") is not None
        or config.text("reshape_activations") == "hook_z"
    ):
        raise errors.not_residual(parts.name, f"{hook or 'one head'} of one head or of all heads")
    if architecture in (FACTORS, DECODER) and input_scale is not None:
        raise errors.input_scale_not_needed(folder)
    if architecture == FACTORS:
        config.check_size("d_in", d_out)
        l1 = config.get("l1")
        check_number("l1 of cfg.json", l1, above=0)
        return replace(parts, encoder=decoder.T, activation=SparseCoding(float(l1)))
    if architecture == DECODER:
        return _without_codes(parts, tensors)
    return _with_encoder(parts, architecture, config, tensors, input_scale)


def _with_encoder(
    parts: Parts, architecture: str, config: Config, tensors: StoredTensors, input_scale: float | None
) -> Parts:
    stem = re.sub(r"_?(skip_)?transcoder$", "", architecture)
    is_transcoder, has_skip = stem != architecture, "skip_transcoder" in architecture
    kind = KINDS.get(stem or "standard")
    if kind is None:
        raise errors.dictionary_architecture(tensors.path.parent, architecture, sorted(KINDS))
    function = config.text("activation_fn_str", "activation_fn")
    if kind == "relu" and function:
        if function not in FUNCTIONS:
            raise errors.feature_config(config.path, "activation_fn", function, f"one of {', '.join(FUNCTIONS)}")
        kind = FUNCTIONS[function]
    n, d_out = parts.decoder.shape
    encoder = tensors.matrix("W_enc")
    d_in = len(encoder)
    encoder = tensors.get_shaped("W_enc", d_in, n)
    config.check_size("d_in", d_in)
    config.check_size("d_out", d_out)
    tensors.check_widths("W_enc", "W_dec")
    b_dec = tensors.get_shaped("b_dec", d_in if "b_dec_out" in tensors else d_out)
    output_bias = tensors.get_shaped("b_dec_out", d_out) if "b_dec_out" in tensors else b_dec
    subtracts = config.flag("apply_b_dec_to_input", not is_transcoder)
    if subtracts and is_transcoder:
        raise errors.feature_config(config.path, "apply_b_dec_to_input", True, "false, as for every transcoder")
    known = ["W_enc", "W_dec", "b_dec", "b_dec_out"]
    vectors = {
        "gated": ("b_mag", "b_gate", "r_mag"),
        "jumprelu": ("b_enc", "topk_threshold" if "topk_threshold" in tensors else "threshold"),
        "threshold": ("b_enc", "threshold"),
    }.get(kind, ("b_enc",))
    loaded = [
        tensors.matrix(name, 0).expand(n) if name == "topk_threshold" else tensors.get_shaped(name, n)
        for name in vectors
    ]
    options: dict[str, Any] = {"input_bias": b_dec if subtracts else None, "normalization": _normalization(config)}
    if kind == "gated":
        activation = Activation("gated", loaded[0], gate_bias=loaded[1], log_gain=loaded[2], **options)
    elif kind in ("jumprelu", "threshold"):
        activation = jumprelu(*loaded, has_relu=kind == "jumprelu", **options)
    else:
        k = _k(config, n, kind) if kind not in ("relu", "tanh_relu") else None
        activation = Activation(kind, *loaded, k=k, **options)
    tensors.refuse_others([*known, *vectors, *SCALES, "W_skip" if has_skip else "W_dec"])
    skip = tensors.get_shaped("W_skip", d_out, d_in).T if has_skip else None
    parts = replace(parts, encoder=encoder, activation=activation, decoder_bias=output_bias, skip=skip)
    parts = with_scaled_decoder(parts, config, tensors)
    if config.flag("rescale_acts_by_decoder_norm", False):
        parts = with_unit_decoder(parts, activation)
    if is_transcoder and input_scale is not None:
        raise errors.transcoder_input_scale(parts.name)
    scale = None if is_transcoder else _input_scale(config, tensors.path.parent, input_scale)
    return with_folded_normalization(parts, scale)


def _without_codes(parts: Parts, tensors: StoredTensors) -> Parts:
    n, d_model = parts.decoder.shape
    shapes = {"W_enc": (d_model, n), "b_dec": (d_model,), "W_skip": (d_model, d_model)}
    encoder, bias, skip = (
        tensors.get_shaped(name, *shape) if name in tensors else None for name, shape in shapes.items()
    )
    return replace(parts, encoder=encoder, decoder_bias=bias, skip=None if skip is None else skip.T)


def _hook(name: str) -> str:
    """A hook name in TransformerLens's terms; configurations for transformers name modules."""
    return name if "hook_" in name else module_hooks(name)[1]


def _trained_on(config: Config, is_version_6: bool) -> Literal["raw", "centred", ""]:
    """Whether the model was centred, as far as the configuration shows it."""
    options = config.get("model_from_pretrained_kwargs")
    if isinstance(options, Mapping):
        return "centred" if options.get("center_writing_weights") is True else "raw"
    version = tuple(map(int, re.findall(r"\d+", config.text("sae_lens_training_version"))[:3]))
    is_early = config.get("hook_point") is not None or () < version < CENTRED_BEFORE
    has_layer_norm = any(name in config.text("model_name").lower() for name in LAYER_NORM_MODELS)
    return "centred" if is_early and has_layer_norm and not is_version_6 else ""


def _normalization(config: Config) -> Normalization:
    value = config.fields.get("normalize_activations")
    if not isinstance(value, str | bool | None) or value not in NORMALIZATIONS:
        allowed = ", ".join(name for name in NORMALIZATIONS if isinstance(name, str))
        raise errors.feature_config(config.path, "normalize_activations", value, f"one of {allowed}")
    return NORMALIZATIONS[value]


def _input_scale(config: Config, folder: Path, given: float | None) -> float | None:
    """The factor of the inputs: as given, or from a training checkpoint's own file."""
    if given is not None:
        check_number("input_scale", given, above=0)
        if _normalization(config) != "expected_average_only_in":
            raise errors.input_scale_not_needed(folder)
    elif (folder / SCALER).is_file():
        given = Config.read(folder / SCALER).get("scaling_factor")
        if given is not None:
            check_number(f"scaling_factor of {folder / SCALER}", given, above=0)
    return given


def _k(config: Config, n: int, kind: str) -> int:
    arguments = config.get("activation_fn_kwargs")
    arguments = arguments if isinstance(arguments, Mapping) else {}
    k = Config(config.path, {**arguments, **config.fields}).needed_count("k")
    if kind == "groupmax" and n % k:
        raise errors.feature_config(config.path, "k", k, f"a divisor of {n}, the number of features")
    return k
