"""The lens of paper A: raw weights, and one embedding matrix for both sides."""

from typing import Any

from .. import errors
from ..demo.catalog import names as demo_names
from ..lens import EmbeddingLens
from .experiment import Setting
from .runs import split_models

LENS = "raw weights, W_U for both sides, all tokens, inner products"


def raw_lens(model: str, **options: Any) -> EmbeddingLens:
    """A model as the authors read it: weights without norms, W_U (GPT-2's only embedding) for reading and writing."""
    return EmbeddingLens.from_pretrained(model, **{"space": "unembed", "fold_ln": False, **options})


def legible_lens(model: str, **options: Any) -> EmbeddingLens:
    """A model as lists of words: cosines with frequent words for demo models, and with whole words for others."""
    vocabulary = "frequent" if model in demo_names() else "words"
    return EmbeddingLens.from_pretrained(model, **{"vocabulary": vocabulary, "score": "cosine", **options})


def two_models(name: str, setting: Setting) -> tuple[str, str]:
    """The two models of a setting.

    Raises:
        EmbspaceError: If there are not two.
    """
    models = split_models(setting.model)
    if len(models) != 2:
        raise errors.other_model_needed(name, setting.model, "two models, joined by a comma")
    return models[0], models[1]
