"""Dictionaries in the layout of EleutherAI's sparsify: `cfg.json` and `sae.safetensors` in a folder named after a module."""

import re
from pathlib import Path

from torch import Tensor

from .. import errors
from .encoders import Activation
from .hook_names import layer_of, module_hooks
from .stored import Config, Parts, StoredTensors

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
NAMES = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
OLD_NAMES = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "decoder.weight": "W_dec", "decoder.bias": "b_dec"}
UNUSED = ("post_enc", "post_enc_scale")
"""Tensors of a fork of sparsify, which change nothing where `post_enc` is 0."""


def read_sparsify(folder: Path) -> Parts:
    """Read a folder of sparsify.

    Raises:
        EmbspaceError: If files are missing or disagree, or the codes are computed in a way that is not read.
    """
    config = Config.read(folder / CONFIG)
    tensors = StoredTensors(folder / WEIGHTS)
    names = {new: old if old in tensors and new not in tensors else new for old, new in OLD_NAMES.items()}
    bias, b_dec = (tensors.matrix(names[name], 1) for name in ("encoder.bias", "b_dec"))
    n, width = len(bias), len(b_dec)
    _check_sizes(config, n, width)
    encoder = tensors.get_oriented(names["encoder.weight"], n, width).T
    is_old_decoder = names["W_dec"] == "decoder.weight"  # the weight of a linear layer: [d_in, num_latents]
    decoder = (
        tensors.get_shaped("decoder.weight", width, n).T if is_old_decoder else tensors.get_shaped("W_dec", n, width)
    )
    has_skip, is_transcoder = config.flag("skip_connection", False), config.flag("transcode", False)
    tensors.refuse_others([*names.values(), *_unused(tensors), *(["W_skip"] if has_skip else [])])
    module = folder.parent.name if re.fullmatch(r"seed\d+", folder.name) else folder.name
    read_hook, written_hook = module_hooks(module)
    vectors = [tensors.get_shaped(names[name], size) for name, size in (("encoder.bias", n), ("b_dec", width))]
    return Parts(
        decoder,
        encoder,
        name=module,
        layer=layer_of(read_hook),
        hook=read_hook if is_transcoder else written_hook,
        output_hook=written_hook if is_transcoder else "",
        activation=_activation(config, vectors[0], None if is_transcoder else vectors[1]),
        decoder_bias=vectors[1],
        skip=tensors.get_shaped("W_skip", width, width).T if has_skip else None,
        trained_on="raw",
    )


def _activation(config: Config, bias: Tensor, input_bias: Tensor | None) -> Activation:
    kind = config.text("activation") or "topk"
    if kind not in ("topk", "groupmax"):
        raise errors.feature_config(config.path, "activation", kind, "topk or groupmax")
    if config.flag("signed", False):
        kind = "signed_topk"
    k = config.needed_count("k") if config.get("k") is not None else 32
    if kind == "groupmax" and len(bias) % k:
        raise errors.feature_config(config.path, "k", k, f"a divisor of {len(bias)}, the number of features")
    return Activation(kind, bias, input_bias, k=k)


def _check_sizes(config: Config, n: int, width: int) -> None:
    config.check_size("d_in", width)
    if config.count("num_latents"):  # 0 means that the expansion factor decides
        config.check_size("num_latents", n)
    elif config.get("expansion_factor") is not None and config.needed_count("expansion_factor") * width != n:
        value = config.get("expansion_factor")
        raise errors.feature_config(config.path, "expansion_factor", value, f"{n} features / d_in {width}")
    for name in ("n_targets", "normalize_io"):  # cross-layer dictionaries of a fork
        if config.get(name):
            raise errors.feature_config(
                config.path, name, config.get(name), "0 or false: the fork's formats are not read"
            )


def _unused(tensors: StoredTensors) -> list[str]:
    """The tensors that have no effect."""
    has_effect = "post_enc" in tensors and bool((tensors["post_enc"] != 0).any())
    return [] if has_effect else list(UNUSED)
