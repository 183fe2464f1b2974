"""The only forward passes: texts → batches of tokens → hidden states and activations, streamed."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from ..errors import EmbspaceError, no_tokenizer, out_of_range
from .state_cache import Shards
from .texts import texts_of

WINDOW = 1024  # texts sorted by length together, so that rows of a batch are about as long as each other
OVERFLOWS = ("cut", "split")
SAMPLE_BYTES = 2**28  # of predictions and noise, while a model makes up text


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


@dataclass(frozen=True)
class HiddenStates:
    """Hidden states of a batch's own tokens, flat: row i of every tensor is one token.

    Attributes:
        example: Which text it is in.
        pos: Its place there, in tokens.
        token_index: Its vocabulary id.
        states: By layer, `[n, d_model]`.
    """

    example: Int[Tensor, " n"]
    pos: Int[Tensor, " n"]
    token_index: Int[Tensor, " n"]
    states: dict[int, Float[Tensor, "n d_model"]]


class _Enough(Exception):
    """Raised by the last hook that is wanted: the rest of the forward pass need not run."""


def device_of(model: Any) -> torch.device:
    """Where a model is; of one that is spread, where it begins."""
    return next(model.parameters()).device


def is_causal(model: Any) -> bool:
    """Whether a token sees only those before it."""
    # TransformerLens 3.9 calls BERT's attention causal too.
    masked = str(getattr(model.cfg, "architecture", "") or "").endswith("ForMaskedLM")
    return getattr(model.cfg, "attention_dir", "causal") == "causal" and not masked


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


def state_hook(model: Any, layer: int) -> str:
    """The hook point of the residual stream after a block; −1 is before the first one.

    All but the last are taken where the next block begins, so that nothing behind them need run.
    """
    n_layers = len(model.blocks)
    if not -1 <= layer < n_layers:
        raise out_of_range("layer", layer, "the model", n_layers, "layers")
    return f"blocks.{layer + 1}.hook_resid_pre" if layer + 1 < n_layers else f"blocks.{layer}.hook_resid_post"


def chosen_layers(model: Any, layers: int | Iterable[int] | None) -> list[int]:
    """The layers asked for, each once, as numbers; by default −1, the embedding, and all blocks.

    Raises:
        EmbspaceError: If none are asked for.
    """
    if layers is None:
        return list(range(-1, len(model.blocks)))
    chosen = list(dict.fromkeys(int(layer) for layer in ([layers] if isinstance(layers, int) else layers)))
    if not chosen:
        raise EmbspaceError("layers names no layer. Leave it out for all of them.")
    return chosen


def activations(
    model: Any,
    batch: TokenBatch,
    names: Sequence[str],
    *,
    hooks: Sequence[tuple[str, Callable[..., Any]]] = (),
) -> dict[str, Tensor]:
    """Run the model as far as the last of the named hook points, and return what passed there.

    Args:
        model: A TransformerLens model.
        batch: Tokens.
        names: Hook points in TransformerLens's words, such as `blocks.0.mlp.hook_post`.
        hooks: Interventions, as `run_with_hooks` takes them; what is returned is as they leave it.

    Raises:
        EmbspaceError: If a hook point does not exist, or nothing passed it.
    """
    batch = batch.to(device_of(model))
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(value: Tensor, hook: Any) -> None:
            found[name] = value
            if len(found) == len(wanted):
                raise _Enough

        return hook

    wanted = list(dict.fromkeys(names))
    # A model that looks both ways must not see the padding; behind a causal one's tokens it makes no difference.
    mask = torch.arange(batch.tokens.shape[1], device=batch.tokens.device) < batch.length[:, None]
    arguments: Mapping[str, Any] = {} if is_causal(model) else {"attention_mask": mask.long()}
    try:
        model.run_with_hooks(batch.tokens, fwd_hooks=[*hooks, *((name, keep(name)) for name in wanted)], **arguments)
    except _Enough:
        pass  # all that was wanted is there
    except KeyError as reason:
        raise EmbspaceError(f"The model has no such hook point: {reason}") from reason
    missing = [name for name in wanted if name not in found]
    if missing:
        raise EmbspaceError(f"Nothing passed {', '.join(missing)}: this architecture does not use that hook point.")
    return found


def residual(model: Any, batch: TokenBatch, layer: int) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream after a block; −1 is before the first one."""
    name = state_hook(model, layer)
    return activations(model, batch, [name])[name]


