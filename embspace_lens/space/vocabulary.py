"""The vocabulary: the strings of token ids, and the ids of strings."""

from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from .. import errors

SPACE_PIECE = "▁"  # how SentencePiece writes a space


class Vocabulary:
    """The tokens of one model, identified by id: several tokens may have the same string.

    Args:
        tokenizer: A Hugging Face tokenizer; with None, the string of a token is its id.
        d_vocab: How many tokens the model embeds; ids beyond the tokenizer's vocabulary have their id as string.
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
            if piece.startswith(SPACE_PIECE):  # decoding a single piece strips its space
                n_spaces = len(piece) - len(piece.lstrip(SPACE_PIECE))
                text = " " * n_spaces + text.lstrip(" ")
            whole[i] = bool(text) and "\ufffd" not in text
            strings[i] = text if whole[i] else piece
        return strings, whole

    @property
    def strings(self) -> np.ndarray:
        """The exact text of every token, leading space kept: object array `[d_vocab]`.

        For a token that does not decode by itself (part of a multi-byte character), the tokenizer's piece.
        """
        return self._decoded[0]

    @property
    def whole(self) -> np.ndarray:
        """Whether each token decodes by itself, `bool [d_vocab]`."""
        return self._decoded[1]

    @cached_property
    def array(self) -> Any:
        """`strings` as a pandas array, for columns of tables."""
        return pd.Series(self.strings, dtype="str").array

    @cached_property
    def _ids(self) -> dict[str, int]:
        """A mapping from text to id, for tokens that decode by themselves; the lowest id if several have the same text."""
        return {text: i for i, text in reversed(list(enumerate(self.strings))) if self.whole[i]}

    def index(self, token: str | int, caller: str = "search()") -> int:
        """The id of one token, given as its exact string or as its id.

        Args:
            token: The token.
            caller: The function that needs the id, for error messages.

        Raises:
            EmbspaceError: If the string is not one token, the id is out of range, or a string is given without a tokenizer.
        """
        if not isinstance(token, str):
            if isinstance(token, bool) or not isinstance(token, int | np.integer):
                raise errors.not_a_token(token)
            if not 0 <= token < self.d_vocab:
                raise errors.out_of_range("token", int(token), self.model, self.d_vocab, "tokens")
            return int(token)
        if self.tokenizer is None:
            raise errors.no_tokenizer(self.model, caller)
        if token in self._ids:
            return self._ids[token]
        encoded = self.tokenizer.encode(token, add_special_tokens=False)
        pieces = [str(self.strings[i]) if i < self.d_vocab else str(i) for i in encoded]
        variants = (" " + token.strip(), token.strip(), " " + token.strip().lower(), token.strip().lower())
        guess = next((text for text in variants if text and text in self._ids), None)
        raise errors.not_one_token(token, pieces, caller, guess)

    @cached_property
    def _has_spaces(self) -> bool:
        """Whether tokens include the space before a word."""
        return any(len(text) > 1 and text[0] == " " for text in self.strings)

    def word(self, word: str | int, caller: str = "word()") -> int | None:
        """The id of a word as it occurs in a text: with a space before it, if the vocabulary's tokens include spaces.

        Args:
            word: The word. A word that begins with a space, or an id, is used as it is.
            caller: The function that needs the id, for error messages.

        Returns:
            The id, or None if the word is not a single token.

        Raises:
            EmbspaceError: If an id is out of range, or a string is given without a tokenizer.
        """
        if not isinstance(word, str):
            return self.index(word, caller)
        if self.tokenizer is None:
            raise errors.no_tokenizer(self.model, caller)
        return self._ids.get(" " + word if self._has_spaces and word[:1] != " " else word)
