"""Token ids ↔ strings, and token masks: which tokens a lens reads."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import and_
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .. import errors
from ..search.tiles import Rows, float64, take, tile_rows, tiles

SPACE_PIECE = "▁"  # how SentencePiece writes a space


class Vocabulary:
    """The tokens of one model, keyed by id: strings need not be unique.

    Args:
        tokenizer: A Hugging Face tokenizer, or None: then a token's string is its id.
        d_vocab: How many tokens the model embeds; ids past the tokenizer's end get their id as string.
        model: The model's name, for error messages.
    """

    def __init__(self, tokenizer: Any, d_vocab: int, model: str = "the model") -> None:
        self.tokenizer = tokenizer
        self.d_vocab = d_vocab
        self.model = model

    def __len__(self) -> int:
        return self.d_vocab

    def __repr__(self) -> str:
        return f"Vocabulary({self.model}: {self.d_vocab} tokens)"

    @cached_property
    def _decoded(self) -> tuple[np.ndarray, np.ndarray]:
        """The text of every token, and whether the token decodes by itself."""
        strings = np.array([str(i) for i in range(self.d_vocab)], dtype=object)
        whole = np.ones(self.d_vocab, dtype=bool)
        if self.tokenizer is None:
            return strings, whole
        ids = list(range(min(self.d_vocab, len(self.tokenizer))))
        texts = self.tokenizer.batch_decode(
            [[i] for i in ids], clean_up_tokenization_spaces=False, skip_special_tokens=False
        )
        for i, piece, text in zip(ids, self.tokenizer.convert_ids_to_tokens(ids), texts):
            if piece is None:
                continue
            if piece.startswith(SPACE_PIECE):  # decoding one piece alone strips the space that it stands for
                n_spaces = len(piece) - len(piece.lstrip(SPACE_PIECE))
                text = " " * n_spaces + text.lstrip(" ")
            whole[i] = bool(text) and "\ufffd" not in text
            strings[i] = text if whole[i] else piece
        return strings, whole

    @property
    def strings(self) -> np.ndarray:
        """The exact text of every token, leading space kept: object array `[d_vocab]`.

        A token that does not decode by itself (part of a multi-byte character) is shown as the tokenizer's own piece.
        """
        return self._decoded[0]

    @property
    def whole(self) -> np.ndarray:
        """Which tokens decode by themselves, `bool [d_vocab]`; the others' strings are the tokenizer's pieces."""
        return self._decoded[1]

    @cached_property
    def array(self) -> Any:
        """`strings` as a pandas array, for columns of tables."""
        return pd.Series(self.strings, dtype="str").array

    @cached_property
    def _ids(self) -> dict[str, int]:
        """From text to id, of tokens that decode; the lowest id where several share a text."""
        return {text: i for i, text in reversed(list(enumerate(self.strings))) if self.whole[i]}

    def index(self, token: str | int, caller: str = "search()") -> int:
        """The id of one token, given as its exact string or as its id.

        Raises:
            EmbspaceError: If the text is not one token, the id is out of range, or there is no tokenizer for a text.
        """
        if not isinstance(token, str):
            if isinstance(token, bool) or not isinstance(token, int | np.integer):
                raise errors.EmbspaceError(f"token={token!r} is neither a text nor a token id.")
            if not 0 <= token < self.d_vocab:
                raise errors.out_of_range("token", int(token), self.model, self.d_vocab, "tokens")
            return int(token)
        if self.tokenizer is None:
            raise errors.no_tokenizer(self.model, caller)
        if token in self._ids:
            return self._ids[token]
        encoded = self.tokenizer.encode(token, add_special_tokens=False)
        pieces = [str(self.strings[i]) if i < self.d_vocab else str(i) for i in encoded]
        near = (" " + token.strip(), token.strip(), " " + token.strip().lower(), token.strip().lower())
        raise errors.not_one_token(token, pieces, caller, next((t for t in near if t and t in self._ids), None))

    @cached_property
    def _writes_spaces(self) -> bool:
        return any(len(text) > 1 and text[0] == " " for text in self.strings)

    def word(self, word: str | int, caller: str = "word()") -> int | None:
        """The id of a word as it stands in a text: with a space before it, where the vocabulary writes spaces.

        Returns:
            None where the word is not one token. A word given with its space, or as an id, is taken as it is.

        Raises:
            EmbspaceError: If an id is out of range, or there is no tokenizer for a text.
        """
        if not isinstance(word, str):
            return self.index(word, caller)
        if self.tokenizer is None:
            raise errors.no_tokenizer(self.model, caller)
        return self._ids.get(" " + word if self._writes_spaces and word[:1] != " " else word)


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
    return (take(rows, some) for some in tiles(rows.shape[0], tile_rows(rows)))


def _trained(vocabulary: Vocabulary, embeddings: Embeddings) -> Tensor:
    indicator, threshold = undertraining(vocabulary, *embeddings())
    return (indicator > threshold).cpu()


well_trained = TokenMask("trained", _trained)
"""Tokens that training has moved, judged from the embeddings alone (`undertraining`)."""

NAMED_MASKS = {"ascii": ascii_tokens, "words": whole_words, "trained": well_trained}

Chosen = None | str | TokenMask | Sequence[int] | Sequence[str] | Tensor | np.ndarray
"""What a lens takes as `vocabulary=`: all tokens, named masks (`"words & trained"`), a mask, or tokens (ids, strings, or `bool [d_vocab]`)."""


def choose_tokens(vocabulary: Vocabulary, chosen: Chosen, embeddings: Embeddings) -> tuple[Tensor | None, str]:
    """The ids of the chosen tokens in ascending order (None for all), and the mask's name.

    Raises:
        EmbspaceError: If the name is unknown, a token is not in the vocabulary, or nothing is chosen.
    """
    if chosen is None:
        return None, "all"
    if isinstance(chosen, str):
        parts = [part.strip() for part in chosen.split("&")]
        for part in parts:
            if part not in NAMED_MASKS:
                raise errors.choice("vocabulary", part, NAMED_MASKS)
        chosen = reduce(and_, [NAMED_MASKS[part] for part in parts])
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
