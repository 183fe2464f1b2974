"""Checks of arguments: each returns the value as a built-in Python type, or raises an error that states what is allowed."""

import math
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np

from .. import errors

Choice = TypeVar("Choice", bound=str)
Number = int | float


def check_integer(
    name: str, value: Any, *, minimum: int | None = None, maximum: int | None = None, count_of: str = ""
) -> int:
    """An integer between two bounds, both included; scalars of numpy and torch count, booleans do not.

    Args:
        name: The argument's name.
        value: The argument.
        minimum: The smallest value allowed.
        maximum: The largest value allowed.
        count_of: What `maximum` counts, for the message, such as "tokens that this lens reads".

    Raises:
        EmbspaceError: If it is not an integer, or out of bounds.
    """
    number = value.item() if getattr(value, "ndim", None) == 0 else value
    is_integer = isinstance(number, int | np.integer) and not isinstance(number, bool | np.bool_)
    if not is_integer or (minimum is not None and number < minimum) or (maximum is not None and number > maximum):
        raise errors.not_integer(name, value, minimum, maximum, count_of)
    return int(number)


def check_k(k: Any, n: int, count_of: str = "tokens that this lens reads") -> int:
    """`k` as an integer from 1 to n.

    Raises:
        EmbspaceError: If it is not.
    """
    return check_integer("k", k, minimum=1, maximum=n, count_of=count_of)


def check_number(
    name: str, value: Any, *, above: Number | None = None, minimum: Number | None = None, maximum: Number | None = None
) -> float:
    """A finite number, above an excluded bound or between two included ones.

    Raises:
        EmbspaceError: If it is not a finite number, or out of bounds.
    """
    try:
        number = math.nan if isinstance(value, str | bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    out_of_bounds = (
        (above is not None and number <= above)
        or (minimum is not None and number < minimum)
        or (maximum is not None and number > maximum)
    )
    if not math.isfinite(number) or out_of_bounds:
        raise errors.not_number(name, value, above, minimum, maximum)
    return number


def check_probability(name: str, value: Any) -> float:
    """A number from 0 to 1.

    Raises:
        EmbspaceError: If it is not.
    """
    return check_number(name, value, minimum=0, maximum=1)


def check_choice(name: str, value: Any, options: Iterable[Choice]) -> Choice:
    """One of the named options.

    Raises:
        EmbspaceError: If it is not one of them.
    """
    options = list(options)
    if value not in options:
        raise errors.choice(name, value, options)
    return value
