"""Singular directions of weights as lists of tokens."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..tables.checks import check_integer
from ..tables.frames import tidy
from ..tables.selection import Select, weight_names
from ..weights.indices import weight_indices
from ..weights.parameter_names import ATTENTION, CIRCUITS, MLP, Side, WeightIndex, side_of
from .base import AnyWeight, BaseLens, Block, check_list_length, entry_columns, interleave, token_block

NO_HEAD = -1
# The two sides of a singular direction of a circuit: its name in the table, and the side of the embedding space.
CIRCUIT_SIDES: dict[str, tuple[tuple[str, Side], ...]] = {
    "W_OV": (("read", "read"), ("write", "write")),
    "W_QK": (("query", "read"), ("key", "read")),
}


class Decomposition(NamedTuple):
    """The strongest singular directions of one matrix: a head's circuit, or one weight."""

    head: int
    sides: tuple[tuple[str, Side], ...]
    values: Float[Tensor, " n"]
    vectors: list[Float[Tensor, "n d_model"]]  # of each side


def read_singular(
    lens: BaseLens,
    layer: Select = None,
    head: Select = None,
    *,
    weight: AnyWeight = "W_OV",
    n_directions: int = 10,
    k: int = 10,
) -> pd.DataFrame:
    """Read the singular directions of a weight, strongest first; see `EmbeddingLens.singular`."""
    (name,) = weight_names(weight, (*CIRCUITS, *ATTENTION, *MLP), default="W_OV")
    k = check_list_length(lens, k)
    n_directions = check_integer("n_directions", n_directions, minimum=1)
    if name in MLP and head is not None:
        raise errors.no_heads(head, name)
    heads = [NO_HEAD] if name in MLP else lens.weights.select_heads(head)
    indices = weight_indices(lens.weights, name, layer)

    def blocks() -> Iterator[Block]:
        for index in tqdm(indices, desc=f"singular {name}", unit="layer", disable=None, leave=False):
            for part in _decompositions(lens, name, index, heads, n_directions):
                sign = _sign(lens, part.vectors[-1], part.sides[-1][1])
                parts = []
                for (side, embedding_side), vectors in zip(part.sides, part.vectors):
                    block = token_block(lens, vectors * sign[:, None], embedding_side, k)
                    row = block.pop("row")
                    parts.append(
                        block | {"component": row, "side": [side] * len(row), "singular_value": part.values[row]}
                    )
                keys = {"layer": index.layer, "expert": index.expert, "head": part.head, "weight": name}
                yield from interleave(parts, keys, "component")

    columns = ["layer", *lens.expert_column, "head", "weight", "component", "side", "rank"]
    columns += [*entry_columns(lens), "score", "singular_value"]
    return tidy(columns, blocks(), lens.vocabulary.array, kind="tokens")


def _decompositions(
    lens: BaseLens, name: str, index: WeightIndex, heads: Sequence[int], n: int
) -> Iterator[Decomposition]:
    """The n strongest singular directions of each head, or of the whole weight of an MLP."""
    if name in CIRCUITS:
        circuits = lens.weights.circuits(name, index.layer)
        for h in heads:
            U, S, V = svd_of_product(*circuits[h])
            yield Decomposition(h, CIRCUIT_SIDES[name], S[:n].cpu(), [U[:, :n].T, V[:, :n].T])
        return
    matrices = lens.weights.directions(name, *index)
    sides: tuple[tuple[str, Side], ...] = ((side_of(name), side_of(name)),)
    for h in heads:
        _, S, Vh = torch.linalg.svd(matrices if h == NO_HEAD else matrices[h], full_matrices=False)
        yield Decomposition(h, sides, S[:n].cpu(), [Vh[:n]])


def svd_of_product(
    left: Float[Tensor, "n rank"], right: Float[Tensor, "m rank"]
) -> tuple[Float[Tensor, "n rank"], Float[Tensor, " rank"], Float[Tensor, "m rank"]]:
    """U, S and V with `left rightᵀ = U diag(S) Vᵀ`, as `FactoredMatrix.svd` computes them, without the product."""
    U_left, S_left, Vh_left = torch.linalg.svd(left, full_matrices=False)
    U_right, S_right, Vh_right = torch.linalg.svd(right.T, full_matrices=False)
    middle = S_left[:, None] * Vh_left @ U_right * S_right[None, :]
    U, S, Vh = torch.linalg.svd(middle, full_matrices=False)
    return U_left @ U, S, Vh_right.T @ Vh.T


def _sign(lens: BaseLens, x: Float[Tensor, "n d_model"], side: Side) -> Float[Tensor, " n"]:
    """±1 for each direction, so that its strongest token scores positive: a singular vector's sign is arbitrary."""
    best, worst = (lens.space.top(x, side, 1, largest=largest)[0][:, 0].abs() for largest in (True, False))
    return torch.where(best >= worst, 1.0, -1.0).to(x)
