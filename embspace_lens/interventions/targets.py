"""Where the rows of a table are in a forward pass: hook points, and places in what passes there.

Facts about the host's hook points that no attribute tells stand here, with what to use instead.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .. import errors
from ..search.tiles import working_dtype
from ..space.embeddings import as_tensor
from ..tables.columns import GLOSSARY
from ..tables.frames import tidy
from ..tables.selection import weight_names
from ..weights.effective import ATTENTION, Weights
from ..weights.hook_points import head_hook, neuron_hook, stream_hook

KEYS = ("factor", "layer", "expert", "head", "neuron", "subhead", "weight", "direction")


class Unit(NamedTuple):
    """One neuron, head, sub-head or direction; −1 and "" where a key does not apply."""

    kind: str
    layer: int
    expert: int = -1
    head: int = -1
    neuron: int = -1
    subhead: int = -1
    weight: str = ""
    direction: str | int = ""


@dataclass(frozen=True)
class Site:
    """The units of a table that one hook point holds.

    Attributes:
        hook: The hook point's name.
        kind: neuron, head, subhead or direction: a site holds one kind.
        numbers: Which of the table's units they are.
        place: Their neurons; their heads; or their heads and their places in d_head.
        width: What the hook point's last dimension must be.
        n_heads: Query heads, for heads and sub-heads; key and value heads may be fewer.
        vectors: Unit vectors `[n, d_model]`, for directions.
    """

    hook: str
    kind: str
    numbers: list[int]
    place: tuple[Tensor, ...]
    width: int
    n_heads: int = 0
    vectors: Tensor | None = None

    def index(self, value: Tensor) -> tuple[Tensor, ...]:
        """The units' places in the last dimensions of what passed the hook point, which must be as the weights say."""
        heads = value.shape[-2] if self.n_heads and value.ndim > 2 else 0
        shared = self.hook.endswith(("hook_k", "hook_v"))
        fits = value.shape[-1] == self.width and bool(heads) == bool(self.n_heads)
        if not fits or (heads and (self.n_heads % heads if shared else heads != self.n_heads)):
            wanted = ([self.n_heads] if self.n_heads else []) + [self.width]
            raise errors.unsupported(
                f"What passes {self.hook}",
                f"its shape is {tuple(value.shape)} where the weights say [..., {', '.join(map(str, wanted))}]",
            )
        place = tuple(part.to(value.device) for part in self.place)
        # Query heads of a group share their key and value head.
        return (place[0] // (self.n_heads // heads), *place[1:]) if heads else place

    def shares(self, value: Tensor) -> bool:
        """Whether two of the units are one and the same number, for query heads of a group share keys and values."""
        index = self.index(value)
        return bool(index) and torch.stack(index).unique(dim=1).shape[1] < len(self.numbers)

    def read(self, value: Tensor) -> Tensor:
        """The units' activations: a number each; of a head its d_head numbers, `[..., n_units, d_head]`."""
        index = self.index(value)
        if self.vectors is not None:
            return value.to(working_dtype(value.dtype)) @ self.vectors.to(value.device, working_dtype(value.dtype)).T
        return value[..., index[0], :] if self.kind == "head" else value[(..., *index)]

    def write(self, value: Tensor, new: Tensor) -> Tensor:
        """The same with other activations; nothing is changed in place."""
        if self.vectors is not None:
            # The least change after which every direction has its new coordinate; they need not be orthogonal.
            vectors = self.vectors.to(value.device, working_dtype(value.dtype))
            change = (new.to(vectors) - self.read(value)) @ torch.linalg.pinv(vectors).T
            return (value.to(change) + change).to(value.dtype)
        index, value = self.index(value), value.clone()
        if self.kind == "head":
            value[..., index[0], :] = new.to(value)
        else:
            value[(..., *index)] = new.to(value)
        return value


def keys_of(df: Any) -> pd.DataFrame:
    """The distinct units of a table, in its keys alone, in the order of the keys.

    Raises:
        EmbspaceError: If it is no table, or names no units.
    """
    if not isinstance(df, pd.DataFrame):
        raise errors.EmbspaceError(f"df is a {type(df).__name__}; give a table, such as lens.neurons(layer=0).")
    if "component" in df:
        raise errors.EmbspaceError(
            "df holds singular directions, which are vectors and no units of the model. Compute them, name them in a "
            "column `direction` beside `layer`, and give vectors={name: vector}."
        )
    if "layer" not in df or not {"neuron", "head", "direction", "factor"} & set(df.columns):
        raise errors.EmbspaceError(
            f"df has the columns {', '.join(map(repr, df.columns))}. Units are told by `layer` and `neuron`, `head`, "
            "`head` and `subhead`, `direction` or `factor`; df.assign(layer=…) adds a layer."
        )
    columns = [name for name in KEYS if name in df.columns]
    kept = df[columns].drop_duplicates()
    for name in columns:
        _refuse_fractions(name, kept[name])
    keys = tidy(columns, [{name: kept[name].tolist() for name in columns}] if len(kept) else [])
    return keys.sort_values(columns, kind="stable", ignore_index=True)


def _refuse_fractions(name: str, column: Any) -> None:
    """Numbers of layers and units must be whole: a missing one (NaN) would become another unit's."""
    if GLOSSARY[name].dtype != "int64":
        return
    numbers: Any = pd.to_numeric(column, errors="coerce")
    whole = numbers % 1 == 0
    if not whole.all():
        place = whole.tolist().index(False)
        raise errors.EmbspaceError(
            f"df holds {name}={column.tolist()[place]!r} (row {column.index[place]}), which is no whole number. "
            "Leave such rows out."
        )


def units_of(keys: pd.DataFrame) -> list[Unit]:
    """The unit of each row; what a row's weight is matters for sub-heads alone."""
    none = [-1] * len(keys)
    column = {name: keys[name].tolist() if name in keys else none for name in ("head", "neuron", "subhead", "expert")}
    weights = keys["weight"].tolist() if "weight" in keys else [""] * len(keys)
    named = next((keys[name].tolist() for name in ("direction", "factor") if name in keys), None)
    units = []
    for i, layer in enumerate(keys["layer"].tolist()):
        expert, head, neuron, subhead = (column[name][i] for name in ("expert", "head", "neuron", "subhead"))
        if named is not None:
            units.append(Unit("direction", layer, direction=named[i]))
        elif neuron >= 0:
            units.append(Unit("neuron", layer, expert=expert, neuron=neuron))
        elif head >= 0 and subhead >= 0:
            (weight,) = weight_names(weights[i], ATTENTION)
            units.append(Unit("subhead", layer, head=head, subhead=subhead, weight=weight))
        elif head >= 0:
            units.append(Unit("head", layer, head=head))
        else:
            raise errors.EmbspaceError(f"A row of df (layer {layer}) names no neuron, head or direction.")
    return units


def sites(model: Any, units: Iterable[Unit], vectors: Any = None) -> list[Site]:
    """The hook points of all units, in the order of the forward pass.

    Raises:
        EmbspaceError: If the model has no such unit, or no hook point at which an edit of it takes effect.
    """
    weights = Weights(model)
    groups: dict[tuple, list[tuple[int, Unit]]] = {}
    for number, unit in enumerate(units):
        groups.setdefault((unit.layer, unit.kind, unit.expert, unit.weight), []).append((number, unit))
    return [
        _site(weights, [number for number, _ in groups[key]], [unit for _, unit in groups[key]], vectors)
        for key in sorted(groups)
    ]


def _site(weights: Weights, numbers: list[int], units: list[Unit], vectors: Any) -> Site:
    """One site: its units differ in their place alone."""
    kind, layer, expert, _, _, _, weight, _ = units[0]
    if kind == "direction":
        chosen = torch.stack([_vector(vectors, unit.direction, weights) for unit in units])
        return Site(stream_hook(weights, layer), kind, numbers, (), weights.d_model, vectors=chosen)
    if kind == "neuron":
        weights.select_layers([layer], "mlp")
        width = weights.d_mlp(layer, expert)
        _inside("neuron", [unit.neuron for unit in units], width, weights, layer)
        place = (torch.tensor([unit.neuron for unit in units]),)
        return Site(neuron_hook(weights, layer, expert), kind, numbers, place, width)
    weights.select_layers([layer], "attn")
    hook = head_hook(weights, layer, weight or "W_O")
    d_head = weights.stored("W_O", layer).shape[1]
    _inside("head", [unit.head for unit in units], weights.n_heads, weights, layer)
    place = (torch.tensor([unit.head for unit in units]),)
    if kind == "subhead":
        _inside("subhead", [unit.subhead for unit in units], d_head, weights, layer)
        place = (*place, torch.tensor([unit.subhead for unit in units]))
    return Site(hook, kind, numbers, place, d_head, weights.n_heads)


def _vector(vectors: Any, name: str | int, weights: Weights) -> Tensor:
    """The unit vector that a row's `direction` or `factor` names."""
    if vectors is None:
        raise errors.EmbspaceError(
            "Rows of directions or factors need their vectors: give vectors={name: vector}, or the tensor whose rows they number."
        )
    try:
        vector = vectors[name] if isinstance(vectors, Mapping) else vectors[int(name)]
    except (KeyError, IndexError, ValueError) as reason:
        raise errors.EmbspaceError(f"vectors has none for {name!r}.") from reason
    vector = as_tensor(vector, f"the vector of {name!r}")
    if vector.shape != (weights.d_model,):
        raise errors.bad_width(vector.shape[-1] if vector.ndim else 0, weights.name, weights.d_model)
    length = torch.linalg.vector_norm(vector.to(working_dtype(vector.dtype)))
    if not torch.isfinite(length) or length == 0:
        raise errors.EmbspaceError(f"The vector of {name!r} is zero or not finite: it points nowhere.")
    return vector.to(working_dtype(vector.dtype)) / length


def _inside(name: str, numbers: list[int], count: int, weights: Weights, layer: int) -> None:
    worst = int(np.max(numbers))
    if worst >= count:
        raise errors.out_of_range(name, worst, f"block {layer} of {weights.name}", count, f"{name}s")
