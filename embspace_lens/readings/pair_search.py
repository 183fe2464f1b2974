"""The search for the best pairs of tokens of a block's heads."""

from collections.abc import Iterable

from jaxtyping import Float, Int
from torch import Tensor

from ..space.embedding_space import EmbeddingSpace
from ..space.normalized_pairs import NormalizedPairs
from ..weights.circuit_factors import Circuits
from ..weights.parameter_names import Side
from ..weights.query_key_norms import normalized_circuits
from .base import BaseLens, Block, entry_block, entry_columns

CIRCUIT_SIDES: dict[str, tuple[Side, Side]] = {"W_OV": ("read", "write"), "W_QK": ("read", "read")}
ENDS: dict[str, tuple[str, str]] = {"W_OV": ("src_", "dest_"), "W_QK": ("dest_", "src_")}
"""Which end of a pair each factor is applied to: W_OV maps a source to an output, W_QK a query (the destination) to a key."""


def pair_columns(lens: BaseLens, names: Iterable[str] = CIRCUIT_SIDES) -> list[str]:
    """The columns of the pairs that these circuits are read as."""
    sides: dict[str, set[Side]] = {"dest_": set(), "src_": set()}
    for name in names:
        for end, side in zip(ENDS[name], CIRCUIT_SIDES[name]):
            sides[end].add(side)
    return [column for end, of_end in sides.items() for column in entry_columns(lens, of_end, end)]


class FormPairs:
    """The search for a block's heads whose scores are bilinear forms: W_OV, and W_QK without norms of queries and keys.

    Args:
        space: The embedding space.
        circuits: The factors of each head's form.
        sides: The embeddings to which each factor is applied.
    """

    def __init__(self, space: EmbeddingSpace, circuits: Circuits, sides: tuple[Side, Side]) -> None:
        self._space, self._circuits, self._sides = space, circuits, sides

    def top(
        self, head: int, k: int, *, largest: bool = True, excluded: Int[Tensor, " p"] | None = None
    ) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"], Int[Tensor, " k"]]:
        """The best k pairs of a head; see `EmbeddingSpace.top_pairs`."""
        left, right = self._circuits[head]
        return self._space.top_pairs(left, right, self._sides, k, largest=largest, excluded=excluded)

    def top_partners(
        self, row: Float[Tensor, " d_model"], *, largest: bool = True
    ) -> tuple[Float[Tensor, " n_heads"], Int[Tensor, " n_heads"]]:
        """For each head, the best first token if the second is a given row; see `EmbeddingSpace.top_partners`."""
        forms = (self._circuits[head] for head in range(len(self._circuits)))
        return self._space.top_partners(forms, self._sides, row, largest=largest)


PairSearch = FormPairs | NormalizedPairs


def pair_search(lens: BaseLens, name: str, layer: int, distance: int | None = None) -> PairSearch:
    """The search for a block's heads: of normalised queries and keys if the block normalises them, else of bilinear forms."""
    circuits = normalized_circuits(lens.weights, layer, distance) if name == "W_QK" else []
    if circuits:
        return NormalizedPairs(lens.space, circuits)
    return FormPairs(lens.space, lens.weights.circuits(name, layer, distance), CIRCUIT_SIDES[name])


def pair_block(
    lens: BaseLens,
    search: PairSearch,
    name: str,
    head: int,
    k: int,
    *,
    largest: bool = True,
    excluded: Int[Tensor, " p"] | None = None,
) -> Block:
    """The best k pairs of tokens (or features) of one head as k rows."""
    scores, *ids = search.top(head, k, largest=largest, excluded=excluded)
    block: Block = {"score": scores.numpy()}
    for end, side, index in zip(ENDS[name], CIRCUIT_SIDES[name], ids, strict=True):
        block |= entry_block(lens, side, index.numpy(), end)
    return block
