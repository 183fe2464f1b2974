"""Tokens that two models share: what makes their embedding spaces one."""

import re
import warnings
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import EmbspaceError
from ..lens import EmbeddingLens
from ..search.tiles import Subset
from ..space.vocabulary import SPACE_PIECE, Vocabulary
from ..weights.effective import Side

FEWEST = 100  # shared tokens under which two models are not compared
FEW, FEW_SHARE = 1000, 0.1  # and under which the user is warned
MARKS = (
    "Ġ",
    SPACE_PIECE,
    "##",
)  # how byte-level BPE, SentencePiece and WordPiece tell a word's beginning from its rest
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def require_lenses(a: Any, b: Any) -> None:
    """Refuse what is not an `EmbeddingLens`.

    Raises:
        EmbspaceError: If one of the two is something else.
    """
    for value in (a, b):
        if not isinstance(value, EmbeddingLens):
            raise EmbspaceError(
                f"{type(value).__name__} is not an EmbeddingLens. Wrap the model: EmbeddingLens(model), for each of the two."
            )


def shared_tokens(a: EmbeddingLens, b: EmbeddingLens) -> tuple[Int[Tensor, " n_shared"], Int[Tensor, " n_shared"]]:
    """Find the tokens that both models know and both lenses read.

    Two tokens are the same if the tokenizers write them alike: as the same piece, where both mark words in one manner (␣film
    is `Ġfilm` for byte-level BPE, `▁film` for SentencePiece), and else as the same exact text, where only one token of each
    has it. Without tokenizers, ids are the same if there are equally many. Ids past a tokenizer's end are nobody's.

    Args:
        a: One model's lens.
        b: The other's.

    Returns:
        The ids in a's vocabulary, ascending, and in the same order those in b's.

    Raises:
        EmbspaceError: If fewer than 100 tokens are shared, or only one model has a tokenizer.

    Warns:
        UserWarning: If fewer than 1,000 are, or fewer than a tenth of the tokens that one of the lenses reads.

    Example:
        >>> ids, ids_of_other = shared_tokens(lens, other)
        >>> len(ids), bool((ids == ids_of_other).all())
        (7168, True)
    """
    require_lenses(a, b)
    ids_a, ids_b = _same(a.vocabulary, b.vocabulary)
    both = _reads(a)[ids_a] & _reads(b)[ids_b]
    ids_a, ids_b = ids_a[both], ids_b[both]
    n, n_a, n_b = len(ids_a), a.space.n_tokens, b.space.n_tokens
    said = f"{a.name} and {b.name} share {n:,} of the {n_a:,} and {n_b:,} tokens that their lenses read"
    if n < FEWEST:
        raise EmbspaceError(
            f"{said}, fewer than {FEWEST}: too few to compare them by. Read more tokens (vocabulary=None), or models of one tokenizer."
        )
    if n < FEW or n < FEW_SHARE * max(n_a, n_b):
        warnings.warn(f"{said}; a comparison through so few is weak.", UserWarning, stacklevel=3)
    return ids_a, ids_b


def shared_rows(lens: EmbeddingLens, side: Side, ids: Int[Tensor, " n_shared"]) -> Subset:
    """A lens's embeddings of these tokens, which it reads, made by the tile as the lens scores them."""
    return Subset(lens.space.rows(side), torch.searchsorted(lens.space.token_ids, ids))


def _reads(lens: EmbeddingLens) -> Tensor:
    """Which tokens a lens reads, `bool [d_vocab]`."""
    reads = torch.zeros(len(lens.vocabulary), dtype=torch.bool)
    reads[lens.space.token_ids] = True
    return reads


def _same(a: Vocabulary, b: Vocabulary) -> tuple[Tensor, Tensor]:
    """The ids of equal tokens, ascending in a."""
    if a.tokenizer is None and b.tokenizer is None and len(a) == len(b):
        return torch.arange(len(a)), torch.arange(len(a))
    for one, other in ((a, b), (b, a)):
        if one.tokenizer is None:
            why = (
                f"{other.model} has {len(other):,} tokens and no tokenizer either"
                if other.tokenizer is None
                else f"{other.model} has one"
            )
            raise EmbspaceError(
                f"{one.model} has {len(one):,} tokens and no tokenizer, and {why}: nothing says which tokens are the same. "
                "Give EmbeddingLens(model, tokenizer=…)."
            )
    pieces = [_pieces(a), _pieces(b)]
    if pieces[0] == pieces[1]:
        ids = torch.tensor([i for i, piece in enumerate(pieces[0]) if piece is not None], dtype=torch.long)
        return ids, ids
    keys = pieces if _mark(pieces[0]) == _mark(pieces[1]) else [_texts(a, pieces[0]), _texts(b, pieces[1])]
    one, other = map(_once, keys)
    pairs = torch.tensor([(i, other[key]) for key, i in one.items() if key in other], dtype=torch.long).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _pieces(vocabulary: Vocabulary) -> list[str | None]:
    """The tokenizer's own name of every token; undecodable bytes would share one text."""
    return vocabulary.tokenizer.convert_ids_to_tokens(list(range(min(len(vocabulary), len(vocabulary.tokenizer)))))


def _mark(pieces: Sequence[str | None]) -> str:
    """The mark that most pieces bear; empty where none does."""
    counts = {mark: sum(piece is not None and piece.startswith(mark) for piece in pieces) for mark in MARKS}
    best = max(MARKS, key=counts.__getitem__)
    return best if counts[best] else ""


def _texts(vocabulary: Vocabulary, pieces: Sequence[str | None]) -> list[str | None]:
    """The exact text of every token that has one by itself; SentencePiece's bytes double its letters, and are left out."""
    return [
        str(text) if whole and piece is not None and not BYTE.fullmatch(piece) else None
        for text, whole, piece in zip(vocabulary.strings, vocabulary.whole, pieces)
    ]


def _once(keys: Sequence[Hashable | None]) -> dict[Hashable, int]:
    """From key to id, of keys that one token alone has, in the order of ids."""
    counts = Counter(keys)
    return {key: i for i, key in enumerate(keys) if key is not None and counts[key] == 1}
