"""Which units there are to measure: the blocks that have a weight, and its directions there."""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from ..lens import EmbeddingLens
from ..readings.reader import Reader
from ..tables.selection import Select, select
from ..weights.effective import ATTENTION, Weights


def layers_with(lens: EmbeddingLens, weight: str, layer: Select, asked: bool) -> list[int]:
    """The selected blocks that have this weight.

    Raises:
        EmbspaceError: If it was asked for by name and the model, or a block that was named, lacks it.
    """
    weights, kind = lens.weights, "attn" if weight in ATTENTION else "mlp"
    if asked:
        layers = Reader(weights, lens.space, lens.vocabulary).layers(layer, kind)
    else:
        chosen = select("layer", layer, weights.n_layers, lens.name, "layers")
        layers = [number for number in chosen if number in weights.layers_with(kind)]
    if weight != "W_gate":
        return layers
    gated = [number for number in layers if weights.is_gated(number)]
    if asked and layers and not gated:
        weights.W_gate(layers[0])  # says that there is none
    return gated


def directions(weights: Weights, weight: str, layer: int) -> Iterator[Float[Tensor, "n d_model"]]:
    """The directions of a weight in one block: of all heads together, or expert by expert."""
    if weight in ATTENTION:
        yield weights.directions(weight, layer).flatten(0, 1)
    else:
        yield from (weights.directions(weight, layer, expert) for expert in weights.experts(layer) or [None])
