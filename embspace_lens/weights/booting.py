"""Booting: a name, a folder or a Hugging Face model → a TransformerBridge. Checkpoints that do not fit their model raise."""

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from .. import errors
from ..checkpoints.gguf_checkpoint import open_gguf
from ..checkpoints.lazy_tensor import LazyTensor
from ..checkpoints.safetensors_header import natural_order


def boot(name: str, **arguments: Any) -> Any:
    """Boot a TransformerBridge in evaluation mode; `arguments` are those of `TransformerBridge.boot_transformers`.

    Raises:
        EmbspaceError: If the checkpoint lacks a weight of the model, or a weight has another shape.
    """
    from transformer_lens.model_bridge import TransformerBridge

    if "hf_model" not in arguments:
        arguments["model_class"] = _CheckedClass()
    model = TransformerBridge.boot_transformers(name, **arguments)
    return model.eval()


def boot_offloaded(
    name: str, checkpoint: Mapping[str, LazyTensor], *, shown_as: str | None = None, **arguments: Any
) -> Any:
    """Boot a TransformerBridge whose parameters are read from a checkpoint when they are needed.

    transformers renames and merges the checkpoint's tensors as if it loaded them, and TransformerLens splits them, but they are
    lazy, so that nothing is read.

    Args:
        name: A folder with the configuration and the tokenizer.
        checkpoint: The parameters.
        shown_as: What error messages call the model; its name by default.
        **arguments: Those of `TransformerBridge.boot_transformers`.

    Raises:
        EmbspaceError: As `boot`.
    """
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(name, model_class=_CheckedClass(checkpoint, shown_as), **arguments)
    model.requires_grad_(False).eval()
    model.__dict__["checkpoint"] = checkpoint
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


def load_checked(model_class: Any, name: str, **arguments: Any) -> Any:
    """Load a Hugging Face model whose checkpoint has all its weights; weights that are tied to another one may be missing.

    Without this check, transformers fills missing weights with random numbers.

    Args:
        model_class: A class with the method `from_pretrained`.
        name: A folder, or a model of the hub.
        **arguments: The other arguments of `from_pretrained`. With `state_dict`, no file of weights is opened.

    Raises:
        EmbspaceError: If the checkpoint lacks a weight of the model, or a weight has another shape.
    """
    arguments |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = model_class.from_pretrained(None if "state_dict" in arguments else name, **arguments)
    mismatched = sorted(info["mismatched_keys"], key=lambda entry: natural_order(entry[0]))
    missing, unused = (sorted(info[f"{kind}_keys"], key=natural_order) for kind in ("missing", "unexpected"))
    if mismatched:
        key, in_file, in_model = mismatched[0]
        raise errors.weight_of_other_shape(name, key, tuple(in_file), tuple(in_model), len(mismatched))
    if missing:
        raise errors.missing_weights(name, missing[0], len(missing))
    if unused:
        warnings.warn(
            f"{name} holds {len(unused)} weights that the model does not use, such as {unused[0]}.", stacklevel=1
        )
    return model


def boot_attention_only(name: str, tokenizer: Any, **sizes: int) -> tuple[Any, dict[str, nn.Parameter]]:
    """Boot a TransformerBridge without MLPs and norms around TransformerLens's own modules, with random weights.

    Args:
        name: The model's name.
        tokenizer: Its tokenizer.
        **sizes: d_model, d_head, n_layers, n_heads, n_ctx and d_vocab.

    Returns:
        The model in evaluation mode, and its parameters by their stored names, such as `layers.0.attn.q.weight`.
    """
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    bridge: Any = TransformerBridge  # type checkers do not know its sources
    options: dict[str, Any] = {**sizes, "attn_only": True, "normalization_type": None, "act_fn": "relu", "seed": 0}
    model = bridge.boot_native(TransformerBridgeConfig(**options), tokenizer=tokenizer, model_name=name).eval()
    stored = model.original_model.named_parameters()
    return model, {key.replace("_original_component.", ""): parameter for key, parameter in stored}


class _CheckedClass:
    """The `model_class` of a boot: the class that the host chooses for the configuration, loaded by `load_checked`.

    Args:
        checkpoint: Where the parameters are read from, when they are needed; None to load them now.
        shown_as: What error messages call the model; its name by default.
    """

    def __init__(self, checkpoint: Mapping[str, LazyTensor] | None = None, shown_as: str | None = None) -> None:
        self.checkpoint = checkpoint
        self.shown_as = shown_as

    def from_pretrained(self, name: str, **arguments: Any) -> Any:
        from transformer_lens.model_bridge.sources.transformers import (
            determine_architecture_from_hf_config,
            get_hf_model_class_for_architecture,
        )
        from transformers import AutoConfig

        # The host may have replaced arguments["config"] by a part of the configuration (multimodal models).
        options = {key: arguments[key] for key in ("token", "trust_remote_code", "revision") if key in arguments}
        architecture = determine_architecture_from_hf_config(AutoConfig.from_pretrained(name, **options))
        model_class = get_hf_model_class_for_architecture(architecture)
        if self.checkpoint is not None:
            model_class = getattr(model_class, "_model_mapping", {type(arguments["config"]): model_class})[
                type(arguments["config"])
            ]
            arguments["state_dict"] = dict(self.checkpoint)
            name = self.shown_as or name  # not opened: the weights are given
        return load_checked(model_class, name, **arguments)
