"""Texts → batches of tokens."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .. import errors
from ..tables.checks import check_choice, check_integer
from ..weights.configuration import context_length, model_name, prepends_bos

WINDOW = 1024  # texts that are sorted by length together, so that the rows of a batch have similar lengths
DEFAULT_MAX_TOKENS = 1024  # for a model whose configuration does not state its context length

Overflow = Literal["cut", "split"]
OVERFLOWS: tuple[Overflow, ...] = get_args(Overflow)


@dataclass(frozen=True)
class TokenBatch:
    """Rows of tokens, padded on the right.

    Attributes:
        example: The index of each row's text.
        start: The position in its text at which each row begins, in tokens; 0 unless a long text was split.
        tokens: Token ids.
        mask: True for tokens of the text; False for padding, and for special tokens that the tokenizer or the model adds.
        length: The length of each row without padding.
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
    def pos(self) -> Int[Tensor, "batch pos"]:
        """The position of each token in the run, special tokens included; a split text counts on through its rows."""
        return self.start[:, None] + torch.arange(self.tokens.shape[1], device=self.start.device)

    @property
    def own_pos(self) -> Int[Tensor, "batch pos"]:
        """The position of each token among the text's own tokens, as a tokenizer counts them without special tokens."""
        return self.start[:, None] + self.mask.cumsum(dim=1) - 1


class _Row(NamedTuple):
    example: int
    start: int
    tokens: list[int]
    mask: list[bool]


def token_batches(
    model: Any,
    texts: Iterable[str],
    *,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
    overflow: Overflow = "cut",
) -> Iterator[TokenBatch]:
    """Tokenize texts into padded batches with rows of similar length; each text with at least one token has a row.

    Args:
        model: A TransformerLens model with a tokenizer.
        texts: Any iterable of texts, read when they are needed.
        batch_tokens: The approximate number of tokens per batch, with padding.
        max_tokens: The largest number of tokens of a row; the context length by default.
        overflow: What happens to the rest of a longer text: it is `"cut"`, or `"split"` into further rows.

    Returns:
        Batches of rows.

    Raises:
        EmbspaceError: If there is no tokenizer, a text is not a string, or an option is out of range.

    Example:
        >>> [len(batch) for batch in token_batches(model, ["w2 w3", "w4"])]
        [2]
    """
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise errors.no_tokenizer(model_name(model) or "the model", "a forward pass over texts")
    check_choice("overflow", overflow, OVERFLOWS)
    batch_tokens = check_integer("batch_tokens", batch_tokens, minimum=1)
    if isinstance(texts, str):
        raise errors.single_text()
    if max_tokens is not None:
        max_tokens = check_integer("max_tokens", max_tokens, minimum=2)
    n_ctx = context_length(model)
    longest = min((n for n in (max_tokens, n_ctx) if n is not None), default=DEFAULT_MAX_TOKENS)
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    indexed = enumerate(texts)
    while window := list(islice(indexed, WINDOW)):
        rows = [row for example, text in window for row in _rows(model, tokenizer, example, text, longest, overflow)]
        rows.sort(key=lambda row: len(row.tokens))
        while rows:
            size = max(1, batch_tokens // len(rows[0].tokens))
            while size > 1 and size * len(rows[min(size, len(rows)) - 1].tokens) > batch_tokens:
                size -= 1
            yield _padded(rows[:size], pad)
            rows = rows[size:]


def _rows(model: Any, tokenizer: Any, example: int, text: Any, longest: int, overflow: Overflow) -> Iterator[_Row]:
    """The rows of one text, each with the special tokens around it."""
    if not isinstance(text, str):
        raise errors.not_text(example, type(text).__name__)
    encoded = tokenizer(text, return_special_tokens_mask=True, verbose=False)
    special = [bool(flag) for flag in encoded["special_tokens_mask"]]
    tokens = list(encoded["input_ids"])
    own = [token for token, is_special in zip(tokens, special) if not is_special]
    first = next((i for i, is_special in enumerate(special) if not is_special), len(special))
    before, after = tokens[:first], tokens[first + len(own) :]
    bos = tokenizer.bos_token_id
    if not before and bos is not None and prepends_bos(model):
        before = [bos]
    room = max(1, longest - len(before) - len(after))
    for start in range(0, len(own) if overflow == "split" else min(1, len(own)), room):
        part = own[start : start + room]
        mask = [*[False] * len(before), *[True] * len(part), *[False] * len(after)]
        yield _Row(example, start, [*before, *part, *after], mask)


def _padded(rows: list[_Row], pad: int) -> TokenBatch:
    lengths = [len(row.tokens) for row in rows]
    tokens = torch.full((len(rows), max(lengths)), pad, dtype=torch.long)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, : lengths[i]], mask[i, : lengths[i]] = torch.tensor(row.tokens), torch.tensor(row.mask)
    example, start = (torch.tensor([getattr(row, name) for row in rows]) for name in ("example", "start"))
    return TokenBatch(example, start, tokens, mask, torch.tensor(lengths))
