"""What a user may give as layer, head, neuron, weight and k, made plain."""

from collections.abc import Sequence
from typing import Any

from .. import errors

Select = None | int | range | slice | Sequence[int]
"""Which layers, heads or neurons: a number, several, a slice, or None for all."""


def select(name: str, value: Any, count: int, model: str, plural: str) -> list[int]:
    """The selected numbers, ascending, each once.

    Raises:
        EmbspaceError: If a number is out of range, or the value selects nothing.
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
    numbers = [number.item() if hasattr(number, "item") else number for number in value]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int):
            raise errors.not_selector(name, number)
        if not 0 <= number < count:
            raise errors.out_of_range(name, int(number), model, count, plural)
    return sorted({int(number) for number in numbers})


def weight_names(value: Any, options: Sequence[str], default: str | None = None) -> list[str]:
    """The named weights in the order of `options`; all of them (or the default) for None.

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
