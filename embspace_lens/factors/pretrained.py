"""The dictionary that comes with a demo model, and saliency computed for it."""

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
    return Factors.load(_folder(name))


def demo_saliency(name: str = "reviews-small-0") -> Path:
    """The checkpoint of `saliency` that comes with a demo model's factors; the site of the demo begins with these factors.

    It contains ten contexts of 50 factors in texts that the model samples, with 300 variants of each context. The command
    `python -m embspace_lens.site.demo_saliency` wrote it.

    Args:
        name: The name of the demo model.

    Returns:
        The path of the file, for `saliency(…, checkpoint=…)`.

    Raises:
        EmbspaceError: If the package contains no factors of this model.

    Example:
        >>> demo_saliency().name
        'saliency.safetensors'
    """
    return _folder(name) / "saliency.safetensors"


def _folder(name: str) -> Path:
    folders = {file.parents[1].name: file.parent for file in catalog.MODELS.glob(f"*/factors/{WEIGHTS}")}
    if name not in folders:
        raise errors.choice("factors", name, sorted(folders))
    return folders[name]
