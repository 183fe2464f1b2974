"""The dictionaries of features that come with a demo model."""

from .. import errors
from ..demo import catalog
from .dictionary import Features

WEIGHTS = "sae_weights.safetensors"


def demo_features(name: str = "sae-1", *, model: str = "reviews-small-0") -> Features:
    """Load a dictionary of a demo model, offline.

    Three JumpReLU dictionaries were trained by `python -m embspace_lens.demo.train_features` on training reviews: `"sae-1"`, of
    the residual stream in the middle of the model, and `"transcoder-1"` and `"transcoder-3"`, of the MLPs of these layers.
    `transcoder-1` writes before `sae-1` reads, and both write before the heads of layers 2 and 3 and `transcoder-3` read.
    The folder's `README.md` states how well they rebuild what they replace.

    Args:
        name: The name of the dictionary.
        model: The name of the demo model.

    Returns:
        The `Features`, in half precision as stored.

    Raises:
        EmbspaceError: If the package contains no such dictionary, or none of this model.

    Example:
        >>> demo_features("transcoder-1")
        Features(transcoder-1: 500 features at blocks.1.mlp.hook_in → blocks.1.hook_mlp_out, d_model 192)
    """
    files = list(catalog.MODELS.glob(f"*/features/*/{WEIGHTS}"))
    models = {file.parents[2].name for file in files}
    if model not in models:
        raise errors.choice("model", model, sorted(models))
    folders = {file.parent.name: file.parent for file in files if file.parents[2].name == model}
    if name not in folders:
        raise errors.choice("features", name, sorted(folders))
    return Features.load(folders[name])
