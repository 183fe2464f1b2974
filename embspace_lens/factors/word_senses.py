"""Word senses: whether the code of one factor separates them, on held-out text, beside other predictors and the majority."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..forward.runs import chosen_layers
from ..tables.checks import check_integer
from ..tables.frames import tidy
from .dictionary import Factors
from .word_occurrences import Occurrences, Sentence, Words, occurrences_of, sample_positions, tags_by_word

COLUMNS = ["word", "tag", "method", "factor", "layer", "precision", "recall", "f1", "accuracy", "n"]
CODES = ["word", "tag", "factor", "layer", "example", "pos", "code"]
NONE = -1  # the factor or layer of a method that uses none
Tagger = Callable[[list[str]], Sequence[str]]
"""From the words of a sentence to their tags."""


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
    groups: Sequence[Hashable] | None = None,
    train_tagger: Callable[[list[Sentence]], Tagger] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Predict the sense of a word from one factor's code, from the whole hidden state, by a tagger, and by the majority.

    All methods use the same split of the occurrences into a training part and a held-out part:

    - **factor** predicts the tag where the code is above a threshold. Factor, layer and threshold are those with the best F1
      on the training part.
    - **code** is a logistic regression on the code of the same factor in the same layer.
    - **state** is a logistic regression on the hidden state, in the layer with the best cross-validated F1 on the training
      part.
    - **tagger** is a part-of-speech tagger, trained on the sentences without held-out occurrences.
    - **majority** predicts the more frequent of the two senses; it is the control.

    The table reports the held-out part:

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
        groups: The source of each sentence, such as its file. All occurrences of one source are in the same part, and the
            tagger is trained on sources without held-out occurrences. By default occurrences are split one by one.
        train_tagger: Trains a tagger on tagged sentences: a function of sentences that returns a function from the words of
            a sentence to their tags. By default there is no tagger, and no row of it.
        seed: Seed of the sample and of the split.

    Returns:
        One row per (word, tag, method), with `precision`, `recall`, `f1` and `accuracy` on `n`
        held-out occurrences. `factor` and `layer` are those selected; −1 if the method uses none.

    Raises:
        EmbspaceError: If no word has two senses in the text, or scikit-learn is not installed.

    Example:
        >>> verb, noun = [("w2", "pp"), ("w9", "vb")], [("w3", "at"), ("w9", "nn")]
        >>> df = senses(Factors(torch.eye(32), l1=0.01), model, [verb, noun] * 20, layers=[0], at_least=10)
        >>> df["method"].tolist()
        ['code', 'factor', 'majority', 'state']

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §4. https://arxiv.org/abs/2103.15949
    """
    try:
        import sklearn  # noqa: F401 (checked before the forward passes)
    except ImportError as reason:
        raise errors.missing_extra("scikit-learn", "factors") from reason
    seed = check_integer("seed", seed, minimum=0)
    sense_of = tags_by_word(sentences, words, at_least)
    positions = sample_positions(sentences, set(sense_of), at_most, seed)
    occurrences = occurrences_of(model, sentences, positions, chosen_layers(model, layers))
    splits = {word: _split(occurrences[word], groups, held_out, seed) for word in sense_of}
    tag = None if train_tagger is None else _train(train_tagger, sentences, occurrences, splits, groups)
    rows = []
    for word, sense in tqdm(sorted(sense_of.items()), desc="senses", unit="word", disable=None, leave=False):
        these, (train, test) = occurrences[word], splits[word]
        truth = np.isin(these.tags, list(sense))
        if min(truth[train].sum(), (~truth[train]).sum(), truth[test].sum(), (~truth[test]).sum()) < 2:
            continue  # one of the parts has only one sense
        by_factor = _predict_by_factor(factors, these.states, truth, train, test)
        predictions = {
            "factor": by_factor,
            "code": _predict_by_code(factors, these.states, by_factor, truth, train, test),
            "state": _predict_by_state(these.states, truth, train, test),
            "majority": _Prediction(NONE, NONE, np.full(len(test), truth[train].mean() >= 0.5)),
        }
        if tag is not None:
            predictions["tagger"] = _Prediction(NONE, NONE, _predict_by_tagger(tag, sentences, these, test, sense))
        for method, (factor, layer, predicted) in predictions.items():
            precision, recall, f1 = _precision_recall_f1(predicted, truth[test])
            keys = {"word": word, "tag": "|".join(sorted(sense)), "method": method, "factor": factor, "layer": layer}
            measures = {"precision": precision, "recall": recall, "f1": f1, "n": len(test)}
            rows.append(keys | measures | {"accuracy": float((predicted == truth[test]).mean())})
    if not rows:
        raise errors.too_few_occurrences()
    return tidy(COLUMNS, rows).sort_values(["word", "tag", "method"], kind="stable", ignore_index=True)


