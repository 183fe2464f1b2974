"""Where factors are active: importance over layers, strongest contexts, and how well they explain each layer."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from ..errors import EmbspaceError, bad_width
from ..forward.batches import TokenBatch, token_batches
from ..forward.states import states_of
from ..forward.texts import texts_of
from ..space.vocabulary import Vocabulary
from ..tables.frames import tidy
from .dictionary import Factors

GAP = 1e-3  # of the codes
NO_TOKEN = -1
CONTEXTS = ["factor", "layer", "rank", "token_index", "token_string", "example", "pos", "code", "before", "after"]


@dataclass(frozen=True, eq=False, repr=False)
class Activity:
    """What one pass over texts says of all factors in all layers; made by `activity`.

    Attributes:
        importance: One row per (factor, layer), with `importance`: the mean of its largest codes there.
        measures: One row per (layer), with `n_vectors`, `objective`, `explained_variance` and `n_active`, the mean number of codes
            above zero.
        contexts: One row per (factor, layer, rank): `code`, `example` (which text, from 0), `pos` (which token of it), the target
            as `token_index`, `token_string`, and the text `before` and `after` it. Contexts with a code of 0 are left out.
    """

    importance: pd.DataFrame
    measures: pd.DataFrame
    contexts: pd.DataFrame

    def __repr__(self) -> str:
        n_vectors = np.sum(self.measures["n_vectors"].to_numpy())
        return f"Activity({len(set(self.importance['factor']))} factors, {len(self.measures)} layers, {n_vectors:,} hidden states)"


def activity(
    factors: Factors,
    model: Any,
    texts: Any,
    *,
    layers: Sequence[int] | None = None,
    n: int = 500,
    n_contexts: int = 200,
    window: int = 10,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
    column: str = "text",
) -> Activity:
    r"""Read texts once, and keep for every factor and layer its largest codes and where they were.

    .. math:: I_c^{(l)} = \frac{1}{n} \sum_{i \in \mathrm{top}_n} \alpha_c(x_i^{(l)})

    Memory depends on factors, layers, n and n_contexts; not on the texts.

    Args:
        factors: The dictionary.
        model: The model that it was fitted to.
        texts: A list, any iterable, a Hugging Face dataset, or a file.
        layers: After which blocks; −1 is the embedding. All of them, and the embedding, by default.
        n: How many codes make the importance; codes that are not there count as 0.
        n_contexts: How many contexts of each factor and layer are kept.
        window: How many tokens of text on either side of the target.
        batch_tokens: About how many tokens run at once.
        max_tokens: The longest text, in tokens; the rest is cut off.
        column: The column of texts, of a table or dataset.

    Returns:
        An `Activity`: three tables.

    Raises:
        EmbspaceError: If the dictionary is of another width, there is no token, or an option makes no sense.

    Example:
        >>> activity(Factors(torch.eye(32)[:3], l1=0.1), model, ["one two", "three"], layers=[0], n=2)
        Activity(3 factors, 1 layers, 3 hidden states)

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §3. https://arxiv.org/abs/2103.15949
    """
    d_model = int(model.cfg.d_model)
    if factors.d_model != d_model:
        raise bad_width(d_model, "the dictionary", factors.d_model, "the model's hidden states")
    for name, value, least in (("n", n, 1), ("n_contexts", n_contexts, 0), ("window", window, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise EmbspaceError(f"{name}={value!r} is not a number of {least} or more.")
    kept: dict[int, _Top] = {}
    found = texts_of(texts, column=column)
    total = len(found) if isinstance(found, Sized) else None
    with tqdm(total=total, desc="contexts", unit="text", disable=None, leave=False) as bar, torch.no_grad():
        for batch in token_batches(model, found, batch_tokens=batch_tokens, max_tokens=max_tokens):
            part = states_of(model, batch, layers)
            windows = _windows(batch, window)
            for layer, states in part.states.items():
                if layer not in kept:
                    kept[layer] = _Top(factors, n, n_contexts, window)
                kept[layer].add(states, part.example, part.pos, windows)
            bar.update(len(batch))
    if not kept:
        raise EmbspaceError("The texts hold no token: no factor is active.")
    return _tables(factors, kept, window, model)


def importance(
    factors: Factors, model: Any, texts: Any, *, layers: Sequence[int] | None = None, n: int = 500, **options: Any
) -> pd.DataFrame:
    """How strong each factor is in each layer: the mean of its n largest codes over texts.

    Args:
        factors: The dictionary.
        model: The model that it was fitted to.
        texts: As for `activity`.
        layers: As for `activity`.
        n: How many codes are averaged; 500 in the original.
        **options: As for `activity`.

    Returns:
        One row per (factor, layer), with `importance`, in units of the hidden states.

    Raises:
        EmbspaceError: As `activity`.

    Example:
        >>> importance(Factors(torch.eye(32)[:2], l1=0.1), model, ["w2 w3"], layers=[0, 1], n=1)["layer"].tolist()
        [0, 1, 0, 1]

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §3. https://arxiv.org/abs/2103.15949
    """
    return activity(factors, model, texts, layers=layers, n=n, n_contexts=0, **options).importance


def top_contexts(
    factors: Factors,
    model: Any,
    texts: Any,
    *,
    layers: Sequence[int] | None = None,
    n: int = 200,
    window: int = 10,
    **options: Any,
) -> pd.DataFrame:
    """Where each factor is strongest in each layer: the words and their surroundings.

    Args:
        factors: The dictionary.
        model: The model that it was fitted to.
        texts: As for `activity`.
        layers: As for `activity`.
        n: How many contexts of each factor and layer.
        window: How many tokens of text on either side.
        **options: As for `activity`.

    Returns:
        One row per (factor, layer, rank), with `code`, `example`, `pos`, the target's `token_index` and `token_string`, and the
        text `before` and `after` it.

    Raises:
        EmbspaceError: As `activity`.

    Example:
        >>> found = top_contexts(Factors(torch.eye(32), l1=0.01), model, ["w2 w3 w4"], layers=[0], n=1)
        >>> set(found["token_string"].str.strip()) <= {"w2", "w3", "w4"}
        True

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §3. https://arxiv.org/abs/2103.15949
    """
    return activity(factors, model, texts, layers=layers, n=1, n_contexts=n, window=window, **options).contexts


class _Top:
    """The largest codes of every factor in one layer so far, where they were, and sums for the layer's measures."""

    def __init__(self, factors: Factors, n: int, n_contexts: int, window: int) -> None:
        self.factors, self.n, self.n_contexts = factors, n, n_contexts
        self.codes = torch.zeros(factors.n_factors, n)
        self.best = torch.zeros(factors.n_factors, n_contexts)
        # example, pos, and the tokens around: one row of numbers a context
        self.places = torch.full((factors.n_factors, n_contexts, 2 + 2 * window + 1), NO_TOKEN, dtype=torch.int32)
        self.count, self.active, self.value, self.left = 0, 0, 0.0, 0.0
        self.sum, self.squares = torch.zeros(factors.d_model, dtype=torch.float64), 0.0

    def add(
        self,
        states: Float[Tensor, "n d_model"],
        example: Int[Tensor, " n"],
        pos: Int[Tensor, " n"],
        windows: Int[Tensor, "n w"],
    ) -> None:
        states = states.float().cpu()
        codes = self.factors.encode(states, gap=GAP).cpu()
        self._measure(states, codes)
        largest = codes.T.topk(min(self.n, len(codes)), dim=1).values
        self.codes = torch.cat([self.codes, largest], dim=1).topk(self.n, dim=1).values
        if self.n_contexts:
            value, row = codes.T.topk(min(self.n_contexts, len(codes)), dim=1)
            rows = torch.cat([example[:, None], pos[:, None], windows], dim=1).int()
            self.best, order = torch.cat([self.best, value], dim=1).topk(self.n_contexts, dim=1)
            places = torch.cat([self.places, rows[row]], dim=1)
            self.places = places.gather(1, order[..., None].expand(-1, -1, places.shape[2]))

    def _measure(self, states: Tensor, codes: Tensor) -> None:
        exact = states.double()
        self.left += float((exact - self.factors.decode(codes).double()).square().sum())
        self.value += float(codes.double().sum())
        self.active += int((codes > 0).sum())
        self.count += len(states)
        self.sum += exact.sum(dim=0)
        self.squares += float(exact.square().sum())

    def measures(self) -> dict[str, Any]:
        spread = self.squares - float(self.sum.square().sum()) / self.count
        return {
            "n_vectors": self.count,
            "objective": (self.left / 2 + self.factors.l1 * self.value) / self.count,
            "explained_variance": 1 - self.left / spread if spread > 0 else np.nan,
            "n_active": self.active / self.count,
        }


