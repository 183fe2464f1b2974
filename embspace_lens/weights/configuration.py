"""What a TransformerLens model's configuration states, for code that runs the model and needs none of its weights."""

from typing import Any

import torch


def device_of(model: Any) -> torch.device:
    """The device of the model's first parameter; a model spread over devices begins there."""
    return next(model.parameters()).device


def model_name(model: Any) -> str:
    """The model's name, empty if it has none."""
    return str(getattr(model.cfg, "model_name", "") or "")


def n_layers(model: Any) -> int:
    """How many blocks the model has."""
    return len(model.blocks)


def d_model(model: Any) -> int:
    """The width of the residual stream."""
    return int(model.cfg.d_model)


def d_vocab(model: Any) -> int:
    """How many tokens the model embeds."""
    return int(model.cfg.d_vocab)


def context_length(model: Any) -> int | None:
    """The longest sequence the model takes; None if the configuration states none."""
    return int(getattr(model.cfg, "n_ctx", 0) or 0) or None


def is_causal(model: Any) -> bool:
    """Whether a token attends only to those before it."""
    # TransformerLens 3.9 states causal attention for BERT too.
    is_masked = str(getattr(model.cfg, "architecture", "") or "").endswith("ForMaskedLM")
    return getattr(model.cfg, "attention_dir", "causal") == "causal" and not is_masked


def prepends_bos(model: Any) -> bool:
    """Whether the host prepends a beginning-of-sequence token by default."""
    return bool(getattr(model.cfg, "default_prepend_bos", True))
