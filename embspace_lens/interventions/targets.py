"""Hook targets: the components that one hook point holds, and how to read and edit them in its value."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import errors
from ..search.tiles import upcast
from ..space.embeddings import as_tensor
from ..weights.effective import Weights
from ..weights.hook_points import head_hook, neuron_hook, stream_hook
from .components import Component, Kind
from .feature_targets import Encoder, FeatureTarget

SHARED_HOOKS = ("hook_k", "hook_v")  # with grouped queries, these have one head per group


@dataclass(frozen=True)
class HookTarget:
    """The components of a table that one hook point holds; all are of one kind.

    Attributes:
        hook: The hook point's name.
        kind: neuron, head, subhead or direction.
        component_indices: Which of the table's components they are.
        coordinates: Neurons; or heads; or heads and indices within d_head. Empty for directions.
        width: The size of the last dimension of the hook point's value.
        n_heads: The number of query heads, for heads and sub-heads; 0 for neurons and directions.
        vectors: Unit vectors, for directions.
    """

    hook: str
    kind: Kind
    component_indices: list[int]
    coordinates: tuple[Int[Tensor, " n"], ...]
    width: int
    n_heads: int = 0
    vectors: Float[Tensor, "n d_model"] | None = None

    def index(self, value: Tensor) -> tuple[Int[Tensor, " n"], ...]:
        """The indices of the components in the last dimensions of the hook point's value.

        Raises:
            EmbspaceError: If the value has another shape than the weights imply.
        """
        heads = value.shape[-2] if self.n_heads and value.ndim > 2 else 0
        is_shared = self.hook.endswith(SHARED_HOOKS)
        fits = value.shape[-1] == self.width and bool(heads) == bool(self.n_heads)
        if not fits or (heads and (self.n_heads % heads if is_shared else heads != self.n_heads)):
            sizes = [*([self.n_heads] if self.n_heads else []), self.width]
            raise errors.unsupported(
                f"The value at {self.hook}",
                f"its shape is {tuple(value.shape)}, but the weights imply [..., {', '.join(map(str, sizes))}]",
            )
        coordinates = tuple(part.to(value.device) for part in self.coordinates)
        # The query heads of a group share their key and value head.
        return (coordinates[0] // (self.n_heads // heads), *coordinates[1:]) if heads else coordinates

    def shares_values(self, value: Tensor) -> bool:
        """Whether two components are the same entry of the value, because query heads of a group share keys and values."""
        index = self.index(value)
        return bool(index) and torch.stack(index).unique(dim=1).shape[1] < len(self.component_indices)

    def read(self, value: Tensor) -> Tensor:
        """The components' activations: `[..., n]`; for heads `[..., n, d_head]`."""
        index = self.index(value)
        if self.vectors is not None:
            x = upcast(value)
            return x @ self.vectors.to(x).T
        return value[..., index[0], :] if self.kind == "head" else value[(..., *index)]

    def write(self, value: Tensor, activations: Tensor) -> Tensor:
        """A copy of the hook point's value with other activations of the components."""
        if self.vectors is not None:
            # The smallest change that gives every direction its new coordinate; directions need not be orthogonal.
            x = upcast(value)
            change = (activations.to(x) - self.read(value)) @ torch.linalg.pinv(self.vectors.to(x)).T
            return (x + change).to(value.dtype)
        index, value = self.index(value), value.clone()
        if self.kind == "head":
            value[..., index[0], :] = activations.to(value)
        else:
            value[(..., *index)] = activations.to(value)
        return value


Target = HookTarget | FeatureTarget


def hook_targets(model: Any, components: Iterable[Component], vectors: Any = None) -> list[Target]:
    """The hook points of all components, in the order of the forward pass.

    Raises:
        EmbspaceError: If the model has no such component, or no hook point at which an edit of it takes effect.
    """
    components = list(components)
    if isinstance(vectors, Encoder) and any(component.kind == "feature" for component in components):
        indices = [component.feature for component in components]
        if max(indices) >= len(vectors):
            raise errors.out_of_range("feature", max(indices), vectors.name, len(vectors), "features")
        return [FeatureTarget(model, vectors, list(range(len(components))), torch.tensor(indices))]
    weights = Weights(model)
    groups: dict[tuple, list[tuple[int, Component]]] = {}
    for index, component in enumerate(components):
        key = (component.layer, component.kind, component.expert, component.weight)
        groups.setdefault(key, []).append((index, component))
    return [
        _hook_target(weights, [index for index, _ in groups[key]], [component for _, component in groups[key]], vectors)
        for key in sorted(groups)
    ]


def _hook_target(
    weights: Weights, component_indices: list[int], components: list[Component], vectors: Any
) -> HookTarget:
    """The target of components that differ only in head, neuron, sub-head or direction."""
    kind, layer, expert, weight = (getattr(components[0], name) for name in ("kind", "layer", "expert", "weight"))
    if kind == "direction":
        units = torch.stack([_unit_vector(vectors, component.direction, weights) for component in components])
        hook = stream_hook(weights, layer)
        return HookTarget(hook, kind, component_indices, (), weights.d_model, vectors=units)
    if kind == "neuron":
        weights.select_layers([layer], "mlp")
        hook, width = neuron_hook(weights, layer, expert), weights.d_mlp(layer, expert)
        neurons = _coordinates("neuron", components, width, weights)
        return HookTarget(hook, kind, component_indices, (neurons,), width)
    weights.select_layers([layer], "attn")
    hook = head_hook(weights, layer, weight or "W_O")
    d_head = weights.stored("W_O", layer).shape[1]
    coordinates = (_coordinates("head", components, weights.n_heads, weights),)
    if kind == "subhead":
        coordinates = (*coordinates, _coordinates("subhead", components, d_head, weights))
    return HookTarget(hook, kind, component_indices, coordinates, d_head, weights.n_heads)


def _coordinates(name: str, components: list[Component], count: int, weights: Weights) -> Int[Tensor, " n"]:
    """The components' heads, neurons or sub-heads.

    Raises:
        EmbspaceError: If the block does not have one of them.
    """
    values = [getattr(component, name) for component in components]
    if max(values) >= count:
        block = f"block {components[0].layer} of {weights.name}"
        raise errors.out_of_range(name, max(values), block, count, f"{name}s")
    return torch.tensor(values)


def _unit_vector(vectors: Any, name: str | int, weights: Weights) -> Float[Tensor, " d_model"]:
    """The unit vector of a direction or factor.

    Raises:
        EmbspaceError: If there is none, it has another width, or it is zero or not finite.
    """
    if vectors is None:
        raise errors.missing_vectors()
    try:
        is_name = isinstance(vectors, Mapping) and name in vectors  # integer names are strings in the tables of keys
        vector = vectors[name if is_name else int(name)]
    except (KeyError, IndexError, ValueError) as reason:
        raise errors.missing_vector(name) from reason
    vector = upcast(as_tensor(vector, f"the vector of {name!r}"))
    if vector.shape != (weights.d_model,):
        raise errors.bad_width(vector.shape[-1] if vector.ndim else 0, weights.name, weights.d_model)
    length = torch.linalg.vector_norm(vector)
    if not torch.isfinite(length) or length == 0:
        raise errors.no_direction(name)
    return vector / length
