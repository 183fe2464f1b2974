"""A part-of-speech tagger, trained on tagged sentences: NLTK's averaged perceptron."""

import random
from collections.abc import Sequence
from importlib.util import find_spec

from .. import errors
from ..factors.word_occurrences import Sentence
from ..factors.word_senses import Tagger

N_ITERATIONS = 5  # NLTK's default


def has_tagger() -> bool:
    """Whether NLTK is installed."""
    return find_spec("nltk") is not None


def train_perceptron(sentences: Sequence[Sentence], *, n_iterations: int = N_ITERATIONS, seed: int = 0) -> Tagger:
    """Train the averaged perceptron tagger of NLTK on tagged sentences.

    Args:
        sentences: Each sentence is a sequence of (word, tag).
        n_iterations: How many passes over the sentences.
        seed: Seed of the order of the sentences.

    Returns:
        A function from the words of a sentence to their tags.

    Raises:
        EmbspaceError: If NLTK is not installed.

    References:
        Collins (2002), Discriminative training methods for hidden Markov models.
    """
    try:
        from nltk.tag.perceptron import PerceptronTagger  # pyright: ignore[reportMissingImports]
    except ImportError as reason:
        raise errors.missing_extra("nltk", "papers") from reason
    tagger = PerceptronTagger(load=False)
    state = random.getstate()  # NLTK shuffles with Python's global generator
    random.seed(seed)
    try:
        tagger.train([list(sentence) for sentence in sentences], nr_iter=n_iterations)
    finally:
        random.setstate(state)
    return lambda words: [tag for _, tag in tagger.tag(list(words))]
