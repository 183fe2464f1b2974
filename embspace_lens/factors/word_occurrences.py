"""The occurrences of words in tagged sentences: their tags, their sentences and the hidden states at their last tokens."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from .. import errors
from .marked_tokens import states_at

Sentence = Sequence[tuple[str, str]]
Words = Mapping[str, Sequence[str]] | Sequence[str] | None


class Occurrences(NamedTuple):
    """The occurrences of one word, one row per occurrence.

    Attributes:
        sentence: The index of its sentence.
        word_position: Its position in the sentence, in words.
        pos: The position of its last token in the text of the sentence.
        tags: Its tags.
        states: The hidden states at its last token, by layer.
    """

    sentence: np.ndarray
    word_position: np.ndarray
    pos: np.ndarray
    tags: np.ndarray
    states: dict[int, Tensor]


def tags_by_word(sentences: Sequence[Sentence], words: Words, at_least: int) -> dict[str, set[str]]:
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


def sample_positions(sentences: Sequence[Sentence], words: set[str], at_most: int, seed: int) -> dict[str, np.ndarray]:
    """The occurrences of each word as rows (sentence, position in it); a random sample of `at_most`."""
    occurrences: dict[str, list[tuple[int, int]]] = {word: [] for word in words}
    for index, sentence in enumerate(sentences):
        for position, (word, _) in enumerate(sentence):
            if word.lower() in words:
                occurrences[word.lower()].append((index, position))
    rng = np.random.default_rng(seed)
    return {word: rng.permutation(np.array(occurrences[word]).reshape(-1, 2))[:at_most] for word in sorted(words)}


def occurrences_of(
    model: Any, sentences: Sequence[Sentence], positions: Mapping[str, np.ndarray], layers: Sequence[int]
) -> dict[str, Occurrences]:
    """By word, its occurrences at these positions with their tags and hidden states; words are joined with spaces."""
    wanted = {(int(index), int(position)) for rows in positions.values() for index, position in rows}
    chosen = sorted({index for index, _ in wanted})
    texts = [" ".join(word for word, _ in sentences[index]) for index in chosen]
    targets, found = [], []  # (text, character at which the word ends); (sentence, position, word, tag)
    for example, index in enumerate(chosen):
        word_end = -1
        for position, (word, tag) in enumerate(sentences[index]):
            word_end += 1 + len(word)
            if (index, position) in wanted:
                targets.append((example, word_end))
                found.append((index, position, word.lower(), tag))
    at = states_at(model, texts, targets, layers, unit="sentence")
    sentence, position, word, tag = (
        np.array([found[target][i] for target in at.target], dtype=dtype)
        for i, dtype in enumerate((int, int, object, object))
    )
    occurrences = {}
    for name in positions:
        rows = np.flatnonzero(word == name)
        states = {layer: hidden[rows] for layer, hidden in at.states.items()}
        occurrences[name] = Occurrences(sentence[rows], position[rows], at.pos[rows], tag[rows], states)
    return occurrences
