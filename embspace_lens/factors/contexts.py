"""Where factors are active: their importance in each layer, their top contexts, and how well codes explain each layer."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from .. import errors
from ..forward.batches import token_batches
from ..forward.runs import chosen_layers
from ..forward.states import states_of
from ..forward.texts import texts_of
from ..space.vocabulary import Vocabulary
from ..tables.checks import check_integer
from ..tables.frames import tidy
from ..weights.configuration import d_model, d_vocab
from .dictionary import Factors
from .layer_activity import LayerActivity, token_windows

HISTOGRAM = ["factor", "layer", "code_from", "n"]
IMPORTANCE = ["factor", "layer", "importance"]
MEASURES = ["layer", "n_vectors", "objective", "explained_variance", "n_active"]
CONTEXTS = ["factor", "layer", "rank", "token_index", "token_string", "example", "pos", "code", "before", "after"]


@dataclass(frozen=True, eq=False, repr=False)
class Activity:
    """The activity of all factors in all layers on some texts; the result of `activity`.

    Attributes:
        importance: One row per (factor, layer), with `importance`: the mean of its largest codes there.
        measures: One row per (layer), with `n_vectors`, `objective`, `explained_variance` and `n_active`, the mean number of
            codes above zero.
        contexts: One row per (factor, layer, rank): `code`, `example` (which text, from 0), `pos` (its position in the run), the
            target as `token_index` and `token_string`, and the text `before` and `after` it. Codes of 0 have no row.
        histogram: One row per (factor, layer, bin): `n`, how many codes are in the bin from `code_from` to √2 times as much.
            Bins without codes have no row.
    """

    importance: pd.DataFrame
    measures: pd.DataFrame
    contexts: pd.DataFrame
    histogram: pd.DataFrame | None = None

    def __repr__(self) -> str:
        n_factors, n_vectors = len(set(self.importance["factor"])), np.sum(self.measures["n_vectors"].to_numpy())
        return f"Activity({n_factors} factors, {len(self.measures)} layers, {n_vectors:,} hidden states)"


def activity(
    factors: Factors,
    model: Any,
    texts: Any,
    *,
    layers: int | Iterable[int] | None = None,
    n: int = 500,
    n_contexts: int = 200,
    window: int = 10,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
    column: str = "text",
) -> Activity:
    r"""Compute the codes of texts in one pass, and keep the largest codes of every factor and layer with their contexts.

    The importance of factor c in layer l is the mean of its n largest codes:

    .. math:: I_c^{(l)} = \frac{1}{n} \sum_{i \in \mathrm{top}_n} \alpha_c(x_i^{(l)})

    Memory depends on the numbers of factors, layers, codes and contexts, not on the number of texts.

    Args:
        factors: The dictionary.
        model: The model on which the dictionary was fitted.
        texts: A list, any iterable, a Hugging Face dataset, or a file.
        layers: The layers: hidden states after these blocks; −1 is the embedding. By default the embedding and all blocks.
        n: How many codes are averaged for the importance; if fewer codes are above 0, the rest count as 0.
        n_contexts: How many contexts of each factor and layer are kept.
        window: How many tokens before and after the target a context shows.
        batch_tokens: The approximate number of tokens per batch.
        max_tokens: The maximum length of a text in tokens; longer texts are cut.
        column: The column of texts in a table or dataset.

    Returns:
        An `Activity` with four tables.

    Raises:
        EmbspaceError: If the dictionary has another width than the model, the texts contain no tokens, or an option is out
            of bounds.

    Example:
        >>> activity(Factors(torch.eye(32)[:3], l1=0.1), model, ["one two", "three"], layers=[0], n=2)
        Activity(3 factors, 1 layers, 3 hidden states)

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §3. https://arxiv.org/abs/2103.15949
    """
    if factors.d_model != d_model(model):
        raise errors.bad_width(d_model(model), "the dictionary", factors.d_model, "the model's hidden states")
    n = check_integer("n", n, minimum=1)
    n_contexts = check_integer("n_contexts", n_contexts, minimum=0)
    window = check_integer("window", window, minimum=0)
    by_layer: dict[int, LayerActivity] = {}
    layers = chosen_layers(model, layers)
    source: Any = texts_of(texts, column=column)
    total = len(source) if hasattr(source, "__len__") else None
    with tqdm(total=total, desc="contexts", unit="text", disable=None, leave=False) as bar, torch.no_grad():
        for batch in token_batches(model, source, batch_tokens=batch_tokens, max_tokens=max_tokens):
            hidden = states_of(model, batch, layers)
            windows = token_windows(batch, window)
            for layer, states in hidden.states.items():
                if layer not in by_layer:
                    by_layer[layer] = LayerActivity(factors, n, n_contexts, window)
                by_layer[layer].update(states, hidden.example, hidden.pos, windows)
            bar.update(len(batch))
    if not by_layer:
        raise errors.texts_without_tokens()
    return activity_tables(by_layer, model)


def importance(
    factors: Factors,
    model: Any,
    texts: Any,
    *,
    layers: int | Iterable[int] | None = None,
    n: int = 500,
    **options: Any,
) -> pd.DataFrame:
    """Measure the importance of each factor in each layer: the mean of its n largest codes.

    Args:
        factors: The dictionary.
        model: The model on which the dictionary was fitted.
        texts: As in `activity`.
        layers: As in `activity`.
        n: How many codes are averaged; 500 in Yun et al.
        **options: As in `activity`.

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
    layers: int | Iterable[int] | None = None,
    n: int = 200,
    window: int = 10,
    **options: Any,
) -> pd.DataFrame:
    """Find the top contexts of each factor in each layer: the tokens with its largest codes, and the text around them.

    Args:
        factors: The dictionary.
        model: The model on which the dictionary was fitted.
        texts: As in `activity`.
        layers: As in `activity`.
        n: How many contexts of each factor and layer.
        window: How many tokens before and after the target a context shows.
        **options: As in `activity`.

    Returns:
        One row per (factor, layer, rank), with `code`, `example`, `pos`, the target's `token_index` and `token_string`, and
        the text `before` and `after` it.

    Raises:
        EmbspaceError: As `activity`.

    Example:
        >>> contexts = top_contexts(Factors(torch.eye(32), l1=0.01), model, ["w2 w3 w4"], layers=[0], n=1)
        >>> set(contexts["token_string"].str.strip()) <= {"w2", "w3", "w4"}
        True

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §3. https://arxiv.org/abs/2103.15949
    """
    return activity(factors, model, texts, layers=layers, n=1, n_contexts=n, window=window, **options).contexts