def resume(
    model: Any,
    batch: TokenBatch,
    state: Float[Tensor, "batch pos d_model"],
    layer: int,
    *,
    names: Sequence[str] = (),
    hooks: Sequence[tuple[str, Callable[..., Any]]] = (),
) -> tuple[Float[Tensor, "batch pos d_model"], dict[str, Tensor]]:
    """Go on from a given state at the entrance of block `layer` to the end of the last one.

    The blocks before it run on the tokens, for positions and masks are theirs to set up, and what they computed is dropped.

    Returns:
        The residual stream after the last block, and what passed the named hook points.
    """
    last = state_hook(model, len(model.blocks) - 1)
    entrance = (f"blocks.{layer}.hook_resid_pre", lambda value, hook: state.to(value))
    found = activations(model, batch, [*names, last], hooks=[entrance, *hooks])
    return found[last], found


def logits(
    model: Any, batch: TokenBatch, *, hooks: Sequence[tuple[str, Callable[..., Any]]] = ()
) -> Float[Tensor, "batch pos d_vocab"]:
    """Run the whole model, with interventions if there are any, to its predictions of every position."""
    batch = batch.to(device_of(model))
    mask = torch.arange(batch.tokens.shape[1], device=batch.tokens.device) < batch.length[:, None]
    arguments: Mapping[str, Any] = {} if is_causal(model) else {"attention_mask": mask.long()}
    return model.run_with_hooks(batch.tokens, fwd_hooks=list(hooks), **arguments)


@torch.no_grad()
def hidden_states(
    model: Any,
    texts: Any,
    layers: Sequence[int] | None = None,
    *,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
    overflow: str = "cut",
    column: str = "text",
    shards: str | os.PathLike[str] | None = None,
) -> Iterator[HiddenStates]:
    """Stream the hidden states of texts: of their own tokens alone, batch by batch, in bounded memory.

    Args:
        model: A TransformerLens model with a tokenizer.
        texts: A list, any iterable, a Hugging Face dataset, or a file; read as it is needed.
        layers: After which blocks; −1 is the embedding. All of them, and the embedding, by default.
        batch_tokens: About how many tokens run at once.
        max_tokens: The longest row; the model's context by default.
        overflow: As for `token_batches`.
        column: The column of texts, of a table or dataset.
        shards: A folder in which they are kept, one safetensors file a batch. What is there already, of a run that was stopped or that
            is read again, is not computed a second time.

    Returns:
        One `HiddenStates` a batch. Texts of similar length run together, so examples come in no particular order.

    Raises:
        EmbspaceError: If there is no such layer, no tokenizer, or the folder holds the states of other texts or another model.

    Example:
        >>> [h.states[0].shape[0] for h in hidden_states(model, ["one two"], layers=[0])]
        [2]
    """
    found = texts_of(texts, column=column)
    batches = token_batches(model, found, batch_tokens=batch_tokens, max_tokens=max_tokens, overflow=overflow)
    kept = None if shards is None else kept_states(model, layers, shards)
    total = len(found) if isinstance(found, Sized) else None
    with tqdm(total=total, desc="hidden states", unit="text", disable=None, leave=False) as bar:
        for number, batch in enumerate(batches):
            yield states_of(model, batch, layers) if kept is None else kept(number, batch)
            bar.update(int((batch.start == 0).sum()))


def weights_key(model: Any) -> str:
    """What tells a model from another of the same name: a digest of the first entries of each of its parameters."""
    entries = [parameter.flatten()[:1024].float().cpu().tolist() for parameter in model.parameters()]
    return sha256(repr((str(getattr(model.cfg, "model_name", "")), entries)).encode()).hexdigest()


