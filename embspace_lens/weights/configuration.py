"""What a TransformerLens model's configuration states, for code that runs the model and does not read its weights."""

from typing import Any

import torch


def device_of(model: Any) -> torch.device:
    """The device of the model's first parameter, which is where a model on several devices takes its tokens."""
    return next(model.parameters()).device


def model_name(model: Any) -> str:
    """The model's name, empty if it does not have one."""
    return str(getattr(model.cfg, "model_name", "") or "")


def n_layers(model: Any) -> int:
    """The number of blocks."""
    return len(model.blocks)


def d_model(model: Any) -> int:
    """The width of the residual stream."""
    return int(model.cfg.d_model)


def d_vocab(model: Any) -> int:
    """The number of tokens that the model embeds."""
    return int(model.cfg.d_vocab)


def context_length(model: Any) -> int | None:
    """The length of the context window in tokens; None if the configuration does not state it."""
    return int(getattr(model.cfg, "n_ctx", 0) or 0) or None


def is_causal(model: Any) -> bool:
    """Whether each token attends to itself and earlier tokens only; False for a bidirectional model."""
    # TransformerLens 3.9 states causal attention for BERT too.
    is_masked = str(getattr(model.cfg, "architecture", "") or "").endswith("ForMaskedLM")
    return getattr(model.cfg, "attention_dir", "causal") == "causal" and not is_masked


def prepends_bos(model: Any) -> bool:
    """Whether TransformerLens prepends a beginning-of-sequence token to each text by default."""
    return bool(getattr(model.cfg, "default_prepend_bos", True))
