"""Recipes: how a lazy tensor is made from the tensors of a checkpoint, as JSON.

A recipe holds no values. It names tensors of the checkpoint, and operations that move values or change their precision:

- `{"dtype": …, "stored": name, "entry": [i, …]}`: a stored tensor, or its entry `[i, …]`;
- `{"dtype": …, "operation": name, "args": […], "output": None}`: the result of an operation, or one of several results.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .checkpoint import FileSource
from .lazy_tensor import CLONE, REARRANGING, LazyTensor, Operation, aten, cast_values, copy_values

Recipe = dict[str, Any]

OPERATIONS: dict[str, Any] = {str(function).removeprefix("aten."): function for function in REARRANGING}
NAMES: dict[Any, str] = {function: name for name, function in OPERATIONS.items()}
NAMES |= {cast_values: "cast", copy_values: "copy"}
PLAIN = (int, float, bool, type(None))
"""The types of arguments that are the same in JSON."""
CONSTANTS = (torch.dtype, torch.memory_format)
"""The types of arguments that are written as their name in `torch`."""


class NotRecordable(Exception):
    """A tensor is not made of tensors of a checkpoint by operations that move values."""


def recipe_of(tensor: Tensor) -> Recipe:
    """The recipe of a lazy tensor of a `Checkpoint`.

    Raises:
        NotRecordable: If the tensor is not lazy, or its values are computed, as those of a dequantised tensor.
    """
    source = tensor.source if isinstance(tensor, LazyTensor) else None
    dtype = _name(tensor.dtype)
    if isinstance(source, FileSource):
        return {"dtype": dtype, "stored": source.name, "entry": list(source.path)}
    if not isinstance(source, Operation) or source.function not in NAMES:
        raise NotRecordable
    args = [_encoded(argument) for argument in source.args]
    return {"dtype": dtype, "operation": NAMES[source.function], "args": args, "output": source.output}


def tensor_of(recipe: Recipe, checkpoint: Mapping[str, LazyTensor], is_converted: bool = False) -> LazyTensor:
    """The lazy tensor that a recipe describes.

    Args:
        recipe: The recipe.
        checkpoint: The tensors that it names.
        is_converted: As for a `LazyTensor`.

    Raises:
        Exception: If the recipe names another operation, or no tensor or entry of the checkpoint, or is damaged.
    """
    if "stored" in recipe:
        tensor = checkpoint[recipe["stored"]]
        for index in recipe["entry"]:
            tensor = LazyTensor.apply(aten.select.int, (tensor, 0, index), {})
    else:
        tensor = _result(
            recipe["operation"], [_decoded(argument, checkpoint, is_converted) for argument in recipe["args"]]
        )
        tensor = tensor if recipe["output"] is None else tensor[recipe["output"]]
    dtype = _constant(recipe["dtype"])
    tensor = tensor if tensor.dtype == dtype else tensor.cast(dtype)
    tensor.is_converted = is_converted
    return tensor


def _result(name: str, args: list[Any]) -> Any:
    if name == "cast":
        return args[0].cast(args[1])
    if name == "copy":
        return LazyTensor.apply(CLONE, args[:1], {"memory_format": args[1]})
    return LazyTensor.apply(OPERATIONS[name], args, {})


def _encoded(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return {"tensor": recipe_of(argument)}
    if isinstance(argument, list | tuple):
        return [_encoded(part) for part in argument]
    if isinstance(argument, CONSTANTS):
        return {"constant": _name(argument)}
    if type(argument) not in PLAIN:
        raise NotRecordable
    return argument


def _decoded(argument: Any, checkpoint: Mapping[str, LazyTensor], is_converted: bool) -> Any:
    if isinstance(argument, list):
        return [_decoded(part, checkpoint, is_converted) for part in argument]
    if isinstance(argument, dict) and "tensor" in argument:
        return tensor_of(argument["tensor"], checkpoint, is_converted)
    return _constant(argument["constant"]) if isinstance(argument, dict) else argument


def _name(constant: Any) -> str:
    return str(constant).removeprefix("torch.")


def _constant(name: str) -> Any:
    constant = getattr(torch, name)
    if not isinstance(constant, CONSTANTS):
        raise TypeError(name)
    return constant
