"""Constructed sentences: how a factor's code changes when a pattern is kept, broken, or when its words are shuffled."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from .. import errors
from ..forward.runs import chosen_layers
from ..space.vocabulary import Vocabulary
from ..tables.checks import check_integer
from ..tables.frames import tidy
from ..tables.intervals import bootstrap_interval
from ..weights.configuration import d_model, d_vocab
from .dictionary import Factors
from .marked_tokens import states_at
from .pattern_shares import CLOSE, OPEN

CODES = ["factor", "layer", "token_index", "token_string", "example", "variant", "code"]
DIFFERENCES = ["factor", "layer", "variant", "value", "p_value", "low", "high", "n"]
KEPT, BROKEN, SHUFFLED = "kept", "broken", "shuffled"
MAX_EXACT = 12  # pairs; all 2^n sign flips up to here, a random sample beyond
N_FLIPS = 9999


def probe(
    factors: Factors,
    model: Any,
    sentences: Sequence[tuple[str, str]],
    *,
    factor: int | Iterable[int] | None = None,
    layers: int | Iterable[int] | None = None,
    n_shuffles: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute codes at the marked words of constructed sentences that keep or break a pattern.

    Each pair has one sentence that keeps the pattern and one that breaks it, with the same marked word, such as
    `("He said (in a «loud» voice)", "He said , in a «loud» voice")`. The control has the words of the first sentence in random
    order, with the marked word in its place.

    Args:
        factors: The dictionary.
        model: The model on which the dictionary was fitted.
        sentences: The pairs: a sentence that keeps the pattern, and one that breaks it. « and » stand around one word of each.
        factor: The factors; all of them by default.
        layers: The layers: hidden states after these blocks; −1 is the embedding. By default the embedding and all blocks.
        n_shuffles: How many random orders of words the control has.
        seed: Seed of the random orders.

    Returns:
        One row per (factor, layer, example, variant), with the `code` at the last token of the marked word. `example` is the
        index of the pair; `variant` is kept, broken or shuffled, and the code of shuffled is a mean over the orders.

    Raises:
        EmbspaceError: If a sentence does not have exactly one marked word, or is longer than the context; or there is no such
            factor.

    Example:
        >>> codes = probe(Factors(torch.eye(32), l1=0.01), model, [("w2 w3 «w4»", "w3 w2 «w4»")], factor=5, layers=[0])
        >>> codes["variant"].tolist()
        ['broken', 'kept', 'shuffled']

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, table 4. https://arxiv.org/abs/2103.15949
    """
    if factors.d_model != d_model(model):
        raise errors.bad_width(d_model(model), "the dictionary", factors.d_model, "the model's hidden states")
    n_shuffles = check_integer("n_shuffles", n_shuffles, minimum=1)
    chosen = range(factors.n_factors) if factor is None else [factor] if isinstance(factor, int) else list(factor)
    selected = np.array([check_integer("factor", f, minimum=0, maximum=factors.n_factors - 1) for f in chosen])
    rng = np.random.default_rng(check_integer("seed", seed, minimum=0))
    marked: list[tuple[int, str, str]] = []  # pair, variant, sentence
    for example, (kept, broken) in enumerate(sentences):
        shuffled = [(example, SHUFFLED, _shuffle(kept, rng)) for _ in range(n_shuffles)]
        marked += [(example, KEPT, kept), (example, BROKEN, broken), *shuffled]
    ends = [(row, _parse(sentence)[1]) for row, (_, _, sentence) in enumerate(marked)]
    texts = [_parse(sentence)[0] for _, _, sentence in marked]
    with torch.no_grad():
        at = states_at(model, texts, ends, chosen_layers(model, layers))
    if len(at.target) < len(marked):
        beyond = min(set(range(len(marked))) - set(at.target.tolist()))
        raise errors.marked_word_beyond_context(marked[beyond][2])
    shape = (len(sentences), 2 + n_shuffles)  # each pair: kept, broken, and the shuffled sentences
    row_of = np.argsort(at.target)
    tokens = at.token_index[row_of].reshape(shape)
    blocks = []
    for layer, states in at.states.items():
        codes = factors.encode(states[row_of])[:, selected].cpu().numpy().reshape(*shape, len(selected))
        by_variant = {KEPT: codes[:, 0], BROKEN: codes[:, 1], SHUFFLED: codes[:, 2:].mean(axis=1)}
        for i, (variant, of_pairs) in enumerate(by_variant.items()):
            for example, row in enumerate(of_pairs):
                keys = {"example": example, "variant": variant, "token_index": int(tokens[example, i])}
                blocks.append(keys | {"factor": selected, "layer": layer, "code": row})
    frame = tidy(CODES, blocks, strings=Vocabulary(model.tokenizer, d_vocab(model)).array)
    return frame.sort_values(["factor", "layer", "example", "variant"], kind="stable", ignore_index=True)