def kept_states(
    model: Any, layers: Sequence[int] | None, folder: str | os.PathLike[str]
) -> Callable[[int, TokenBatch], HiddenStates]:
    """A function of a batch and its number: its hidden states, from a folder if they are there, else computed and put there."""
    chosen = chosen_layers(model, layers)
    shards = Shards(folder, f"{weights_key(model)}, layers {chosen}")

    def get(number: int, batch: TokenBatch) -> HiddenStates:
        found = shards.get(number, batch.tokens)
        if found is not None:
            example, pos, token_index = (found.pop(name) for name in ("example", "pos", "token_index"))
            return HiddenStates(example, pos, token_index, {int(layer): states for layer, states in found.items()})
        part = states_of(model, batch, chosen)
        known = {"example": part.example, "pos": part.pos, "token_index": part.token_index}
        shards.put(number, batch.tokens, known | {str(layer): states for layer, states in part.states.items()})
        return part

    return get


@torch.no_grad()
def states_of(model: Any, batch: TokenBatch, layers: Sequence[int] | None = None) -> HiddenStates:
    """The hidden states of one batch, as `hidden_states` streams them."""
    chosen = chosen_layers(model, layers)
    name_of = {layer: state_hook(model, layer) for layer in chosen}
    found = activations(model, batch, list(name_of.values()))
    own = batch.mask.to(device_of(model))
    return HiddenStates(
        example=batch.example[batch.mask.nonzero()[:, 0]],
        pos=batch.own_pos[batch.mask],
        token_index=batch.tokens[batch.mask],
        states={layer: found[name][own] for layer, name in name_of.items()},
    )


@torch.no_grad()
def own_words(
    model: Any,
    n_rows: int,
    n_tokens: int,
    *,
    tokens: Int[Tensor, " n"] | None = None,
    rounds: int = 8,
    seed: int = 0,
) -> Iterator[TokenBatch]:
    r"""Let a model make up text: no corpus is needed to see its hidden states at work.

    A text is sampled token by token, with fixed Gumbel noise, from the model's own predictions:

    .. math:: x_t = \arg\max_v \big(\log p(v \mid x_{<t}) + g_{t, v}\big)

    All positions are sampled at once, each round from the text of the round before (Jacobi iteration). After r rounds the
    first r tokens are the model's exact sample; those behind them have the model's word frequencies and most of its phrases.

    Args:
        model: A causal TransformerLens model.
        n_rows: How many texts.
        n_tokens: How long each is, the beginning-of-sequence token apart.
        tokens: The ids to choose among; all by default.
        rounds: Forward passes over each text.
        seed: Of the noise.

    Returns:
        Batches of rows; `mask` leaves the beginning-of-sequence token out.

    Raises:
        EmbspaceError: If the model is not causal.
    """
    if not is_causal(model):
        raise EmbspaceError("A model that looks both ways does not write text; give texts instead.")
    device, d_vocab = device_of(model), int(model.cfg.d_vocab)
    allowed = torch.arange(d_vocab) if tokens is None else tokens
    tokenizer = getattr(model, "tokenizer", None)
    bos = getattr(tokenizer, "bos_token_id", None) or 0
    generator = torch.Generator().manual_seed(seed)
    at_once = max(1, SAMPLE_BYTES // (8 * (n_tokens + 1) * d_vocab))
    for start in range(0, n_rows, at_once):
        n = min(at_once, n_rows - start)
        # exponential noise, for argmax(log p + Gumbel) = argmax(p / Exp)
        noise = torch.empty(n, n_tokens, len(allowed)).exponential_(generator=generator)
        text = allowed[torch.randint(len(allowed), (n, n_tokens), generator=generator)]
        for _ in range(rounds):
            rows = torch.cat([torch.full((n, 1), bos), text], dim=1).to(device)
            p = model(rows)[:, :-1, allowed.to(device)].float().softmax(dim=-1).cpu()
            text = allowed[(p / noise).argmax(dim=-1)]
        rows = torch.cat([torch.full((n, 1), bos), text], dim=1)
        mask = torch.ones_like(rows, dtype=torch.bool)
        mask[:, 0] = False
        length = torch.full((n,), n_tokens + 1)
        yield TokenBatch(torch.arange(start, start + n), torch.zeros(n, dtype=torch.long), rows, mask, length)
