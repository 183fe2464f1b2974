"""Single attributes, tensors and modules of a TransformerLens model."""

from typing import Any

import torch
from torch import Tensor, nn

from .. import errors

ABSENT = (AttributeError, AssertionError, RuntimeError, TypeError, ValueError, KeyError)
"""The exceptions that TransformerLens raises for a missing weight; they depend on its version and on the architecture."""


def attribute(owner: Any, name: str, label: str, model: str) -> Any:
    """An attribute of a TransformerLens module, or None if the module does not have it.

    Args:
        owner: The module.
        name: The attribute's name.
        label: What to call the attribute in an error message: "W_Q of block 0".
        model: The model's name.

    Raises:
        EmbspaceError: If the weight exists but cannot be read (packed, offloaded).
    """
    try:
        return getattr(owner, name)
    except torch.OutOfMemoryError:
        raise
    except NotImplementedError as reason:
        raise errors.unreadable(label, model, str(reason).removeprefix("TransformerLens cannot ")) from reason
    except ABSENT:
        return None


def readable(weight: Any, label: str, model: str) -> Tensor:
    """The weight without its gradient; a weight in a checkpoint is not read yet.

    Raises:
        EmbspaceError: If it is not a plain floating-point tensor (quantized, or on the meta device).
    """
    from transformer_lens.utilities.quantization import unreadable_weight_reason

    reason = unreadable_weight_reason(weight)
    if reason is not None:
        raise errors.unreadable(label, model, reason)
    return weight.detach()


def unwrap(module: nn.Module) -> nn.Module:
    """The Hugging Face module inside a component of a bridge; any other module is returned unchanged."""
    while isinstance(inner := module.__dict__.get("_modules", {}).get("_original_component"), nn.Module):
        module = inner
    return module


def position_embeddings(model: Any, architecture: str) -> Tensor | None:
    """A model's position embeddings from position 0 on; None if it has none. `model.W_pos` is missing in TransformerLens 3.9."""
    module = model._modules.get("pos_embed")
    if module is None:
        return None
    table: Any = unwrap(module)
    weight: Any = getattr(table, "W_pos", None) if table is module else getattr(table, "weight", None)
    # The tables of OPT and RoBERTa have rows before that of position 0.
    if architecture == "OPTForCausalLM":
        return weight[table.offset :]
    return weight[table.padding_idx + 1 :] if architecture == "RobertaForMaskedLM" else weight
