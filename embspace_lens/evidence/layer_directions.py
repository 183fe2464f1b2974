"""Which units there are to measure: the blocks that have a weight, and its directions there."""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from ..lens import EmbeddingLens
from ..tables.selection import Select
from ..weights.effective import Weights
from ..weights.indices import weight_indices


def layers_with(lens: EmbeddingLens, weight: str, layer: Select, asked: bool) -> list[int]:
    """The selected blocks that have this weight.

    Raises:
        EmbspaceError: If it was asked for by name and the model, or a block that was named, lacks it.
    """
    return list(dict.fromkeys(index.layer for index in weight_indices(lens.weights, weight, layer, required=asked)))


def directions(weights: Weights, weight: str, layer: int) -> Iterator[Float[Tensor, "n d_model"]]:
    """The directions of a weight in one block: of all heads together, or expert by expert."""
    for index in weight_indices(weights, weight, [layer]):
        yield weights.directions(weight, *index).reshape(-1, weights.d_model)