def _windows(batch: TokenBatch, window: int) -> Int[Tensor, "n 2*window+1"]:
    """The tokens around each of the texts' own tokens, `NO_TOKEN` where the row has none of its own."""
    tokens = torch.where(batch.mask, batch.tokens, NO_TOKEN)
    padded = torch.nn.functional.pad(tokens, (window, window), value=NO_TOKEN)
    return padded.unfold(1, 2 * window + 1, 1)[batch.mask]


def _tables(factors: Factors, kept: dict[int, _Top], window: int, model: Any) -> Activity:
    layers = sorted(kept)
    grid = np.repeat(np.arange(factors.n_factors), len(layers)), np.tile(layers, factors.n_factors)
    mean = torch.stack([kept[layer].codes.mean(dim=1) for layer in layers], dim=1)
    strong = tidy(
        ["factor", "layer", "importance"], [{"factor": grid[0], "layer": grid[1], "importance": mean.flatten().numpy()}]
    )
    columns = ["layer", "n_vectors", "objective", "explained_variance", "n_active"]
    measures = tidy(columns, [{"layer": layer, **kept[layer].measures()} for layer in layers])
    strings = Vocabulary(model.tokenizer, int(model.cfg.d_vocab)).array
    blocks = (_contexts(layer, kept[layer], window, model.tokenizer) for layer in layers)
    contexts = tidy(CONTEXTS, (block for block in blocks if block), strings=strings).sort_values(
        ["factor", "layer", "rank"], kind="stable", ignore_index=True
    )
    return Activity(strong, measures, contexts)


