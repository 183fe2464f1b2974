"""Vectors that others made: arrays, probes, sparse autoencoders, transcoders, factors → rows of the residual stream."""

from typing import Any

from torch import Tensor

from .. import errors
from ..space.embedding_space import SIDES
from ..space.embeddings import as_tensor

NOT_RESIDUAL = ("hook_z", "hook_q", "hook_k", "hook_v", "hook_pre", "hook_post")
"""Hook points inside a component, whose activations are no residual vectors even where they are as wide."""


def residual_vectors(vectors: Any, side: str) -> Tensor:
    """The directions of whatever holds some, one a row, for the reader to check.

    Args:
        vectors: Anything that becomes a tensor; or an object with a dictionary: `W_dec` and `W_enc` (SAELens's autoencoders and
            transcoders, and those made like them), `decoder` and `encoder` layers, or `directions` (`Factors`).
        side: `"write"` for decoders, `"read"` for encoders; factors have one set of directions for both.

    Returns:
        `[n, d_model]`, or what the object itself is shaped as.

    Raises:
        EmbspaceError: If the side is unknown, a dictionary lacks it, or it reads what is no residual stream.
    """
    if side not in SIDES:
        raise errors.choice("side", side, SIDES)
    if isinstance(getattr(vectors, "directions", None), Tensor):
        return as_tensor(vectors.directions, "directions")
    decoder, encoder = _matrix(vectors, "W_dec", "decoder"), _matrix(vectors, "W_enc", "encoder")
    if decoder is None and encoder is None:
        return as_tensor(vectors, "vectors")
    _refuse_inner(vectors)
    found, name = (decoder, "W_dec") if side == "write" else (encoder, "W_enc")
    if found is None:
        raise errors.EmbspaceError(f"{type(vectors).__name__} has no {name}, so side={side!r} has nothing to read.")
    found = as_tensor(found, name)
    # SAELens stores [d_in, d_sae], others a row a feature; the decoder, always a row a feature, tells which.
    across = side == "read" and found.ndim == 2 and (decoder is None or found.shape[1] == len(decoder))
    return found.T if across else found


def _matrix(owner: Any, name: str, layer: str) -> Any:
    """A weight under SAELens's name, `[d_in, d_sae]` or `[d_sae, d_out]`, or a linear layer's in that orientation."""
    found = getattr(owner, name, None)
    if found is None:
        weight = getattr(getattr(owner, layer, None), "weight", None)  # a linear layer stores its transpose
        found = weight.T if isinstance(weight, Tensor) and weight.ndim == 2 else None
    return found


def _refuse_inner(owner: Any) -> None:
    cfg = getattr(owner, "cfg", None)
    hook = getattr(getattr(cfg, "metadata", None), "hook_name", None) or getattr(cfg, "hook_name", None)
    if isinstance(hook, str) and hook.rsplit(".", 1)[-1] in NOT_RESIDUAL:
        raise errors.EmbspaceError(
            f"{type(owner).__name__} was trained on {hook}, which is no residual vector. For hook_z, give W_dec @ W_O of its block."
        )
