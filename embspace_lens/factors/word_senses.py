"""Word senses: whether the code of one factor separates them, on held-out text and against two controls."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..forward.batches import token_batches
from ..forward.runs import chosen_layers
from ..forward.states import states_of
from ..tables.checks import check_integer
from ..tables.frames import tidy
from .dictionary import Factors

COLUMNS = ["word", "tag", "method", "factor", "layer", "precision", "recall", "f1", "accuracy", "n"]
NONE = -1  # the factor or layer of a method that uses none
Sentence = Sequence[tuple[str, str]]
Words = Mapping[str, Sequence[str]] | Sequence[str] | None


def senses(
    factors: Factors,
    model: Any,
    sentences: Sequence[Sentence],
    *,
    words: Words = None,
    layers: int | Iterable[int] | None = None,
    at_least: int = 60,
    at_most: int = 1000,
    held_out: float = 0.5,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Predict the sense of a word by three methods: one factor's code, logistic regression on the hidden state, and the majority.

    The factor method predicts the tag where the code is above a threshold. Factor, layer and threshold are those with the
    best F1 on the training half of the occurrences. The layer of the logistic regression is the one with the best
    cross-validated F1 on the same half. The table reports the other half:

    .. math:: F_1 = 2 / (1/\mathrm{precision} + 1/\mathrm{recall})

    Args:
        factors: The dictionary.
        model: The model on which the dictionary was fitted.
        sentences: Tagged text: each sentence is a sequence of (word, tag). Words are joined with spaces.
        words: The words, in lower case; or a mapping from each word to the tags that form one sense, such as
            `{"left": ["vbd", "vbn"]}`. By default every word that has at least two tags with `at_least` occurrences each;
            the sense is then its most frequent tag, compared with all its other tags.
        layers: The layers: hidden states after these blocks; −1 is the embedding. By default the embedding and all blocks.
        at_least: How often two of a word's tags must occur.
        at_most: The maximum number of occurrences of a word; a random sample if there are more.
        held_out: The share of the occurrences that is held out for the table.
        seed: Seed of the sample and of the split.

    Returns:
        One row per (word, tag, method): factor, logistic or majority, with `precision`, `recall`, `f1` and `accuracy` on `n`
        held-out occurrences. `factor` and `layer` are those selected; −1 if the method uses none.

    Raises:
        EmbspaceError: If no word has two senses in the text, or scikit-learn is not installed.

    Example:
        >>> verb, noun = [("w2", "pp"), ("w9", "vb")], [("w3", "at"), ("w9", "nn")]
        >>> df = senses(Factors(torch.eye(32), l1=0.01), model, [verb, noun] * 20, layers=[0], at_least=10)
        >>> df["method"].tolist()
        ['factor', 'logistic', 'majority']

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §4 and figure 4. https://arxiv.org/abs/2103.15949
    """
    try:
        import sklearn  # noqa: F401 (checked before the forward passes)
    except ImportError as reason:
        raise errors.missing_extra("scikit-learn", "factors") from reason
    seed = check_integer("seed", seed, minimum=0)
    tags_by_word = _tags_by_word(sentences, words, at_least)
    occurrences = _occurrences(sentences, set(tags_by_word), at_most, seed)
    states, tags = _states(model, sentences, occurrences, chosen_layers(model, layers))
    rows = []
    for word, sense in tqdm(sorted(tags_by_word.items()), desc="senses", unit="word", disable=None, leave=False):
        truth = np.isin(tags[word], list(sense))
        order = np.random.default_rng([seed, len(truth)]).permutation(len(truth))
        test, train = np.split(order, [round(held_out * len(truth))])
        if min(truth[train].sum(), (~truth[train]).sum(), truth[test].sum(), (~truth[test]).sum()) < 2:
            continue  # one of the halves has only one sense
        predictions = {
            "factor": _predict_by_factor(factors, states[word], truth, train, test),
            "logistic": _predict_by_regression(states[word], truth, train, test),
            "majority": _Prediction(NONE, NONE, np.full(len(test), truth[train].mean() >= 0.5)),
        }
        for method, (factor, layer, predicted) in predictions.items():
            precision, recall, f1 = _precision_recall_f1(predicted, truth[test])
            keys = {"word": word, "tag": "|".join(sorted(sense)), "method": method, "factor": factor, "layer": layer}
            measures = {"precision": precision, "recall": recall, "f1": f1, "n": len(test)}
            rows.append(keys | measures | {"accuracy": float((predicted == truth[test]).mean())})
    if not rows:
        raise errors.too_few_occurrences()
    return tidy(COLUMNS, rows).sort_values(["word", "tag", "method"], kind="stable", ignore_index=True)


