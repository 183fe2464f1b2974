"""Reading ahead: the weights that come next are read from the disk or the network while others are projected."""

from collections.abc import Iterable

from ..checkpoints.checkpoint import ranges_of
from .effective import Weights
from .parameter_names import FACTORS, WeightIndex


def read_ahead(weights: Weights, names: Iterable[str], indices: Iterable[WeightIndex]) -> None:
    """Start to read weights that will be needed next, and return at once; nothing happens for a model in memory.

    Args:
        weights: The model's weights.
        names: Their names; a circuit stands for its two factors.
        indices: Where they are.
    """
    host = weights.host
    if host.checkpoint is None:
        return
    parameters = [part for name in names for part in FACTORS.get(name, (name,))]
    lazy = (host.lazy(name, *index) for index in indices for name in parameters)
    host.checkpoint.files.read_ahead(part for weight in lazy for part in ranges_of(weight))