def activity_tables(by_layer: dict[int, LayerActivity], model: Any) -> Activity:
    """The tables of layers whose activity was collected, with the tokens of a model's tokenizer."""
    layers = sorted(by_layer)
    curves = torch.stack([by_layer[layer].importance() for layer in layers], dim=1)
    n_factors = len(curves)
    keys = {"factor": np.repeat(np.arange(n_factors), len(layers)), "layer": np.tile(layers, n_factors)}
    importance = tidy(IMPORTANCE, [keys | {"importance": curves.flatten().numpy()}], kind="importance")
    measures = tidy(MEASURES, [{"layer": layer, **by_layer[layer].measures()} for layer in layers])
    strings = Vocabulary(model.tokenizer, d_vocab(model)).array
    blocks = (by_layer[layer].context_table(layer, model.tokenizer) for layer in layers)
    contexts = tidy(CONTEXTS, (block for block in blocks if block), strings=strings, kind="contexts")
    contexts = contexts.sort_values(["factor", "layer", "rank"], kind="stable", ignore_index=True)
    histogram = tidy(HISTOGRAM, [by_layer[layer].histogram(layer) for layer in layers])
    histogram = histogram.sort_values(["factor", "layer", "code_from"], kind="stable", ignore_index=True)
    return Activity(importance, measures, contexts, histogram)