class _Prediction(NamedTuple):
    """The selected factor and layer, and the prediction for each held-out occurrence."""

    factor: int
    layer: int
    predicted: np.ndarray


def _predict_by_factor(
    factors: Factors, states: dict[int, Tensor], truth: np.ndarray, train: np.ndarray, test: np.ndarray
) -> _Prediction:
    """Predict by the factor, layer and threshold with the best F1 on the training half."""
    best_f1, best = -1.0, None
    for layer, hidden in sorted(states.items()):
        codes = factors.encode(hidden).cpu().numpy()
        f1, factor, threshold = _best_threshold(codes[train], truth[train])
        if f1 > best_f1:
            best_f1, best = f1, _Prediction(factor, layer, codes[test, factor] > threshold)
    assert best is not None, "there is a layer"
    return best


def _predict_by_regression(
    states: dict[int, Tensor], truth: np.ndarray, train: np.ndarray, test: np.ndarray
) -> _Prediction:
    """Predict by logistic regression on the hidden state, in the layer with the best cross-validated F1."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    best_f1, best = -1.0, None
    for layer, hidden in sorted(states.items()):
        x = hidden.numpy()
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        folds = StratifiedKFold(min(5, int(truth[train].sum()), int((~truth[train]).sum())))
        validated = np.asarray(cross_val_predict(classifier, x[train], truth[train], cv=folds))
        _, _, f1 = _precision_recall_f1(validated, truth[train])
        if f1 > best_f1:
            best_f1, best = f1, _Prediction(NONE, layer, classifier.fit(x[train], truth[train]).predict(x[test]))
    assert best is not None, "there is a layer"
    return best


def _tags_by_word(sentences: Sequence[Sentence], words: Words, at_least: int) -> dict[str, set[str]]:
    """By word, the tags that form the sense to predict."""
    counts: dict[str, Counter[str]] = {}
    for sentence in sentences:
        for word, tag in sentence:
            counts.setdefault(word.lower(), Counter())[tag] += 1
    if isinstance(words, Mapping):
        # a single tag may be given as a string
        selected = {word.lower(): {tags} if isinstance(tags, str) else set(tags) for word, tags in words.items()}
    else:
        named = [words] if isinstance(words, str) else words
        candidates = counts if named is None else [word.lower() for word in named]
        ambiguous = [
            word for word in candidates if sum(c >= at_least for c in counts.get(word, Counter()).values()) > 1
        ]
        selected = {word: {min(counts[word], key=lambda tag: (-counts[word][tag], tag))} for word in ambiguous}
    for word in selected:
        if word not in counts:
            raise errors.word_not_in_sentences(word)
    if not selected:
        raise errors.no_word_with_two_tags(at_least)
    return selected


def _occurrences(sentences: Sequence[Sentence], words: set[str], at_most: int, seed: int) -> dict[str, np.ndarray]:
    """The occurrences of each word as rows (sentence, position in it); a random sample of `at_most`."""
    occurrences: dict[str, list[tuple[int, int]]] = {word: [] for word in words}
    for index, sentence in enumerate(sentences):
        for position, (word, _) in enumerate(sentence):
            if word.lower() in words:
                occurrences[word.lower()].append((index, position))
    rng = np.random.default_rng(seed)
    return {word: rng.permutation(np.array(occurrences[word]).reshape(-1, 2))[:at_most] for word in sorted(words)}


def _states(
    model: Any,
    sentences: Sequence[Sentence],
    occurrences: Mapping[str, np.ndarray],
    layers: Sequence[int],
) -> tuple[dict[str, dict[int, Tensor]], dict[str, np.ndarray]]:
    """The hidden states at the last token of each occurrence, by word and layer; and the tags, by word."""
    wanted = {(int(index), int(position)) for rows in occurrences.values() for index, position in rows}
    chosen = sorted({index for index, _ in wanted})
    texts = [" ".join(word for word, _ in sentences[index]) for index in chosen]
    word_and_tag: dict[tuple[int, int], tuple[str, str]] = {}  # by text and token
    for example, (index, text) in enumerate(zip(chosen, texts)):
        encoded = model.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
        token_ends = np.array([end for _, end in encoded["offset_mapping"]])
        word_end = -1
        for position, (word, tag) in enumerate(sentences[index]):
            word_end += 1 + len(word)
            if (index, position) in wanted:
                last_token = int(np.searchsorted(token_ends, word_end))
                word_and_tag[example, last_token] = word.lower(), tag
    collected: dict[int, list[Float[Tensor, "n d_model"]]] = {}
    labels: list[tuple[str, str]] = []
    with tqdm(total=len(texts), desc="sentences", unit="text", disable=None, leave=False) as bar:
        for batch in token_batches(model, texts):
            hidden = states_of(model, batch, layers)
            keys = list(zip(hidden.example.tolist(), batch.own_pos[batch.mask].tolist()))
            rows = [row for row, key in enumerate(keys) if key in word_and_tag]
            labels += [word_and_tag[keys[row]] for row in rows]
            for layer, states in hidden.states.items():
                collected.setdefault(layer, []).append(states[rows].float().cpu())
            bar.update(len(batch))
    by_layer = {layer: torch.cat(parts) for layer, parts in collected.items()}
    words = np.array([word for word, _ in labels], dtype=object)
    tags = np.array([tag for _, tag in labels], dtype=object)
    rows_of = {word: np.flatnonzero(words == word) for word in occurrences}
    by_word = {word: {layer: states[rows] for layer, states in by_layer.items()} for word, rows in rows_of.items()}
    return by_word, {word: tags[rows] for word, rows in rows_of.items()}


def _best_threshold(codes: Float[np.ndarray, "n n_factors"], truth: Bool[np.ndarray, " n"]) -> tuple[float, int, float]:
    """The best F1 of all factors and thresholds: F1, factor, threshold. Codes above the threshold predict the sense."""
    order = np.argsort(-codes, axis=0, kind="stable")
    descending = np.take_along_axis(codes, order, axis=0)
    hits = truth[order].cumsum(axis=0)
    f1 = 2 * hits / (np.arange(1, len(codes) + 1)[:, None] + truth.sum())
    following = np.vstack([descending[1:], np.zeros((1, codes.shape[1]))])
    f1 = np.where((descending > following) & (descending > 0), f1, 0.0)  # no threshold separates equal codes
    row, factor = np.unravel_index(f1.argmax(), f1.shape)
    return float(f1[row, factor]), int(factor), float((descending[row, factor] + following[row, factor]) / 2)


def _precision_recall_f1(predicted: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """Precision, recall and F1; 0 where they are undefined."""
    n_correct, n_predicted, n_true = int((predicted & truth).sum()), int(predicted.sum()), int(truth.sum())
    precision = n_correct / n_predicted if n_predicted else 0.0
    recall = n_correct / n_true if n_true else 0.0
    return precision, recall, 2 * n_correct / (n_predicted + n_true) if n_predicted + n_true else 0.0
