"""Selectors: what a user gives as `layer=`, `head=`, `neuron=` or `weight=`, as a list."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from .. import errors

Select = None | int | range | slice | Sequence[int] | np.integer | np.ndarray | Tensor
"""Which layers, heads or neurons: an index, several, a slice, or None for all."""


def select(name: str, value: Any, count: int, model: str, plural: str) -> list[int]:
    """The selected indices below `count`, ascending, each once.

    Args:
        name: The argument's name.
        value: The argument, a `Select`, a tensor or an array.
        count: The number of layers, heads or neurons.
        model: The model's name, for messages.
        plural: What is counted, for messages, such as "layers".

    Raises:
        EmbspaceError: If an index is out of range, or the value is not a selector.
    """
    if value is None:
        return list(range(count))
    if isinstance(value, slice):
        return sorted(range(count)[value])
    value = value.tolist() if hasattr(value, "tolist") else value  # tensors, arrays and their scalars
    if isinstance(value, int):
        value = [value]
    elif isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        raise errors.not_selector(name, value)
    indices = [index.item() if hasattr(index, "item") else index for index in value]
    for index in indices:
        if isinstance(index, bool) or not isinstance(index, int):
            raise errors.not_selector(name, index)
        if not 0 <= index < count:
            raise errors.out_of_range(name, int(index), model, count, plural)
    return sorted({int(index) for index in indices})


def weight_names(value: Any, options: Sequence[str], default: str | None = None) -> list[str]:
    """The named weights in the order of `options`; for None the default, or all if there is no default.

    Raises:
        EmbspaceError: If a name is not among `options`.
    """
    if value is None:
        return [default] if default else list(options)
    names = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
    for name in names:
        if name not in options:
            raise errors.choice("weight", name, options)
    return [name for name in options if name in names]
