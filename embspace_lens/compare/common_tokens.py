"""The tokens that two models share: the coordinates in which their embedding spaces are compared."""

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .. import errors
from ..lens import EmbeddingLens
from ..search.tiles import Subset
from ..space.vocabulary import SPACE_PIECE, Vocabulary
from ..weights.parameter_names import Side

MIN_SHARED = 100  # models that share fewer tokens are not compared
WEAK_COUNT, WEAK_SHARE = 1000, 0.1  # a comparison over fewer tokens, or a smaller share of a lens's tokens, is weak
# How byte-level BPE and SentencePiece mark the beginning of a word, and WordPiece its continuation.
MARKERS = ("Ġ", SPACE_PIECE, "##")
BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


def check_lens(value: Any) -> EmbeddingLens:
    """Return the value if it is an `EmbeddingLens`.

    Raises:
        EmbspaceError: If it is not.
    """
    if not isinstance(value, EmbeddingLens):
        raise errors.not_a_lens(value)
    return value


def shared_tokens(a: EmbeddingLens, b: EmbeddingLens) -> tuple[Int[Tensor, " n_shared"], Int[Tensor, " n_shared"]]:
    """Find the tokens that both models have and both lenses read.

    If both tokenizers mark words in the same way (`Ġfilm` in byte-level BPE, `▁film` in SentencePiece), two tokens are the
    same if their pieces are equal. Otherwise they are the same if their exact texts are equal, and no other token of either
    model has this text. Without tokenizers, ids are compared; both models must then have equally many tokens. Ids beyond a
    tokenizer's vocabulary are ignored.

    Args:
        a: The first model's lens.
        b: The second model's lens.

    Returns:
        The ids in a's vocabulary, ascending, and the ids of the same tokens in b's vocabulary.

    Raises:
        EmbspaceError: If fewer than 100 tokens are shared, or only one model has a tokenizer.

    Warns:
        UserWarning: If fewer than 1,000 tokens are shared, or fewer than a tenth of the tokens that one lens reads.

    Example:
        >>> ids, ids_of_other = shared_tokens(lens, other)
        >>> len(ids) == len(ids_of_other)
        True
    """
    a, b = check_lens(a), check_lens(b)
    ids_a, ids_b = _equal_tokens(a.vocabulary, b.vocabulary)
    is_shared = _is_read(a)[ids_a] & _is_read(b)[ids_b]
    ids_a, ids_b = ids_a[is_shared], ids_b[is_shared]
    n, n_a, n_b = len(ids_a), a.space.n_tokens, b.space.n_tokens
    if n < MIN_SHARED:
        raise errors.few_shared_tokens(a.name, b.name, n, n_a, n_b, MIN_SHARED)
    if n < WEAK_COUNT or n < WEAK_SHARE * max(n_a, n_b):
        message = f"{a.name} and {b.name} share {n:,} of the {n_a:,} and {n_b:,} tokens that their lenses read"
        warnings.warn(f"{message}; a comparison over so few tokens is weak.", UserWarning, stacklevel=3)
    return ids_a, ids_b


def shared_rows(lens: EmbeddingLens, side: Side, ids: Int[Tensor, " n_shared"]) -> Subset:
    """A lens's embeddings of tokens that it reads, made chunk by chunk, and centred or normalised as the lens scores them."""
    return Subset(lens.space.rows(side), torch.searchsorted(lens.space.token_ids, ids))


def _is_read(lens: EmbeddingLens) -> Bool[Tensor, " d_vocab"]:
    """Which tokens a lens reads."""
    mask = torch.zeros(len(lens.vocabulary), dtype=torch.bool)
    mask[lens.space.token_ids] = True
    return mask


def _equal_tokens(a: Vocabulary, b: Vocabulary) -> tuple[Int[Tensor, " n_equal"], Int[Tensor, " n_equal"]]:
    """The ids of equal tokens in both vocabularies, sorted by a's ids."""
    if a.tokenizer is None and b.tokenizer is None and len(a) == len(b):
        return torch.arange(len(a)), torch.arange(len(a))
    for one, other in ((a, b), (b, a)):
        if one.tokenizer is None:
            has_tokenizer = other.tokenizer is not None
            raise errors.tokens_not_comparable(one.model, len(one), other.model, len(other), has_tokenizer)
    pieces_a, pieces_b = _pieces(a), _pieces(b)
    if pieces_a == pieces_b:
        ids = torch.tensor([i for i, piece in enumerate(pieces_a) if piece is not None], dtype=torch.long)
        return ids, ids
    if _marker(pieces_a) == _marker(pieces_b):
        id_a, id_b = _unique_ids(pieces_a), _unique_ids(pieces_b)
    else:
        id_a, id_b = _unique_ids(_exact_texts(a, pieces_a)), _unique_ids(_exact_texts(b, pieces_b))
    pairs = torch.tensor([(i, id_b[key]) for key, i in id_a.items() if key in id_b], dtype=torch.long).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _pieces(vocabulary: Vocabulary) -> list[str | None]:
    """The tokenizer's own string of every token. Pieces also tell apart bytes that do not decode by themselves."""
    return vocabulary.tokenizer.convert_ids_to_tokens(list(range(min(len(vocabulary), len(vocabulary.tokenizer)))))


def _marker(pieces: Sequence[str | None]) -> str:
    """The marker with which most pieces begin; empty if no piece has one."""
    counts = {marker: sum(piece is not None and piece.startswith(marker) for piece in pieces) for marker in MARKERS}
    best = max(MARKERS, key=counts.__getitem__)
    return best if counts[best] else ""


def _exact_texts(vocabulary: Vocabulary, pieces: Sequence[str | None]) -> list[str | None]:
    """The text of every token that decodes by itself; None for others, and for SentencePiece's bytes, which duplicate letters."""
    return [
        str(text) if decodes and piece is not None and not BYTE_PIECE.fullmatch(piece) else None
        for text, decodes, piece in zip(vocabulary.strings, vocabulary.whole, pieces)
    ]


def _unique_ids(keys: Sequence[str | None]) -> dict[str, int]:
    """A mapping from key to id, for keys that exactly one token has, in the order of ids."""
    counts = Counter(keys)
    return {key: i for i, key in enumerate(keys) if key is not None and counts[key] == 1}