def sense_codes(
    factors: Factors,
    model: Any,
    sentences: Sequence[Sentence],
    word: str,
    *,
    factor: int,
    layers: int | Iterable[int] | None = None,
    at_most: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute the code of one factor at every occurrence of a word, with the tag of the occurrence.

    `plot_code_histograms` draws the codes by sense and layer.

    Args:
        factors: The dictionary.
        model: The model on which the dictionary was fitted.
        sentences: Tagged text, as in `senses`.
        word: The word; upper and lower case count as equal.
        factor: The factor.
        layers: The layers: hidden states after these blocks; −1 is the embedding. By default the embedding and all blocks.
        at_most: The maximum number of occurrences; a random sample if there are more.
        seed: Seed of the sample.

    Returns:
        One row per (layer, example, pos), with `word`, `tag`, `factor` and `code`. `example` is the index of the sentence,
        and `pos` is the position of the word's last token in it.

    Raises:
        EmbspaceError: If the word does not occur, or the dictionary does not have the factor.

    Example:
        >>> sentences = [[("w2", "pp"), ("w9", "vb")], [("w3", "at"), ("w9", "nn")]]
        >>> sense_codes(Factors(torch.eye(32), l1=0.01), model, sentences, "w9", factor=3, layers=[0])["tag"].tolist()
        ['vb', 'nn']

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §4. https://arxiv.org/abs/2103.15949
    """
    factor = check_integer("factor", factor, minimum=0, maximum=factors.n_factors - 1)
    positions = sample_positions(sentences, {word.lower()}, at_most, check_integer("seed", seed, minimum=0))
    if not len(positions[word.lower()]):
        raise errors.word_not_in_sentences(word)
    found = occurrences_of(model, sentences, positions, chosen_layers(model, layers))[word.lower()]
    keys = {"word": word.lower(), "tag": found.tags, "factor": factor, "example": found.sentence, "pos": found.pos}
    codes = {layer: factors.encode(states)[:, factor] for layer, states in found.states.items()}
    frame = tidy(CODES, [keys | {"layer": layer, "code": values} for layer, values in codes.items()])
    return frame.sort_values(["layer", "example", "pos"], kind="stable", ignore_index=True)


def _split(
    occurrences: Occurrences, groups: Sequence[Hashable] | None, held_out: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the training part and of the held-out part; the rows of one group are in the same part."""
    n = len(occurrences.tags)
    names = [int(row) for row in range(n)] if groups is None else [groups[i] for i in occurrences.sentence]
    codes, distinct = pd.factorize(np.array(names, dtype=object))
    order = np.random.default_rng([seed, n]).permutation(len(distinct))
    place = np.empty(len(distinct), dtype=np.int64)
    place[order] = np.arange(len(distinct))
    rows = np.argsort(place[codes], kind="stable")
    n_test = round(held_out * n)
    while 0 < n_test < n and codes[rows[n_test - 1]] == codes[rows[n_test]]:
        n_test += 1  # the whole group is held out
    return rows[n_test:], rows[:n_test]


def _train(
    train_tagger: Callable[[list[Sentence]], Tagger],
    sentences: Sequence[Sentence],
    occurrences: dict[str, Occurrences],
    splits: dict[str, tuple[np.ndarray, np.ndarray]],
    groups: Sequence[Hashable] | None,
) -> Tagger:
    """A tagger that was trained on the sentences of groups without held-out occurrences."""
    names = range(len(sentences)) if groups is None else groups
    held_out = {names[i] for word, (_, test) in splits.items() for i in occurrences[word].sentence[test]}
    return train_tagger([sentence for name, sentence in zip(names, sentences) if name not in held_out])


def _predict_by_tagger(
    tag: Tagger, sentences: Sequence[Sentence], occurrences: Occurrences, test: np.ndarray, sense: set[str]
) -> np.ndarray:
    """Whether the tagger gives each held-out occurrence a tag of the sense."""
    places = zip(occurrences.sentence[test].tolist(), occurrences.word_position[test].tolist())
    return np.array([tag([word for word, _ in sentences[index]])[position] in sense for index, position in places])


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


def _predict_by_code(
    factors: Factors,
    states: dict[int, Tensor],
    by_factor: _Prediction,
    truth: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
) -> _Prediction:
    """Predict by logistic regression on the code of the factor that was selected, in its layer."""
    from sklearn.linear_model import LogisticRegression

    factor, layer, _ = by_factor
    code = factors.encode(states[layer])[:, [factor]].cpu().numpy()
    code = code / max(float(code[train].std()), 1e-9)
    return _Prediction(factor, layer, LogisticRegression().fit(code[train], truth[train]).predict(code[test]))


def _predict_by_state(states: dict[int, Tensor], truth: np.ndarray, train: np.ndarray, test: np.ndarray) -> _Prediction:
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
