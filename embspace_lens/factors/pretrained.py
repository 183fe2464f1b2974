"""The dictionary that comes with a demo model."""

from pathlib import Path

from .. import errors
from ..demo import catalog
from .dictionary import WEIGHTS, Factors


def demo_factors(name: str = "reviews-small-0") -> Factors:
    """Load the factors of a demo model, offline.

    They were fitted with `fit_factors` to 4.5 million hidden states after all blocks, without the embedding, on training
    reviews.

    Args:
        name: The name of the demo model.

    Returns:
        The `Factors`.

    Raises:
        EmbspaceError: If the package contains no factors of this model.

    Example:
        >>> demo_factors()
        Factors(1000 factors, d_model 192, l1 2)
    """
    folders: dict[str, Path] = {
        file.parents[1].name: file.parent for file in catalog.MODELS.glob(f"*/factors/{WEIGHTS}")
    }
    if name not in folders:
        raise errors.choice("factors", name, sorted(folders))
    return Factors.load(folders[name])
