"""Where a weight exists: in which blocks, and in which experts of mixtures."""

from .. import errors
from ..tables.selection import Select
from .effective import Weights
from .experts import NO_EXPERT
from .parameter_names import MLP, WeightIndex, sublayer_of


def weight_indices(weights: Weights, weight: str, layer: Select = None, *, required: bool = True) -> list[WeightIndex]:
    """The selected blocks that have a weight; one index per expert in a mixture.

    Args:
        weights: The model's weights.
        weight: The weight's name.
        layer: Which blocks; all by default.
        required: Whether a missing weight raises an error. With False, the list is empty.

    Raises:
        EmbspaceError: If a layer is out of range; or if `required` is true, and a selected block lacks the weight or no block has it.
    """
    sublayer = sublayer_of(weight)
    if not required:
        layers_with_sublayer = weights.layers_with(sublayer)
        layer = [index for index in weights.select_any_layers(layer) if index in layers_with_sublayer]
        if not layer:
            return []
    if weight not in MLP:
        return [WeightIndex(index, NO_EXPERT) for index in weights.select_layers(layer, sublayer)]
    mlps = weights.mlps(layer)
    if weight != "W_gate":
        return mlps
    gated = [index for index in mlps if weights.is_gated(index.layer)]
    if required and mlps and not gated:
        raise errors.not_gated(weights.name, mlps[0].layer)
    return gated
