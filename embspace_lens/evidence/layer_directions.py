"""The layers that have a weight, and the weight's directions in one layer."""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from ..tables.selection import Select
from ..weights.effective import Weights
from ..weights.indices import weight_indices


def layers_of(weights: Weights, weight: str, layer: Select, *, required: bool) -> list[int]:
    """The selected layers that have a weight.

    Raises:
        EmbspaceError: If `required` is true, and the model or a named layer does not have it.
    """
    return list(dict.fromkeys(index.layer for index in weight_indices(weights, weight, layer, required=required)))


def directions_of(weights: Weights, weight: str, layer: int) -> Iterator[Float[Tensor, "_ d_model"]]:
    """The directions of a weight in one layer: of all heads together, or expert by expert."""
    for index in weight_indices(weights, weight, [layer]):
        yield weights.directions(weight, *index).reshape(-1, weights.d_model)
