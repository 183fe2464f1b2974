"""Evidence that weights are legible in embedding space: the papers' measurements, each beside its control.

The measurements are those of Dar et al. (2023), Analyzing Transformers in Embedding Space: https://arxiv.org/abs/2209.02535
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .overlap import related_pairs
    from .recall import hidden_state_recall
    from .truncation import keep_k

__all__ = ["hidden_state_recall", "keep_k", "related_pairs"]

# No module bears a function's name: importing it would hide the function.
_HOME = {"hidden_state_recall": "recall", "keep_k": "kept", "related_pairs": "related"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