def probe_differences(codes: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    r"""Compare the codes of sentences that keep a pattern with those of their partners, pair by pair.

    .. math:: \Delta = \frac{1}{n} \sum_{i=1}^{n} (\alpha_c(\mathrm{kept}_i) - \alpha_c(\mathrm{variant}_i))

    The p-value is that of a sign-flip test: the share of random signs of the differences with a mean at least as high. Up to
    12 pairs all signs are used.

    Args:
        codes: A table of `probe`.
        seed: Seed of the bootstrap and of the random signs.

    Returns:
        One row per (factor, layer, variant), for the variants broken and shuffled: `value`, the mean difference over `n`
        pairs, with its interval and `p_value`.

    Raises:
        EmbspaceError: If the table lacks a column.

    Example:
        >>> pairs = [("w2 w3 «w4»", "w3 w2 «w4»"), ("w5 w3 «w4»", "w3 w5 «w4»")]
        >>> codes = probe(Factors(torch.eye(32), l1=0.01), model, pairs, factor=5, layers=[0])
        >>> probe_differences(codes)["variant"].tolist()
        ['broken', 'shuffled']
    """
    for name in ("factor", "layer", "example", "variant", "code"):
        if name not in codes.columns:
            raise errors.table_lacks_column("codes", name, "probe")
    table: Any = codes.pivot(index=["factor", "layer", "example"], columns="variant", values="code").astype("float64")
    rows = []
    for (factor, layer), part in table.groupby(level=["factor", "layer"]):
        for variant in (BROKEN, SHUFFLED):
            difference = (part[KEPT] - part[variant]).to_numpy()
            low, high = bootstrap_interval(difference, seed=seed)
            measures = {"value": difference.mean(), "low": low, "high": high, "n": len(difference)}
            keys = {"factor": factor, "layer": layer, "variant": variant}
            rows.append(keys | measures | {"p_value": _sign_flip_p_value(difference, seed)})
    return tidy(DIFFERENCES, rows)


def _sign_flip_p_value(difference: np.ndarray, seed: int) -> float:
    """The share of sign flips whose mean is at least as high as the mean of the differences."""
    n = len(difference)
    if n <= MAX_EXACT:
        signs = 1 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)  # the first row has no flip
    else:
        flipped = np.random.default_rng(seed).choice([-1.0, 1.0], size=(N_FLIPS, n))
        signs = np.vstack([np.ones(n), flipped])
    means = signs @ difference / n
    return float((means >= means[0] - 1e-9 * np.abs(difference).max(initial=0.0)).mean())


def _parse(sentence: str) -> tuple[str, int]:
    """The sentence without its marks, and the character at which the marked word ends."""
    before, opened, rest = sentence.partition(OPEN)
    target, closed, after = rest.partition(CLOSE)
    if not (opened and closed and target.strip()) or OPEN in target + after or CLOSE in before + after:
        raise errors.not_one_marked_word(sentence)
    return before + target + after, len(before + target.rstrip())


def _shuffle(sentence: str, rng: np.random.Generator) -> str:
    """The words in random order; the marked word stays in its place."""
    before, rest = sentence[: sentence.find(OPEN)], sentence[sentence.find(OPEN) :]
    _parse(sentence)
    target, after = rest[: rest.find(CLOSE) + 1], rest[rest.find(CLOSE) + 1 :]
    n_before, others = len(before.split()), [*before.split(), *after.split()]
    words = [others[i] for i in rng.permutation(len(others))]
    return " ".join([*words[:n_before], target, *words[n_before:]])
