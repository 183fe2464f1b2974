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
from ..space.embeddings import as_tensor, full
from ..tables.columns import GLOSSARY
from ..tables.frames import tidy
from ..tables.selection import weight_names
from ..weights.effective import ATTENTION, Weights
from ..weights.hook_points import state_hook

KEYS = ("factor", "layer", "expert", "head", "neuron", "subhead", "weight", "direction")
SUBHEAD_HOOKS = {"W_Q": "hook_q", "W_K": "hook_k", "W_V": "hook_v", "W_O": "hook_z"}
# The residual stream after a block of this architecture has no hook point of its own: what stands there never fires.
NO_RESID_POST = {"OpenAIGPTLMHeadModel"}


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
            return value.to(full(value.dtype)) @ self.vectors.to(value.device, full(value.dtype)).T
        return value[..., index[0], :] if self.kind == "head" else value[(..., *index)]

    def write(self, value: Tensor, new: Tensor) -> Tensor:
        """The same with other activations; nothing is changed in place."""
        if self.vectors is not None:
            # The least change after which every direction has its new coordinate; they need not be orthogonal.
            vectors = self.vectors.to(value.device, full(value.dtype))
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
        _refuse_out_of_range(weights, layer, "mlp")
        hook = _neurons_hook(weights, layer, expert)
        width = weights.d_mlp(layer, expert if weights.experts(layer) else None)
        _inside("neuron", [unit.neuron for unit in units], width, weights, layer)
        return Site(hook, kind, numbers, (torch.tensor([unit.neuron for unit in units]),), width)
    _refuse_out_of_range(weights, layer, "attn")
    stored = weights.host.attention(weights.host.blocks[layer], "W_O")  # refused where its heads are not what passes
    _inside("head", [unit.head for unit in units], weights.n_heads, weights, layer)
    place = [torch.tensor([unit.head for unit in units])]
    if kind == "subhead":
        _inside("subhead", [unit.subhead for unit in units], stored.shape[1], weights, layer)
        place.append(torch.tensor([unit.subhead for unit in units]))
    hook = f"blocks.{layer}.attn.{SUBHEAD_HOOKS[weight or 'W_O']}"
    _refuse_missing_hook(weights, hook)
    return Site(hook, kind, numbers, tuple(place), stored.shape[1], weights.n_heads)


def _neurons_hook(weights: Weights, layer: int, expert: int) -> str:
    experts = weights.experts(layer)
    hook = f"blocks.{layer}.mlp.hook_post"
    if experts not in ([], [-1]):
        # A HookedTransformer's experts are modules with hook points; a bridge's mixture is one module, and its hook_post
        # holds the block's output.
        hook = f"blocks.{layer}.mlp.experts.{expert}.hook_post"
        if not _has_hook(weights, hook):
            raise errors.unsupported(
                f"The activation of neurons in block {layer} of {weights.name}",
                "its mixture of experts has no hook point for neurons. "
                f"blocks.{layer}.hook_mlp_out holds what the experts add together",
            )
    _refuse_missing_hook(weights, hook)
    return hook


def stream_hook(weights: Weights, layer: int, hook: str = "hook_resid_post") -> str:
    """The hook point of the residual stream, or of what is added to it, at which an edit takes its whole effect.

    Raises:
        EmbspaceError: If there is none.
    """
    if hook == "hook_resid_mid" and weights.host.is_bridge:
        raise errors.unsupported(
            "hook_resid_mid of a TransformerBridge",
            "an edit there reaches the MLP and not the residual stream behind it. Use hook='hook_attn_out'",
        )
    if hook != "hook_resid_post":
        _refuse_out_of_range(weights, layer, "attn" if hook in ("hook_attn_out", "hook_resid_mid") else "")
        name = f"blocks.{layer}.{hook}"
    else:
        name = state_hook(weights.model, layer)
        if name.endswith("hook_resid_post") and weights.host.architecture in NO_RESID_POST:
            raise errors.unsupported(
                f"The residual stream after the last block of {weights.name}",
                f"edits there are discarded. Use hook='hook_mlp_out' or a layer up to {layer - 1}",
            )
    _refuse_missing_hook(weights, name)
    return name


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
    length = torch.linalg.vector_norm(vector.to(full(vector.dtype)))
    if not torch.isfinite(length) or length == 0:
        raise errors.EmbspaceError(f"The vector of {name!r} is zero or not finite: it points nowhere.")
    return vector.to(full(vector.dtype)) / length


def _refuse_out_of_range(weights: Weights, layer: int, kind: str) -> None:
    if not 0 <= layer < weights.n_layers:
        raise errors.out_of_range("layer", layer, weights.name, weights.n_layers, "layers")
    if kind and layer not in weights.layers_with(kind):
        raise errors.without(
            weights.name, [layer], {"attn": "attention", "mlp": "MLP"}[kind], weights.layers_with(kind)
        )


def _inside(name: str, numbers: list[int], count: int, weights: Weights, layer: int) -> None:
    worst = int(np.max(numbers))
    if worst >= count:
        raise errors.out_of_range(name, worst, f"block {layer} of {weights.name}", count, f"{name}s")


def _has_hook(weights: Weights, hook: str) -> bool:
    model: Any = weights.model
    return hook in model.hook_dict


def _refuse_missing_hook(weights: Weights, hook: str) -> None:
    if not _has_hook(weights, hook):
        raise errors.unsupported(f"{hook} of {weights.name}", "the model has no such hook point")
