"""The type checker of the tests: tensors' shapes and dtypes, by beartype.

pytest runs with `--jaxtyping-packages=embspace_lens,typecheck.check`. Annotations without a tensor are not checked: users may
pass wrong values there, for which the package raises an EmbspaceError, and tests must reach it.
"""

from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def _has_array(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return True
    parts = [part for item in get_args(annotation) for part in (item if isinstance(item, list) else [item])]
    return any(map(_has_array, parts))


def check(function: Callable) -> Callable:
    """Decorate a function to check the annotations that hold an array."""
    annotations = function.__annotations__
    function.__annotations__ = {
        name: annotation if _has_array(annotation) else Any for name, annotation in annotations.items()
    }
    return beartype(function)
