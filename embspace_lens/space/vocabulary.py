"""The vocabulary: the strings of token ids, and the ids of strings."""

from functools import cache, cached_property
from typing import Any

import numpy as np
import pandas as pd

from .. import errors

SPACE_PIECE = "▁"  # how SentencePiece writes a space
CONTINUATION, WORD_END = "##", "</w>"  # how WordPiece marks the inside of a word, and some BPE vocabularies its end


@cache
def _byte_of_character() -> dict[str, int]:
    """The byte that each character stands for in the pieces of byte-level BPE: GPT-2's table.

    Printable characters of Latin-1 stand for their own code; those from U+0100 on for the other bytes, in ascending order.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def text_of_bytes(piece: str) -> str | None:
    """The text of a piece of byte-level BPE, with each byte that is not part of a whole character as `<0xE9>`.

    Returns:
        The text, or None if the piece is not one of byte-level BPE.

    Example:
        >>> text_of_bytes("é"), text_of_bytes("Ġâĸ"), text_of_bytes("▁é")
        ('<0xE9>', ' <0xE2><0x96>', None)
    """
    byte_of = _byte_of_character()
    if not all(character in byte_of for character in piece):
        return None
    text = bytes(byte_of[character] for character in piece).decode("utf-8", errors="surrogateescape")
    return "".join(f"<0x{ord(c) - 0xDC00:02X}>" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in text)


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
    def pieces(self) -> list[str | None]:
        """The tokenizer's own string of every token that it has; None for an id that it leaves out."""
        if self.tokenizer is None:
            return []
        return self.tokenizer.convert_ids_to_tokens(list(range(min(self.d_vocab, len(self.tokenizer)))))

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
        for i, piece, text in zip(ids, self.pieces, texts):
            if piece is None:
                continue
            if piece.startswith(SPACE_PIECE):  # decoding a single piece strips its space
                n_spaces = len(piece) - len(piece.lstrip(SPACE_PIECE))
                text = " " * n_spaces + text.lstrip(" ")
            whole[i] = bool(text) and "\ufffd" not in text
            strings[i] = text if whole[i] else (text and text_of_bytes(piece)) or piece
        return strings, whole

    @property
    def strings(self) -> np.ndarray:
        """The exact text of every token, leading space kept: object array `[d_vocab]`.

        A byte that is only part of a character is written as `<0xE9>`. For other tokens that do not decode by themselves, the
        tokenizer's piece.
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
    def has_spaces(self) -> bool:
        """Whether tokens include the space before a word: more begin with a space and a letter than with WordPiece's `##`."""
        n_spaced = sum(text[:1] == " " and text[1:2].isalpha() for text in self.strings)
        n_continued = sum(text.startswith(CONTINUATION) and text[2:3].isalpha() for text in self.strings)
        return n_spaced > n_continued

    @cached_property
    def begins_word(self) -> np.ndarray:
        """Whether each token decodes by itself and may be a whole word, by the vocabulary's marker: `bool [d_vocab]`.

        The marker is a space before the word (byte-level BPE, SentencePiece), no `##` (WordPiece), or `</w>` behind it. In a
        vocabulary without a marker every token may be a word.
        """
        may_be = self.whole & np.array([(text[:1] == " ") == self.has_spaces for text in self.strings])
        ends_word = np.array([piece is not None and piece.endswith(WORD_END) for piece in self.pieces])
        if ends_word.any() and not self.has_spaces:
            may_be[: len(ends_word)] &= ends_word
        return may_be

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
        return self._ids.get(" " + word if self.has_spaces and word[:1] != " " else word)