def _contexts(layer: int, top: _Top, window: int, tokenizer: Any) -> dict[str, Any]:
    there = top.best > 0
    if not there.any():
        return {}
    factor, rank = (index.numpy() for index in there.nonzero(as_tuple=True))
    places = top.places[there].numpy()
    target = places[:, 2 + window].astype(np.int64)
    return {
        "factor": factor,
        "layer": np.full(len(factor), layer),
        "rank": rank,
        "code": top.best[there].numpy(),
        "example": places[:, 0],
        "pos": places[:, 1],
        "token_index": target,
        "before": _decoded(tokenizer, places[:, 2 : 2 + window]),
        "after": _behind(tokenizer, target, places[:, 2 + window :]),
    }


def _decoded(tokenizer: Any, rows: np.ndarray) -> list[str]:
    # One place of a text is a context of many factors: it is decoded once.
    different, which = np.unique(rows, axis=0, return_inverse=True)
    known = [row[row != NO_TOKEN].tolist() for row in different]
    texts = tokenizer.batch_decode(known, clean_up_tokenization_spaces=False, skip_special_tokens=False)
    return [texts[i] for i in which.ravel().tolist()]


def _behind(tokenizer: Any, target: np.ndarray, rows: np.ndarray) -> list[str]:
    """The text after a token, decoded together with it: alone, some tokenizers lose the space between the two."""
    whole, first = _decoded(tokenizer, rows), _decoded(tokenizer, target[:, None])
    alone = _decoded(tokenizer, rows[:, 1:])
    return [text[len(token) :] if text.startswith(token) else rest for text, token, rest in zip(whole, first, alone)]
