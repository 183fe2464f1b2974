"""Under-trained tokens, found from the embeddings alone (Land & Bartolo 2024)."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from ..search.tiles import Rows, chunks, float64, row_bytes, take
from .vocabulary import Vocabulary


def never_trained(vocabulary: Vocabulary) -> list[int]:
    """Tokens that no text can have contained: ids past the tokenizer's end, and bytes that UTF-8 never uses."""
    padding = range(min(len(vocabulary.tokenizer), len(vocabulary)), len(vocabulary)) if vocabulary.tokenizer else ()
    impossible = [0xC0, 0xC1, *range(0xF5, 0x100)]
    # As SentencePiece writes a byte, and as GPT-2's byte-level BPE does: Latin-1's printable characters stand for themselves.
    names = {f"<0x{byte:02X}>" for byte in impossible} | {chr(byte) for byte in impossible}
    # A byte alone does not decode; "ö" merged from two bytes does, and is trained.
    return [*padding, *(i for i, text in enumerate(vocabulary.strings) if text in names and not vocabulary.whole[i])]


def undertraining(
    vocabulary: Vocabulary, embeddings: Rows, unembeddings: Rows
) -> tuple[Float[Tensor, " d_vocab"], float]:
    r"""How far each token's embedding is from those of tokens that training never saw, and where suspicion ends.

    .. math:: I_v = 1 - \cos(u_v - \langle u_v, c\rangle c,\; \bar u - \langle \bar u, c\rangle c)

    with $u_v$ the unembedding of token v, $\bar u$ the mean unembedding of `never_trained` tokens and $c$ the common
    direction (first principal component). Where no token is known to be untrained, $I_v = \lVert W_E[v] \rVert$.

    Returns:
        The indicator (low: under-trained) and the threshold below which tokens are taken for under-trained: half-way, on a
        logarithmic scale, between the largest value that a known untrained token takes against the rest of them and the
        median token's; or for the norm, 5 robust deviations of its logarithm under the median.

    References:
        Land & Bartolo (2024), Fishing for Magikarp, §3. https://arxiv.org/abs/2405.05417
    """
    known = never_trained(vocabulary)
    if len(known) < 2:
        log_norm = torch.cat([rows.norm(dim=1) for rows in _by_tile(embeddings)]).clamp_min(1e-30).log()
        median = log_norm.median()
        deviation = 1.4826 * (log_norm - median).abs().median()
        return log_norm.exp(), (median - 5 * deviation).exp().item()
    # The first principal component through the d_model × d_model second moment.
    second = sum((float64(rows.T @ rows) for rows in _by_tile(unembeddings)), torch.zeros((), dtype=torch.float64))
    common = torch.linalg.eigh(second).eigenvectors[:, -1]

    def without_common(rows: Tensor) -> Tensor:
        direction = common.to(rows)
        return rows - torch.outer(rows @ direction, direction)

    reference = without_common(take(unembeddings, torch.tensor(known, device=unembeddings.device)))
    total = reference.sum(0)
    parts = [torch.cosine_similarity(without_common(rows), total[None]) for rows in _by_tile(unembeddings)]
    indicator = 1 - torch.cat(parts)
    leave_one_out = 1 - torch.cosine_similarity(reference, total[None] - reference)
    return indicator, (leave_one_out.max() * indicator.median()).clamp_min(0).sqrt().item()


def _by_tile(rows: Rows) -> Iterator[Tensor]:
    return (take(rows, some) for some in chunks(rows.shape[0], row_bytes(rows)))
