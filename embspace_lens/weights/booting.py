"""Booting: a name, a folder or a Hugging Face model → a TransformerBridge. Checkpoints that do not fit their model raise."""

import re
import warnings
from typing import Any

from torch import nn

from .. import errors


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


def load_checked(model_class: Any, name: str, **arguments: Any) -> Any:
    """Load a Hugging Face model whose checkpoint has all its weights; weights that are tied to another one may be missing.

    Without this check, transformers fills missing weights with random numbers.

    Args:
        model_class: A class with the method `from_pretrained`.
        name: A folder, or a model of the hub.
        **arguments: The other arguments of `from_pretrained`.

    Raises:
        EmbspaceError: If the checkpoint lacks a weight of the model, or a weight has another shape.
    """
    arguments |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = model_class.from_pretrained(name, **arguments)
    mismatched = sorted(info["mismatched_keys"], key=lambda entry: _natural_order(entry[0]))
    missing, unused = (sorted(info[f"{kind}_keys"], key=_natural_order) for kind in ("missing", "unexpected"))
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
    """The `model_class` of a boot: the class that the host chooses for the configuration, loaded by `load_checked`."""

    def from_pretrained(self, name: str, **arguments: Any) -> Any:
        from transformer_lens.model_bridge.sources.transformers import (
            determine_architecture_from_hf_config,
            get_hf_model_class_for_architecture,
        )
        from transformers import AutoConfig

        # The host may have replaced arguments["config"] by a part of the configuration (multimodal models).
        options = {key: arguments[key] for key in ("token", "trust_remote_code", "revision") if key in arguments}
        config = AutoConfig.from_pretrained(name, **options)
        _check_architectures(name, config)
        architecture = determine_architecture_from_hf_config(config)
        return load_checked(get_hf_model_class_for_architecture(architecture), name, **arguments)


def _check_architectures(name: str, config: Any) -> None:
    """Check that a configuration names no unknown architecture; the host replaces such a name by that of the model type.

    Raises:
        EmbspaceError: If it names one.
    """
    import transformers
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    names = config.architectures or []
    if getattr(config, "auto_map", None):  # the repository holds classes of its own
        return
    for architecture in [names] if isinstance(names, str) else names:
        is_known = architecture in SUPPORTED_ARCHITECTURES or hasattr(transformers, str(architecture))
        if not is_known:
            raise errors.unknown_architecture(name, architecture)


def _natural_order(key: str) -> list[str | int]:
    """A key for sorting the names of weights, in which block 2 precedes block 10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", key))]
