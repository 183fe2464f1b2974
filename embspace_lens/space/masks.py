"""Token masks: which tokens a lens reads."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_

import numpy as np
import regex
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .. import errors
from ..search.tiles import Rows
from ..tables.checks import check_choice
from .undertrained import undertraining
from .vocabulary import Vocabulary

Embeddings = Callable[[], tuple[Rows, Rows]]
"""Returns the rows of W_E and of W_Uᵀ. A function, so that masks that need no embeddings do not make them."""


@dataclass(frozen=True)
class TokenMask:
    """A rule that selects tokens; `a & b` selects the tokens that both select.

    Attributes:
        name: The rule's name in `repr(lens)`.
        choose: A function that returns the selected tokens, `bool [d_vocab]`. Its arguments are the vocabulary, and a function
            that returns the rows of W_E and W_Uᵀ.
    """

    name: str
    choose: Callable[[Vocabulary, Embeddings], Bool[Tensor, " d_vocab"]]

    def __and__(self, other: "TokenMask") -> "TokenMask":
        return TokenMask(f"{self.name} & {other.name}", lambda *args: self.choose(*args) & other.choose(*args))


def _by_string(name: str, accept: Callable[[str], bool]) -> TokenMask:
    return TokenMask(name, lambda vocabulary, _: torch.tensor([accept(text) for text in vocabulary.strings]))


# Scripts that are written without spaces between words; their vowel signs belong to them.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_WORD = regex.compile(r" ?\p{L}[\p{L}\p{M}]+")
_UNSPACED_WORD = regex.compile(rf" ?(?:\p{{Han}}|(?=\p{{L}}){_UNSPACED}{{2}}){_UNSPACED}*")


def _is_word(vocabulary: Vocabulary, _: Embeddings) -> Bool[Tensor, " d_vocab"]:
    texts = [unicodedata.normalize("NFC", text) for text in vocabulary.strings]
    tokens = zip(texts, vocabulary.whole, vocabulary.begins_word, strict=True)
    return torch.tensor(
        [
            bool(is_whole and (_UNSPACED_WORD.fullmatch(text) or (begins_word and _WORD.fullmatch(text))))
            for text, is_whole, begins_word in tokens
        ]
    )


ascii_tokens = _by_string("ascii", lambda text: text.isascii() and text.isprintable())
"""Tokens of printable ASCII characters."""


whole_words = TokenMask("words", _is_word)
"""Whole words: two or more letters, with the vocabulary's marker of a word: a space before it (byte-level BPE, SentencePiece), no
`##` (WordPiece), `</w>` behind it, or none. In scripts without spaces between words (Chinese, Japanese, Thai and others) a token
of letters is a word without the marker, also a single Chinese character."""


def seen_in(texts: Iterable[str], at_least: int = 1) -> TokenMask:
    """Tokens that occur at least `at_least` times in these texts, which are tokenized without special tokens.

    Example:
        >>> EmbeddingLens(model, vocabulary=seen_in(["a good film", "a good plot"], at_least=2)).mask
        'seen 2+ times'
    """
    texts = list(texts)

    def choose(vocabulary: Vocabulary, _: Embeddings) -> Bool[Tensor, " d_vocab"]:
        if vocabulary.tokenizer is None:
            raise errors.no_tokenizer(vocabulary.model, "seen_in()")
        counts: Counter[int] = Counter()
        for text in texts:
            counts.update(vocabulary.tokenizer.encode(text, add_special_tokens=False, verbose=False))
        return torch.tensor([counts[i] >= at_least for i in range(len(vocabulary))])

    return TokenMask(f"seen {at_least}+ times", choose)


def _is_trained(vocabulary: Vocabulary, embeddings: Embeddings) -> Bool[Tensor, " d_vocab"]:
    indicator, threshold = undertraining(vocabulary, *embeddings())
    return (indicator > threshold).cpu()


well_trained = TokenMask("trained", _is_trained)
"""Tokens that are not under-trained, judged from the embeddings alone (see `undertraining`)."""


NAMED_MASKS = {"ascii": ascii_tokens, "words": whole_words, "trained": well_trained}


VocabularyOption = None | str | TokenMask | Sequence[int] | Sequence[str] | Tensor | np.ndarray
"""The option `vocabulary=` of a lens: all tokens, named masks (`"words & trained"`), a mask, or tokens (ids, strings, or
`bool [d_vocab]`)."""


def choose_tokens(
    vocabulary: Vocabulary,
    option: VocabularyOption,
    embeddings: Embeddings,
    named: Mapping[str, TokenMask] = NAMED_MASKS,
) -> tuple[Int[Tensor, " n_tokens"] | None, str]:
    """The ids of the selected tokens in ascending order (None for all), and the name of the selection.

    Args:
        vocabulary: The tokens of the model.
        option: What the user gave as `vocabulary=`.
        embeddings: Returns the rows of W_E and of W_Uᵀ.
        named: The masks that may be given by name.

    Raises:
        EmbspaceError: If a name is unknown, a token is not in the vocabulary, or no token is selected.
    """
    if option is None:
        return None, "all"
    if isinstance(option, str):
        names = [name.strip() for name in option.split("&")]
        option = reduce(and_, [named[check_choice("vocabulary", name, named)] for name in names])
    mask_name = "given"
    if isinstance(option, TokenMask):
        mask_name, option = option.name, option.choose(vocabulary, embeddings)
    token_ids = _token_ids(vocabulary, option.cpu().numpy() if isinstance(option, Tensor) else np.asarray(option))
    if len(token_ids) == 0:
        raise errors.empty_mask(mask_name, vocabulary.model, _widest(vocabulary, embeddings, named))
    return token_ids, mask_name


def _widest(vocabulary: Vocabulary, embeddings: Embeddings, named: Mapping[str, TokenMask]) -> tuple[str, int] | None:
    """The named mask that selects most tokens, and how many; None if no mask selects any."""
    counts = {}
    for name, mask in named.items():
        try:
            counts[name] = int(mask.choose(vocabulary, embeddings).sum())
        except errors.EmbspaceError:  # a mask of the demo models, for another vocabulary
            continue
    best = max(counts, key=counts.__getitem__, default=None)
    return (best, counts[best]) if best is not None and counts[best] else None


def _token_ids(vocabulary: Vocabulary, tokens: np.ndarray) -> Int[Tensor, " n_tokens"]:
    """The ids of tokens that are given as a boolean mask, as ids or as strings; ascending, each once."""
    if tokens.dtype != bool:
        ids = {vocabulary.index(token, "vocabulary=") for token in tokens.ravel().tolist()}
        return torch.tensor(sorted(ids), dtype=torch.long)
    if tokens.shape != (len(vocabulary),):
        raise errors.bad_mask_shape(tokens.shape, vocabulary.model, len(vocabulary))
    return torch.from_numpy(np.flatnonzero(tokens))
