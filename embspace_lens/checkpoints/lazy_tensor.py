"""Tensors that are read from a checkpoint when their values are needed, and not before."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .. import errors

aten: Any = torch.ops.aten

UNCHANGED = {aten.alias.default, aten.detach.default, aten.lift_fresh.default}
"""Operations whose result has the values of their argument."""

REARRANGING = {
    aten._reshape_alias.default,
    aten._unsafe_view.default,
    aten.cat.default,
    aten.constant_pad_nd.default,
    aten.expand.default,
    aten.permute.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.squeeze.dim,
    aten.stack.default,
    aten.t.default,
    aten.transpose.int,
    aten.unbind.int,
    aten.unsqueeze.default,
    aten.view.default,
}
"""Operations that move values and do not compute with them."""

DIMENSION_ARGUMENT = {
    aten.cat.default: 1,
    aten.stack.default: 1,
    aten.split.Tensor: 2,
    aten.split_with_sizes.default: 2,
}
"""The position of the argument `dim`, which is 0 if it is missing."""

CAST = aten._to_copy.default
CLONE = aten.clone.default
NEW = {aten.empty_like.default, aten.rand_like.default, aten.zeros_like.default, aten.ones_like.default}
"""Operations on a tensor's shape, with which transformers computes initial values that it does not use."""


@runtime_checkable
class Source(Protocol):
    """Where the values of a lazy tensor come from."""

    def read(self) -> Tensor:
        """The values."""
        ...

    def entry(self, index: int) -> "Source":
        """The source of one entry of the first dimension."""
        ...


class Operation(NamedTuple):
    """The result of an operation on tensors, of which some are lazy.

    Attributes:
        function: The operation.
        args: Its arguments.
        output: Which of several results; None for an operation with one result.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    output: int | None = None

    def read(self) -> Tensor:
        """Read the arguments, and apply the operation to them."""
        result = self.function(*pytree.tree_map(_stored, self.args))
        return result if self.output is None else result[self.output]

    def entry(self, index: int) -> Source:
        """Read one entry of the first dimension: where the operation allows it, from one entry of the arguments."""
        function, args = self.function, self.args
        if function is aten.permute.default and args[1][0] % args[0].ndim == 0:
            return Operation(function, (args[0][index], [axis % args[0].ndim - 1 for axis in args[1][1:]]))
        if function is aten.transpose.int and all(axis % args[0].ndim for axis in args[1:]):
            return Operation(function, (args[0][index], *(axis % args[0].ndim - 1 for axis in args[1:])))
        if function in DIMENSION_ARGUMENT:
            position = DIMENSION_ARGUMENT[function]
            tensors = args[0] if isinstance(args[0], list | tuple) else args[0:1]
            dim = args[position] % tensors[0].ndim if len(args) > position else 0
            if function is aten.stack.default and dim == 0:
                return source_of(tensors[index])
            if function is not aten.stack.default and dim > 0:
                parts: Any = [tensor[index] for tensor in tensors]
                parts = parts if isinstance(args[0], list | tuple) else parts[0]
                return Operation(function, (parts, *args[1:position], dim - 1), self.output)
        return Operation(aten.select.int, (LazyTensor(self, self._like()), 0, index))

    def _like(self) -> Tensor:
        result = self.function(*pytree.tree_map(_meta, self.args))
        return result if self.output is None else result[self.output]


class Entrywise(Operation):
    """The result of an operation that treats each entry of the first dimension of its tensors by itself."""

    def entry(self, index: int) -> Source:
        """Read one entry of all tensors."""
        return Operation(self.function, tuple(x[index] if isinstance(x, Tensor) else x for x in self.args))


def cast_values(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The values in another precision."""
    return x.to(dtype)


def copy_values(x: Tensor, memory_format: torch.memory_format | None = None) -> Tensor:
    """The values in another order in memory."""
    return CLONE(x, memory_format=memory_format)


