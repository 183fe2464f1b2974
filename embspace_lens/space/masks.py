"""Token masks: which tokens a lens reads."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from .. import errors
from ..search.tiles import Rows
from ..tables.checks import check_choice
from .undertrained import undertraining
from .vocabulary import Vocabulary

Embeddings = Callable[[], tuple[Rows, Rows]]
"""Gives the rows of W_E and W_Uᵀ to the masks that need them; rows, since W_U behind its norm is a large new matrix."""


@dataclass(frozen=True)
class TokenMask:
    """A rule that chooses tokens; rules are joined with `&`.

    Attributes:
        name: How the rule reads in `repr(lens)`.
        choose: From the vocabulary, and a function that gives the rows of W_E and W_Uᵀ, to the chosen tokens, `bool [d_vocab]`.
    """

    name: str
    choose: Callable[[Vocabulary, Embeddings], Bool[Tensor, " d_vocab"]]

    def __and__(self, other: "TokenMask") -> "TokenMask":
        return TokenMask(f"{self.name} & {other.name}", lambda *args: self.choose(*args) & other.choose(*args))


def _by_string(name: str, accept: Callable[[str], bool]) -> TokenMask:
    return TokenMask(name, lambda vocabulary, _: torch.tensor([accept(text) for text in vocabulary.strings]))


def _is_word(text: str) -> bool:
    word = text[1:]
    return text[:1] == " " and len(word) > 1 and word.isalpha()


ascii_tokens = _by_string("ascii", lambda text: text.isascii() and text.isprintable())
"""Tokens of printable ASCII characters."""


whole_words = _by_string("words", _is_word)
"""Whole words: a space, then two letters or more of any script."""


def seen_in(texts: Iterable[str], at_least: int = 1) -> TokenMask:
    """Tokens that occur at least `at_least` times in these texts; tokens of a special kind are not counted."""

    def choose(vocabulary: Vocabulary, _: Embeddings) -> Tensor:
        if vocabulary.tokenizer is None:
            raise errors.no_tokenizer(vocabulary.model, "seen_in()")
        counts: Counter[int] = Counter()
        for text in texts:
            counts.update(vocabulary.tokenizer.encode(text, add_special_tokens=False, verbose=False))
        return torch.tensor([counts[i] >= at_least for i in range(len(vocabulary))])

    texts = list(texts)
    return TokenMask(f"seen {at_least}+ times", choose)


def _trained(vocabulary: Vocabulary, embeddings: Embeddings) -> Tensor:
    indicator, threshold = undertraining(vocabulary, *embeddings())
    return (indicator > threshold).cpu()


well_trained = TokenMask("trained", _trained)
"""Tokens that training has moved, judged from the embeddings alone (`undertraining`)."""


NAMED_MASKS = {"ascii": ascii_tokens, "words": whole_words, "trained": well_trained}


Chosen = None | str | TokenMask | Sequence[int] | Sequence[str] | Tensor | np.ndarray
"""What a lens takes as `vocabulary=`: all tokens, named masks (`"words & trained"`), a mask, or tokens (ids, strings, or `bool [d_vocab]`)."""


def choose_tokens(
    vocabulary: Vocabulary, chosen: Chosen, embeddings: Embeddings, named: Mapping[str, TokenMask] = NAMED_MASKS
) -> tuple[Tensor | None, str]:
    """The ids of the chosen tokens in ascending order (None for all), and the mask's name.

    Raises:
        EmbspaceError: If the name is unknown, a token is not in the vocabulary, or nothing is chosen.
    """
    if chosen is None:
        return None, "all"
    if isinstance(chosen, str):
        parts = [part.strip() for part in chosen.split("&")]
        for part in parts:
            check_choice("vocabulary", part, named)
        chosen = reduce(and_, [named[part] for part in parts])
    name = "given"
    if isinstance(chosen, TokenMask):
        name, chosen = chosen.name, chosen.choose(vocabulary, embeddings)
    array = chosen.cpu().numpy() if isinstance(chosen, Tensor) else np.asarray(chosen)
    if array.dtype == bool:
        if array.shape != (len(vocabulary),):
            raise errors.EmbspaceError(
                f"The token mask has shape {array.shape}, but {vocabulary.model} has {len(vocabulary)} tokens."
            )
        ids = torch.from_numpy(np.flatnonzero(array))
    else:
        ids = torch.tensor(
            sorted({vocabulary.index(t, "vocabulary=") for t in array.ravel().tolist()}), dtype=torch.long
        )
    if len(ids) == 0:
        raise errors.EmbspaceError(f"The token mask {name!r} chooses no token of {vocabulary.model}.")
    return ids, name
