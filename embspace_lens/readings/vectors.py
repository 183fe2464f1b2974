"""Directions of arrays, probes, sparse autoencoders, transcoders and factors, as rows of the residual stream."""

from typing import Any

from torch import Tensor

from .. import errors
from ..space.embedding_space import SIDES
from ..space.embeddings import as_tensor
from ..tables.checks import check_choice
from ..weights.parameter_names import Side

NOT_RESIDUAL = ("hook_z", "hook_q", "hook_k", "hook_v", "hook_pre", "hook_post")
"""Hook points inside a component: their activations are not residual vectors, even if they have the same width."""


def residual_vectors(vectors: Any, side: Side) -> Tensor:
    """The directions of an object, one per row; their width is checked by the caller.

    Args:
        vectors: Anything that can be converted to a tensor; or an object with a dictionary: `W_dec` and `W_enc` (autoencoders and
            transcoders of SAELens and similar libraries), `decoder` and `encoder` (`Features`, or layers), or `directions` (`Factors`).
        side: `"write"` for decoders, `"read"` for encoders. Factors have the same directions on both sides.

    Returns:
        `[n, d_model]`, or the shape of the given tensor.

    Raises:
        EmbspaceError: If the side is unknown, the dictionary lacks it, or the dictionary is not of the residual stream.
    """
    check_choice("side", side, SIDES)
    if isinstance(getattr(vectors, "directions", None), Tensor):
        return as_tensor(vectors.directions, "directions")
    if isinstance(getattr(vectors, "decoder", None), Tensor):  # `Features`
        if side == "read" and vectors.encoder is None:
            raise errors.no_dictionary_side(type(vectors).__name__, "encoder", side)
        return vectors.decoder if side == "write" else vectors.encoder.T
    decoder, encoder = _matrix(vectors, "W_dec", "decoder"), _matrix(vectors, "W_enc", "encoder")
    if decoder is None and encoder is None:
        return as_tensor(vectors, "vectors")
    hook = _hook_name(vectors)
    if hook.rsplit(".", 1)[-1] in NOT_RESIDUAL:
        raise errors.not_residual(type(vectors).__name__, hook)
    matrix, weight = (decoder, "W_dec") if side == "write" else (encoder, "W_enc")
    if matrix is None:
        raise errors.no_dictionary_side(type(vectors).__name__, weight, side)
    matrix = as_tensor(matrix, weight)
    # SAELens stores encoders as [d_in, d_sae], other libraries one feature per row. A decoder always has one feature per row.
    is_transposed = side == "read" and matrix.ndim == 2 and (decoder is None or matrix.shape[1] == len(decoder))
    return matrix.T if is_transposed else matrix


def _matrix(owner: Any, weight: str, layer: str) -> Any:
    """The weight with SAELens's name, `[d_in, d_sae]` or `[d_sae, d_out]`; or the weight of a linear layer, transposed to this shape."""
    matrix = getattr(owner, weight, None)
    if matrix is None:
        linear = getattr(getattr(owner, layer, None), "weight", None)  # a linear layer stores [d_out, d_in]
        matrix = linear.T if isinstance(linear, Tensor) and linear.ndim == 2 else None
    return matrix


def _hook_name(owner: Any) -> str:
    """The hook point that a dictionary was trained on, as SAELens's configurations state it; empty if none is stated."""
    cfg = getattr(owner, "cfg", None)
    hook = getattr(getattr(cfg, "metadata", None), "hook_name", None) or getattr(cfg, "hook_name", None)
    return hook if isinstance(hook, str) else ""
