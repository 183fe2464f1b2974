"""Booting: a name, a folder or a Hugging Face model → a TransformerBridge. Checkpoints that do not fit their model raise."""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from .. import errors
from ..checkpoints.lazy_tensor import LazyTensor
from ..checkpoints.safetensors_header import natural_order


def boot(name: str, **arguments: Any) -> Any:
    """Boot a TransformerBridge in evaluation mode; `arguments` are those of `TransformerBridge.boot_transformers`.

    Raises:
        EmbspaceError: If the checkpoint lacks a weight of the model, or a weight has another shape.
    """
    from transformer_lens.model_bridge import TransformerBridge

    if "hf_model" not in arguments:
        arguments["model_class"] = CheckedClass()
        arguments = config_overrides(name) | arguments
    with no_installation():
        model = TransformerBridge.boot_transformers(name, **arguments)
    return model.eval()


@contextmanager
def no_installation() -> Iterator[None]:
    """Keep the host from installing packages: for models with images it runs `pip install torchvision`, which replaces torch."""
    settings = {"PIP_NO_INDEX": "1", "PIP_QUIET": "3", "UV_OFFLINE": "1"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


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


def config_overrides(name: str) -> dict[str, Any]:
    """The argument `hf_config_overrides` of a boot, for a configuration that TransformerLens reads incorrectly; empty for others.

    In Falcon's new decoder architecture, transformers ignores `multi_query`, whose default is True. TransformerLens then
    expects one key-value head, and cannot split the weights.
    """
    from transformers import PretrainedConfig

    try:
        config, _ = PretrainedConfig.get_config_dict(name)
    except (OSError, ValueError):
        return {}  # the boot states the reason
    is_affected = config.get("model_type") == "falcon" and config.get("new_decoder_architecture")
    return {"hf_config_overrides": {"multi_query": False}} if is_affected else {}


class CheckedClass:
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
        config = AutoConfig.from_pretrained(name, **options)
        _check_architectures(self.shown_as or name, config)
        model_class = get_hf_model_class_for_architecture(determine_architecture_from_hf_config(config))
        if self.checkpoint is not None:
            model_class = _class_of(model_class, arguments["config"])
            arguments["state_dict"] = dict(self.checkpoint)
            name = self.shown_as or name  # no file of weights is opened: the parameters are given
        return load_checked(model_class, name, **arguments)


def _class_of(auto_class: Any, config: Any) -> Any:
    """The class of a configuration's models; classes that choose one by themselves need a name or a folder for it."""
    mapping = getattr(auto_class, "_model_mapping", None)
    found = auto_class if mapping is None else mapping[type(config)]
    if not isinstance(found, tuple):
        return found
    return next((each for each in found if each.__name__ in (config.architectures or [])), found[0])


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