class LazyTensor(Tensor):
    """A tensor with a shape and a dtype whose values are read when `read` is called, and never kept.

    Operations that only move values give other lazy tensors, so that transformers can merge the parameters of a checkpoint,
    and TransformerLens can split them, before anything is read. All other operations raise an error: a model with lazy
    parameters cannot be run.

    Args:
        source: Where the values come from. Their dtype may be narrower than that of the tensor.
        like: A tensor with the shape and the dtype, on any device.

    Attributes:
        source: Where the values come from.
        place: The device of the values that `read` returns. Those of a local file lie in its pages in memory: they must not be
            changed in place, or later readings find the changed values.
        is_converted: Whether values are converted to the tensor's dtype before they are moved, as those of a model in memory.
            They then have the same order in memory, and the same sums to the last bit.
    """

    source: Source
    place: torch.device | None = None
    is_converted: bool = False

    @staticmethod
    def __new__(cls, source: Source, like: Tensor) -> "LazyTensor":
        make: Any = torch.Tensor._make_wrapper_subclass
        tensor = make(cls, like.shape, dtype=like.dtype, device="cpu", strides=like.stride())
        tensor.source = source
        return tensor

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"LazyTensor({tuple(self.shape)}, {self.dtype})"

    def read(self) -> Tensor:
        """The values in the precision in which they are stored, which a cast to float32 does not change; or converted."""
        values = _stored(self)
        if self.is_converted:
            return values.to(self.place)
        return values.to(self.place, torch.float64 if self.dtype == torch.float64 else values.dtype)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = cls.apply(func, args, kwargs or {})
        first = next(leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, LazyTensor))
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, LazyTensor):
                tensor.place, tensor.is_converted = first.place, first.is_converted
        return result

    @classmethod
    def apply(cls, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operation as lazy tensors.

        Raises:
            EmbspaceError: If the operation computes with values.
        """
        if func in UNCHANGED:
            return cls(args[0].source, args[0])
        if func is CAST:
            return args[0].cast(kwargs.get("dtype") or args[0].dtype)
        if func is CLONE:
            order = kwargs.get("memory_format")
            return cls(Entrywise(copy_values, (args[0], order)), copy_values(_meta(args[0]), order))
        if func in NEW:
            return func(_meta(args[0]), **kwargs | {"device": "meta"})
        if func not in REARRANGING or kwargs:
            raise errors.offloaded_model(str(func).split(".")[1])
        like = func(*pytree.tree_map(_meta, args))
        if func is aten.select.int and args[1] % args[0].ndim == 0:
            return cls(args[0].source.entry(args[2] % len(args[0])), like)
        if isinstance(like, Tensor):
            return cls(Operation(func, args), like)
        return [cls(Operation(func, args, i), part) for i, part in enumerate(like)]

    def cast(self, dtype: torch.dtype) -> "LazyTensor":
        """The tensor in another precision. A wider one changes no value, so that none is converted before it is used."""
        if self.is_contiguous():  # on the meta device, `empty_like` imports sympy, which takes a third of a second
            like = torch.empty(self.shape, dtype=dtype, device="meta")
        else:
            like = torch.empty_like(_meta(self), dtype=dtype)
        is_one_byte = 1 in (self.dtype.itemsize, dtype.itemsize)  # torch promotes no 8-bit floating-point numbers
        if not is_one_byte and torch.promote_types(self.dtype, dtype) == dtype:
            return LazyTensor(self.source, like)
        return LazyTensor(Entrywise(cast_values, (self, dtype)), like)


def loaded(tensor: Any) -> Any:
    """The values of a lazy tensor; anything else is returned unchanged."""
    return tensor.read() if isinstance(tensor, LazyTensor) else tensor


def _stored(tensor: Any) -> Any:
    """The values of a lazy tensor where its source has them; anything else is returned unchanged."""
    if not isinstance(tensor, LazyTensor):
        return tensor
    values = tensor.source.read()
    return values.to(tensor.dtype) if tensor.is_converted else values


def source_of(tensor: Tensor) -> Source:
    """Where the values of a tensor come from."""
    return tensor.source if isinstance(tensor, LazyTensor) else Operation(aten.alias.default, (tensor,))


@contextmanager
def materialized(module: nn.Module) -> Iterator[None]:
    """Give a module's parameters their values for as long as the context lasts, so that it can be called."""
    owners = [(part, name, parameter) for part in module.modules() for name, parameter in part._parameters.items()]
    lazy: Any = [owner for owner in owners if isinstance(owner[2], LazyTensor)]
    values: dict[int, nn.Parameter] = {}
    try:
        for part, name, parameter in lazy:
            if id(parameter) not in values:
                values[id(parameter)] = nn.Parameter(parameter.read().to(parameter.dtype), requires_grad=False)
            part._parameters[name] = values[id(parameter)]
        yield
    finally:
        for part, name, parameter in lazy:
            part._parameters[name] = parameter


def _meta(x: Any) -> Any:
    """A tensor on the meta device with the shape and dtype of another; anything else is returned unchanged."""
    if not isinstance(x, Tensor):
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
