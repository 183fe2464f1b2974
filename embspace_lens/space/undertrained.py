"""Under-trained tokens, recognised from the embeddings alone (Land & Bartolo 2024)."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from ..search.tiles import Rows, chunks, float64, row_bytes, take
from .vocabulary import Vocabulary

N_DEVIATIONS = 5  # robust standard deviations below the median at which an embedding's norm counts as too small


def never_trained(vocabulary: Vocabulary) -> list[int]:
    """Tokens that no text can contain: ids beyond the tokenizer's vocabulary, and bytes that UTF-8 never uses."""
    tokenizer = vocabulary.tokenizer
    padding = range(min(len(tokenizer), len(vocabulary)), len(vocabulary)) if tokenizer else ()
    unused_bytes = [0xC0, 0xC1, *range(0xF5, 0x100)]
    names = {f"<0x{byte:02X}>" for byte in unused_bytes}
    return [*padding, *(i for i, text in enumerate(vocabulary.strings) if text in names and not vocabulary.whole[i])]


def undertraining(
    vocabulary: Vocabulary, embeddings: Rows, unembeddings: Rows, known: list[int] | None = None
) -> tuple[Float[Tensor, " d_vocab"], float]:
    r"""How far each token's embedding is from those of tokens that were never trained, and a threshold.

    .. math:: I_v = 1 - \cos(u_v - \langle u_v, c\rangle c,\; \bar u - \langle \bar u, c\rangle c)

    with $u_v$ the unembedding of token v, $\bar u$ the mean unembedding of the tokens that were never trained and $c$ the common
    direction (first principal component). With fewer than two such tokens, $I_v = \lVert W_E[v] \rVert$.

    Args:
        vocabulary: The tokens.
        embeddings: The rows of W_E.
        unembeddings: The rows of W_Uᵀ.
        known: The ids of tokens that were never trained; those of `never_trained` by default.

    Returns:
        The indicator, and the threshold below which a token counts as under-trained. The threshold is the geometric mean of two
        values: the largest indicator of a known token, measured against the other known tokens, and the median token's
        indicator. For the norm, it is 5 robust standard deviations of the logarithm below the median.

    References:
        Land & Bartolo (2024), Fishing for Magikarp, §3. https://arxiv.org/abs/2405.05417
    """
    known = never_trained(vocabulary) if known is None else known
    if len(known) < 2:
        return _small_norms(embeddings)
    # The first principal component, from the d_model × d_model second moment.
    second_moment = sum((float64(rows.T @ rows) for rows in _by_chunk(unembeddings)), torch.zeros(()).double())
    common = torch.linalg.eigh(second_moment).eigenvectors[:, -1]

    def without_common(rows: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        direction = common.to(rows)
        return rows - torch.outer(rows @ direction, direction)

    untrained = without_common(take(unembeddings, torch.tensor(known, device=unembeddings.device)))
    total = untrained.sum(0)
    parts = [torch.cosine_similarity(without_common(rows), total[None]) for rows in _by_chunk(unembeddings)]
    indicator = 1 - torch.cat(parts)
    leave_one_out = 1 - torch.cosine_similarity(untrained, total[None] - untrained)
    return indicator, (leave_one_out.max() * indicator.median()).clamp_min(0).sqrt().item()


def _small_norms(embeddings: Rows) -> tuple[Float[Tensor, " d_vocab"], float]:
    """The norm of each embedding, and the threshold below which it is too small."""
    log_norm = torch.cat([rows.norm(dim=1) for rows in _by_chunk(embeddings)]).clamp_min(1e-30).log()
    median = log_norm.median()
    deviation = 1.4826 * (log_norm - median).abs().median()
    return log_norm.exp(), (median - N_DEVIATIONS * deviation).exp().item()


def _by_chunk(rows: Rows) -> Iterator[Float[Tensor, "_n d_model"]]:
    return (take(rows, chunk) for chunk in chunks(rows.shape[0], row_bytes(rows)))
