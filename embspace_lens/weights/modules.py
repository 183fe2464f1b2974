"""Single tensors and modules of the host: is it readable, and what stands behind a bridge's component."""

from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.utilities.quantization import unreadable_weight_reason

from .. import errors

ABSENT = (AttributeError, AssertionError, RuntimeError, TypeError, ValueError, KeyError)
"""What the host's accessors raise, by version and architecture, where there is no such weight."""


def attribute(owner: Any, name: str, where: str, model: str) -> Any:
    """The host's attribute, or None where it has none; what it cannot read (packed, offloaded) is refused in its words."""
    try:
        return getattr(owner, name)
    except torch.OutOfMemoryError:
        raise
    except NotImplementedError as reason:
        raise errors.unreadable(where, model, str(reason).removeprefix("TransformerLens cannot ")) from reason
    except ABSENT:
        return None


def readable(weight: Any, name: str, model: str) -> Tensor:
    """The weight, detached, if it is a plain float matrix; otherwise the reason why it is not."""
    reason = unreadable_weight_reason(weight)
    if reason is not None:
        raise errors.unreadable(name, model, reason)
    return weight.detach()


def unwrap(module: nn.Module) -> nn.Module:
    """The Hugging Face module that a bridge component stands for; a HookedTransformer's module is its own."""
    while isinstance(inner := module.__dict__.get("_modules", {}).get("_original_component"), nn.Module):
        module = inner
    return module
