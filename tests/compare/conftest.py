"""Fixtures of the tests of comparisons."""

import jaxtyping
import pytest
from model_pairs import lens_of

from embspace_lens import EmbeddingLens


@pytest.fixture(scope="module")
def two_lenses() -> tuple[EmbeddingLens, EmbeddingLens]:
    """Two unrelated models with gated MLPs and grouped heads."""
    return lens_of("llama"), lens_of("llama", 1)


@pytest.fixture(scope="module")
def recipient_and_donor() -> tuple[EmbeddingLens, EmbeddingLens]:
    """A recipient and a donor of different architectures."""
    return lens_of("llama"), lens_of("gpt2")


@pytest.fixture
def unchecked_types(monkeypatch):
    """Annotations are not checked, because the test gives arguments of wrong types."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
