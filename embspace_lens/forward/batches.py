"""Texts → batches of tokens."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import EmbspaceError, no_tokenizer

WINDOW = 1024  # texts sorted by length together, so that rows of a batch are about as long as each other


OVERFLOWS = ("cut", "split")


@dataclass(frozen=True)
class TokenBatch:
    """Rows of tokens, padded on the right.

    Attributes:
        example: Which text each row is from, counted from 0.
        start: Where in its text the row begins, in tokens; 0 unless a long text was split.
        tokens: Token ids.
        mask: True for the text's own tokens; False for padding and for special tokens that the tokenizer or the model adds.
        length: How long each row is before the padding.
    """

    example: Int[Tensor, " batch"]
    start: Int[Tensor, " batch"]
    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    length: Int[Tensor, " batch"]

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device) -> "TokenBatch":
        return TokenBatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    @property
    def own_pos(self) -> Int[Tensor, "batch pos"]:
        """The place of each of a text's own tokens in the text, in tokens."""
        return self.start[:, None] + self.mask.cumsum(dim=1) - 1


def token_batches(
    model: Any,
    texts: Iterable[str],
    *,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
    overflow: str = "cut",
) -> Iterator[TokenBatch]:
    """Tokenize texts into padded batches; rows of a batch are about as long as each other, and no text is left out.

    Args:
        model: A TransformerLens model with a tokenizer.
        texts: Any iterable of texts, read as it is needed.
        batch_tokens: About how many tokens a batch has, padding counted.
        max_tokens: The longest row; the model's context by default.
        overflow: What becomes of the rest of a longer text: `"cut"` off, or `"split"` into rows of its own.

    Returns:
        Batches. A text with no token of its own has no row.

    Raises:
        EmbspaceError: If there is no tokenizer, a text is no string, or the options make no sense.
    """
    tokenizer = getattr(model, "tokenizer", None)
    name = str(getattr(model.cfg, "model_name", "") or "the model")
    if tokenizer is None:
        raise no_tokenizer(name, "a forward pass over texts")
    if overflow not in OVERFLOWS:
        raise EmbspaceError(f"overflow={overflow!r} is neither 'cut' nor 'split'.")
    if isinstance(texts, str):
        raise EmbspaceError("texts is one string; give a sequence of texts, [text] for a single one.")
    n_ctx = int(getattr(model.cfg, "n_ctx", 0) or 0)
    longest = min(max_tokens or n_ctx or 1024, n_ctx or max_tokens or 1024)
    if longest < 2:
        raise EmbspaceError(f"max_tokens={max_tokens!r} leaves no room for a text.")
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None), 0)
    numbered = enumerate(texts)
    while window := list(islice(numbered, WINDOW)):
        rows = [row for number, text in window for row in _rows(model, tokenizer, number, text, longest, overflow)]
        rows.sort(key=lambda row: len(row[2]))
        while rows:
            size = max(1, batch_tokens // len(rows[0][2]))
            while size > 1 and size * len(rows[min(size, len(rows)) - 1][2]) > batch_tokens:
                size -= 1
            yield _padded(rows[:size], pad)
            rows = rows[size:]


def _rows(
    model: Any, tokenizer: Any, number: int, text: Any, longest: int, overflow: str
) -> Iterator[tuple[int, int, list[int], list[bool]]]:
    """One text as rows (number, start, tokens, mask)."""
    if not isinstance(text, str):
        raise EmbspaceError(f"Text {number} is a {type(text).__name__}, not a string.")
    encoded = tokenizer(text, return_special_tokens_mask=True, verbose=False)
    special = [bool(flag) for flag in encoded["special_tokens_mask"]]
    tokens = list(encoded["input_ids"])
    own = [token for token, flag in zip(tokens, special) if not flag]
    first = next((i for i, flag in enumerate(special) if not flag), len(special))
    before, after = tokens[:first], tokens[first + len(own) :]
    bos = tokenizer.bos_token_id
    if not before and bos is not None and getattr(model.cfg, "default_prepend_bos", True):
        before = [bos]
    room = max(1, longest - len(before) - len(after))
    for start in range(0, len(own) if overflow == "split" else min(1, len(own)), room):
        part = own[start : start + room]
        yield (
            number,
            start,
            [*before, *part, *after],
            [*[False] * len(before), *[True] * len(part), *[False] * len(after)],
        )


def _padded(rows: list[tuple[int, int, list[int], list[bool]]], pad: int) -> TokenBatch:
    width = max(len(row[2]) for row in rows)
    tokens = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (_, _, ids, own) in enumerate(rows):
        tokens[i, : len(ids)], mask[i, : len(ids)] = torch.tensor(ids), torch.tensor(own)
    number, start, length = (torch.tensor(v) for v in zip(*((n, s, len(ids)) for n, s, ids, _ in rows)))
    return TokenBatch(number, start, tokens, mask, length)
