"""The dictionaries of features that come with a demo model."""

from pathlib import Path

from safetensors.torch import load_file

from .. import errors
from ..demo import catalog
from ..files import read_json
from .dictionary import Features
from .encoders import Activation

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
    return _read(folders[name])


def _read(folder: Path) -> Features:
    """The dictionary of a folder that `train_features` wrote."""
    place = read_json(folder / "cfg.json")["metadata"]
    tensors = load_file(folder / WEIGHTS)
    return Features(
        tensors["W_dec"],
        tensors["W_enc"],
        name=folder.name,
        layer=int(place["hook_name"].split(".")[1]),
        hook=place["hook_name"],
        output_hook=place.get("hook_name_out", place["hook_name"]),
        activation=Activation("jumprelu", bias=tensors["b_enc"], threshold=tensors["threshold"]),
        decoder_bias=tensors["b_dec"],
        trained_on="raw",
    )
