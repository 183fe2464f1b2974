"""Can one factor's code tell a word's senses apart? Measured on held-out text, beside two controls."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from .. import errors
from ..errors import EmbspaceError
from ..forward.batches import token_batches
from ..forward.states import states_of
from ..tables.frames import tidy
from .dictionary import Factors
from .sparse_coding import whole

COLUMNS = ["word", "tag", "method", "factor", "layer", "precision", "recall", "f1", "accuracy", "n"]
Sentence = Sequence[tuple[str, str]]


def senses(
    factors: Factors,
    model: Any,
    sentences: Sequence[Sentence],
    *,
    words: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    at_least: int = 60,
    at_most: int = 1000,
    held_out: float = 0.5,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Tell the tagged senses of words apart by one factor's code, by logistic regression on the whole state, and by majority.

    A factor finds a tag where its code is above a threshold. Factor, layer and threshold are those of the best F1 on one half of the
    occurrences; so is the layer of the logistic regression, whose scores there are cross-validated. The other half is what is reported:

    .. math:: F_1 = 2 / (1/\mathrm{precision} + 1/\mathrm{recall})

    Args:
        factors: The dictionary.
        model: The model that it was fitted to.
        sentences: Tagged text: each sentence a sequence of (word, tag). Words are joined with spaces.
        words: Which words, in lower case; or by word, the tags that together are the one sense, such as `{"left": ["vbd", "vbn"]}`. By
            default every word with `at_least` occurrences of two tags or more, its commonest tag against the rest.
        layers: After which blocks; all of them, and the embedding, by default.
        at_least: How often two of a word's tags must occur.
        at_most: How many occurrences of a word are looked at, drawn at random.
        held_out: The share of the occurrences that is kept for the report.
        seed: Of the split.

    Returns:
        One row per (word, tag, method): factor, logistic or majority, with `precision`, `recall`, `f1` and `accuracy` on `n` held-out
        occurrences; `factor` and `layer` say which was chosen (−1 for a method without a factor; the majority's layer is −1 too).

    Raises:
        EmbspaceError: If no word has two senses in the text, or scikit-learn is not installed.

    Example:
        >>> verb, noun = [("w2", "pp"), ("w9", "vb")], [("w3", "at"), ("w9", "nn")]
        >>> found = senses(Factors(torch.eye(32), l1=0.01), model, [verb, noun] * 20, layers=[0], at_least=10)
        >>> found["method"].tolist()
        ['factor', 'logistic', 'majority']

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §4 and figure 4. https://arxiv.org/abs/2103.15949
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as reason:
        raise errors.missing_extra("scikit-learn", "factors") from reason
    whole("seed", seed, least=0)
    targets = _targets(sentences, words, at_least)
    occurrences = _occurrences(sentences, set(targets), at_most, seed)
    states, tags = _states(model, sentences, occurrences, layers)
    rows = []
    for word, wanted in tqdm(sorted(targets.items()), desc="senses", unit="word", disable=None, leave=False):
        truth = np.isin(tags[word], list(wanted))
        order = np.random.default_rng([seed, len(truth)]).permutation(len(truth))
        test, train = np.split(order, [round(held_out * len(truth))])
        if min(truth[train].sum(), (~truth[train]).sum(), truth[test].sum(), (~truth[test]).sum()) < 2:
            continue  # one of the halves has a single sense
        best: dict[str, tuple[float, int, int, np.ndarray]] = {}
        for layer, values in sorted(states[word].items()):
            codes = factors.encode(values).cpu().numpy()
            score, number, threshold = _threshold(codes[train], truth[train])
            if "factor" not in best or score > best["factor"][0]:
                best["factor"] = (score, number, layer, codes[test, number] > threshold)
            x = values.numpy()
            fit = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
            folds = StratifiedKFold(min(5, int(truth[train].sum()), int((~truth[train]).sum())))
            score = _measures(np.asarray(cross_val_predict(fit, x[train], truth[train], cv=folds)), truth[train])[2]
            if "logistic" not in best or score > best["logistic"][0]:
                best["logistic"] = (score, -1, layer, fit.fit(x[train], truth[train]).predict(x[test]))
        best["majority"] = (0.0, -1, -1, np.full(len(test), truth[train].mean() >= 0.5))
        for method, (_, number, layer, guess) in best.items():
            precision, recall, f1 = _measures(guess, truth[test])
            keys = {"word": word, "tag": "|".join(sorted(wanted)), "method": method, "factor": number, "layer": layer}
            accuracy = float((guess == truth[test]).mean())
            rows.append(
                keys | {"precision": precision, "recall": recall, "f1": f1, "accuracy": accuracy, "n": len(test)}
            )
    if not rows:
        raise EmbspaceError(
            "No word has enough occurrences of two senses to learn from one half and measure on the other."
        )
    frame = tidy(COLUMNS, rows)
    return frame.sort_values(["word", "tag", "method"], kind="stable", ignore_index=True)


def _targets(sentences: Sequence[Sentence], words: Any, at_least: int) -> dict[str, set[str]]:
    """By word, the tags that are the sense to be found."""
    counts: dict[str, Counter[str]] = {}
    for sentence in sentences:
        for word, tag in sentence:
            counts.setdefault(word.lower(), Counter())[tag] += 1
    if isinstance(words, Mapping):
        # one tag may come as it is
        targets = {word.lower(): {tags} if isinstance(tags, str) else set(tags) for word, tags in words.items()}
    else:
        named = [words] if isinstance(words, str) else words
        chosen = counts if named is None else [word.lower() for word in named]
        several = [word for word in chosen if sum(c >= at_least for c in counts.get(word, Counter()).values()) > 1]
        targets = {word: {min(counts[word], key=lambda tag: (-counts[word][tag], tag))} for word in several}
    for word in targets:
        if word not in counts:
            raise EmbspaceError(f"{word!r} does not occur in the text.")
    if not targets:
        raise EmbspaceError(
            f"No word has two tags that occur {at_least} times each. Lower at_least, or give more text."
        )
    return targets


def _states(
    model: Any, sentences: Sequence[Sentence], occurrences: Mapping[str, np.ndarray], layers: Sequence[int] | None
) -> tuple[dict[str, dict[int, torch.Tensor]], dict[str, np.ndarray]]:
    """Hidden states at the last token of the given occurrences, by word and layer, and their tags."""
    wanted = {(int(s), int(w)) for places in occurrences.values() for s, w in places}
    chosen = sorted({number for number, _ in wanted})
    texts = [" ".join(word for word, _ in sentences[number]) for number in chosen]
    places: dict[tuple[int, int], tuple[str, str]] = {}
    for row, (number, text) in enumerate(zip(chosen, texts)):
        encoded = model.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
        ends = np.array([end for _, end in encoded["offset_mapping"]])
        end = -1
        for place, (word, tag) in enumerate(sentences[number]):
            end += 1 + len(word)
            if (number, place) in wanted:
                places[row, int(np.searchsorted(ends, end))] = word.lower(), tag  # the first token that reaches its end
    held: dict[int, list[torch.Tensor]] = {}
    found: list[tuple[str, str]] = []
    with tqdm(total=len(texts), desc="sentences", unit="text", disable=None, leave=False) as bar:
        for batch in token_batches(model, texts):
            part = states_of(model, batch, layers)
            keys = list(zip(part.example.tolist(), part.pos.tolist()))
            rows = [row for row, key in enumerate(keys) if key in places]
            found += [places[keys[row]] for row in rows]
            for layer, values in part.states.items():
                held.setdefault(layer, []).append(values[rows].float().cpu())
            bar.update(len(batch))
    states = {layer: torch.cat(parts) for layer, parts in held.items()}
    words = np.array([word for word, _ in found], dtype=object)
    tags = np.array([tag for _, tag in found], dtype=object)
    by_word = {word: np.flatnonzero(words == word) for word in occurrences}
    split = {word: {layer: values[rows] for layer, values in states.items()} for word, rows in by_word.items()}
    return split, {word: tags[rows] for word, rows in by_word.items()}


def _occurrences(sentences: Sequence[Sentence], words: set[str], at_most: int, seed: int) -> dict[str, np.ndarray]:
    """Where each word stands, (sentence, place in it); no more than `at_most`, drawn at random."""
    found: dict[str, list[tuple[int, int]]] = {word: [] for word in words}
    for number, sentence in enumerate(sentences):
        for place, (word, _) in enumerate(sentence):
            if word.lower() in words:
                found[word.lower()].append((number, place))
    rng = np.random.default_rng(seed)
    return {w: rng.permutation(np.array(found[w]).reshape(-1, 2))[:at_most] for w in sorted(words)}


def _threshold(codes: np.ndarray, truth: np.ndarray) -> tuple[float, int, float]:
    """The best F1 of all factors and thresholds: F1, factor, threshold (a code above it is a find)."""
    order = np.argsort(-codes, axis=0, kind="stable")
    sorted_codes = np.take_along_axis(codes, order, axis=0)
    hits = truth[order].cumsum(axis=0)
    f1 = 2 * hits / (np.arange(1, len(codes) + 1)[:, None] + truth.sum())
    following = np.vstack([sorted_codes[1:], np.zeros((1, codes.shape[1]))])
    f1 = np.where((sorted_codes > following) & (sorted_codes > 0), f1, 0.0)  # no threshold parts equal codes
    row, factor = np.unravel_index(f1.argmax(), f1.shape)
    return float(f1[row, factor]), int(factor), float((sorted_codes[row, factor] + following[row, factor]) / 2)


def _measures(guess: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    right, found, there = int((guess & truth).sum()), int(guess.sum()), int(truth.sum())
    precision, recall = right / found if found else 0.0, right / there if there else 0.0
    return precision, recall, 2 * right / (found + there) if found + there else 0.0
