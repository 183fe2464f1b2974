"""Models for the tests of circuits."""

import pytest

from embspace_lens import EmbeddingLens, demo


@pytest.fixture(scope="session")
def frequent_lens():
    """The first demo model, read over its frequent words with inner products."""
    return EmbeddingLens(demo.load("reviews-small-0"), vocabulary=demo.frequent_words)
