"""The tokens of a recorded model: their strings are recorded, and texts are encoded by the tokenizer, loaded at its first use."""

from collections.abc import Callable
from typing import Any

DECODING = {"clean_up_tokenization_spaces": False, "skip_special_tokens": False}
"""The options with which single tokens are decoded."""


class RecordedTokenizer:
    """A tokenizer that answers from a record what `Vocabulary` asks of it; all else is asked of the tokenizer itself.

    Args:
        n_tokens: The number of tokens of the tokenizer.
        pieces: The tokenizer's own string of each token that the model embeds.
        texts: The text of each such token, decoded by itself with the options `DECODING`.
        load: Returns the tokenizer.
    """

    def __init__(self, n_tokens: int, pieces: list[str | None], texts: list[str], load: Callable[[], Any]) -> None:
        self._n_tokens, self._pieces, self._texts, self._load = n_tokens, pieces, texts, load

    @classmethod
    def record(cls, tokenizer: Any, d_vocab: int) -> dict[str, Any]:
        """The arguments, but `load`, for a tokenizer and a model with `d_vocab` tokens."""
        ids = list(range(min(d_vocab, len(tokenizer))))
        texts = tokenizer.batch_decode([[i] for i in ids], **DECODING)
        return {"n_tokens": len(tokenizer), "pieces": tokenizer.convert_ids_to_tokens(ids), "texts": texts}

    def __len__(self) -> int:
        return self._n_tokens

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_load":  # a copy of this object is being made
            raise AttributeError(name)
        return getattr(self._load(), name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._load()(*args, **options)

    def convert_ids_to_tokens(self, ids: Any, **options: Any) -> Any:
        """The tokenizer's own strings of tokens."""
        if not options and isinstance(ids, list) and self._has(ids):
            return [self._pieces[i] for i in ids]
        return self._load().convert_ids_to_tokens(ids, **options)

    def batch_decode(self, sequences: Any, **options: Any) -> Any:
        """The texts of sequences of tokens."""
        if options == DECODING and all(len(ids) == 1 and self._has(ids) for ids in sequences):
            return [self._texts[i] for (i,) in sequences]
        return self._load().batch_decode(sequences, **options)

    def _has(self, ids: Any) -> bool:
        return all(type(i) is int and 0 <= i < len(self._texts) for i in ids)
