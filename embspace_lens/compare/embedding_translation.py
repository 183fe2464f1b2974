"""Translations fitted to the embeddings of shared tokens."""

import torch

from ..lens import EmbeddingLens
from ..search.tiles import chunks, float64
from ..tables.checks import check_choice
from .common_tokens import check_lens, shared_rows, shared_tokens
from .map_fitting import INVERSES, Inverse, Moments, fit_translation
from .translation import Translation


def translate(
    source: EmbeddingLens, target: EmbeddingLens, *, inverse: Inverse = "pinv", rank: int | None = None
) -> Translation:
    r"""Map residual vectors of one model to another through their shared vocabulary, with no forward pass.

    With S and T the embeddings of the shared tokens through which the two lenses write (n_tokens × d):

    .. math:: \text{pinv: } S^\top T (T^\top T)^{+} \qquad \text{least\_squares: } (S^\top S)^{+} S^\top T

    - `"pinv"` is the paper's map: the target vector whose scores are nearest to the scores of the source vector.
    - `"least_squares"` minimises ‖S K − T‖: it maps each token's embedding as near as possible to its embedding in the target.
    - `"ridge"` is least squares with 1 % of the mean eigenvalue of SᵀS added to SᵀS.
    - `"procrustes"` is the best rotation, scaled.
    - `"transpose"` is SᵀT, scaled. It is not an inverse and serves as a control.

    Token masks and `score="centered"` are those of the lenses.

    Args:
        source: The lens of the model that vectors come from.
        target: The lens of the model that they go to.
        inverse: One of the five methods.
        rank: How many singular directions of the map to keep; all by default.

    Returns:
        A `Translation`. Call it on probes, steering vectors, rows of an SAE, or a classifier's directions.

    Raises:
        EmbspaceError: If the models share fewer than 100 tokens, or an option is unknown.

    Example:
        >>> translation = translate(lens, lens)
        >>> round(translation.round_trip_error, 3)
        0.0

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space, §5. https://arxiv.org/abs/2209.02535
    """
    check_choice("inverse", inverse, INVERSES)
    source, target = check_lens(source), check_lens(target)
    ids_source, ids_target = shared_tokens(source, target)
    rows_source, rows_target = shared_rows(source, "write", ids_source), shared_rows(target, "write", ids_target)
    d_source, d_target = rows_source.shape[1], rows_target.shape[1]
    shapes = ((d_source, d_source), (d_source, d_target), (d_target, d_target))
    moments = Moments(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))
    for chunk in chunks(len(ids_source), 8 * (d_source + d_target)):
        s, t = (float64(rows[chunk]).cpu() for rows in (rows_source, rows_target))
        moments.ss.addmm_(s.T, s)
        moments.st.addmm_(s.T, t)
        moments.tt.addmm_(t.T, t)
    return fit_translation(moments, inverse, rank, source.name, target.name, len(ids_source))
