"""Models to test on, built from configurations: nothing is downloaded."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import zoo

from embspace_lens import EmbeddingLens, demo


@pytest.fixture(autouse=True)
def seeded():
    """Tests neither see nor leave a random state."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def tiny():
    """Tiny bridges by architecture, each booted once; tests must not change them."""
    booted = {}

    def get(name):
        if name not in booted:
            booted[name] = zoo.boot(zoo.ZOO[name]())
        return booted[name]

    return get


@pytest.fixture(scope="session")
def lens(tiny):
    return EmbeddingLens(tiny("gpt2"))


@pytest.fixture(scope="session")
def moe_lens(tiny):
    return EmbeddingLens(tiny("mixtral"))


@pytest.fixture(scope="session")
def demo_lens():
    """The first demo model as the tutorials read it."""
    return EmbeddingLens(demo.load("reviews-small-0"), vocabulary=demo.frequent_words, score="cosine")
