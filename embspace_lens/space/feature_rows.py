"""Dictionaries of features as rows of the residual stream: what a feature writes to it, and what it reads from it."""

import re
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from .. import errors
from ..weights.architectures import Norm
from ..weights.effective import Weights
from ..weights.parameter_names import Side
from .embeddings import NO_NORM, Embedding, Score

BEFORE_GAIN = ("ln2.hook_normalized",)
"""Hook points behind the norm before the MLP, before its gain."""

AFTER_GAIN = ("mlp.hook_in", "ln2.hook_out")
"""Hook points behind the norm before the MLP and its gain."""

BEFORE_OUTPUT_NORM = ("mlp.hook_out",)
"""Hook points before the norm after the MLP, if there is one."""

INNER = ("hook_z", "hook_q", "hook_k", "hook_v", "hook_pre", "hook_post", "hook_pattern", "hook_attn_scores")
"""Hook points inside a component, whose values are not residual vectors."""


@runtime_checkable
class FeatureDictionary(Protocol):
    """A dictionary of features, such as `features.Features`."""

    @property
    def decoder(self) -> Tensor: ...
    @property
    def encoder(self) -> Tensor | None: ...
    @property
    def name(self) -> str: ...
    @property
    def hook(self) -> str: ...
    @property
    def output_hook(self) -> str: ...
    @property
    def trained_on(self) -> str: ...
    @property
    def strings(self) -> Any: ...
    def index(self, feature: str | int, /) -> int: ...
    def __len__(self) -> int: ...


def written_rows(weights: Weights, features: FeatureDictionary, score: Score = "dot") -> Embedding:
    r"""What active features add to the residual stream, one row per feature.

    .. math:: W_\mathrm{dec}\, \mathrm{diag}(\gamma_\mathrm{post})

    The gain is that of the norm after the MLP, for a decoder that writes before it (Gemma 2).

    Args:
        weights: The weights of the model on which the dictionary was trained.
        features: The dictionary.
        score: As in a lens.

    Raises:
        EmbspaceError: If the dictionary does not fit the model.
    """
    layer, point = _place(weights, features, features.output_hook or features.hook)
    norm = NO_NORM
    if layer is not None and point in BEFORE_OUTPUT_NORM and weights.fold_ln:
        norm = weights.norm("W_out", layer)
    return Embedding(features.decoder, norm, score=score)


def read_rows(weights: Weights, features: FeatureDictionary, score: Score = "dot") -> Embedding:
    r"""What features read from the residual stream, one row per feature, with the norm before the encoder folded in.

    .. math:: \bigl((I - \tfrac{1}{d} 1 1^\top)\, \mathrm{diag}(\gamma)\, W_\mathrm{enc}\bigr)^\top

    An encoder that reads the stream itself has no norm; one that reads `ln2.hook_normalized` has no gain. A dictionary that was
    trained on a centred stream reads a centred vector.

    Args:
        weights: The weights of the model on which the dictionary was trained.
        features: The dictionary.
        score: As in a lens.

    Raises:
        EmbspaceError: If the dictionary has no encoder or does not fit the model.
    """
    layer, point = _place(weights, features, features.hook)
    if features.encoder is None:
        raise errors.no_feature_encoder(features.name)
    norm = NO_NORM
    if layer is not None and point in (*BEFORE_GAIN, *AFTER_GAIN) and weights.fold_ln:
        norm = weights.norm("W_in", layer)
        if point in BEFORE_GAIN or features.trained_on == "centred":
            norm = Norm(norm.name, centres=norm.centres)
        elif features.trained_on == "raw" and norm.gain is not None and bool((norm.gain == 1).all()):
            raise errors.gain_folded_away(features.name, features.hook, weights.name, norm.name)
    norm = norm._replace(centres=norm.centres or features.trained_on == "centred")
    return Embedding(features.encoder.T, norm, score=score)


def folded_into(weights: Weights, features: FeatureDictionary, side: Side) -> str:
    """What is folded into a dictionary's rows, as text: `ln2 gain + centred`; empty for nothing."""
    rows = written_rows(weights, features) if side == "read" else read_rows(weights, features)
    parts = [f"{rows.norm.name} gain"] if rows.norm.gain is not None else []
    return " + ".join([*parts, *(["centred"] if rows.norm.centres else [])])


def _place(weights: Weights, features: Any, hook: str) -> tuple[int | None, str]:
    """The block and the point of a hook, such as (3, "mlp.hook_in"); None and the hook itself outside the blocks.

    Raises:
        EmbspaceError: If the dictionary has another width, its hook is inside a component, or the model has no such block.
    """
    if features.decoder.shape[1] != weights.d_model:
        raise errors.bad_width(features.decoder.shape[1], weights.name, weights.d_model, features.name)
    if hook.rpartition(".")[2] in INNER:
        raise errors.not_residual(features.name, hook)
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    if match is None:
        return None, hook
    layer = int(match[1])
    if layer >= weights.n_layers:
        raise errors.no_such_hook_block(features.name, hook, weights.name, weights.n_layers)
    return layer, match[2]
