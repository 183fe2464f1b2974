"""The names that examples in docstrings may use, and a seeded random state around each. Not part of the wheel."""

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, no_type_check

import numpy as np
import pandas as pd
import pytest
import torch
import zoo
from _pytest.doctest import DoctestItem

import embspace_lens
from embspace_lens import EmbeddingLens, demo

# In these modules `model`, `lens`, `other`, `tuned` and `head` are demo models, because the examples compare models.
# In all other modules `model` and `lens` are a tiny random GPT-2 of tests/zoo.py with the words "w2" to "w96".
COMPARING_MODULES = (
    "embspace_lens.compare.",
    "embspace_lens.demo.",
    "embspace_lens.report.",
    "embspace_lens.plots.alignment_maps",
)


@cache
def tiny_model() -> Any:
    """A random model, loaded once."""
    return zoo.boot(zoo.ZOO["gpt2"]())


@cache
def demo_lens(name: str) -> EmbeddingLens:
    """The lens of a demo model, loaded once."""
    return EmbeddingLens.from_pretrained(name)


def words(start: int) -> list[str]:
    """Forty words of the demo models' vocabulary."""
    strings = (string.strip() for string in demo_lens("reviews-small-0").vocabulary.array)
    return sorted({string for string in strings if string.isalpha()})[start : start + 40]


TINY: dict[str, Callable[[], Any]] = {
    "model": tiny_model,
    "lens": lambda: EmbeddingLens(tiny_model()),
}
DEMO: dict[str, Callable[[], Any]] = {
    "model": lambda: demo_lens("reviews-small-0").model,
    "lens": lambda: demo_lens("reviews-small-0"),
    "other": lambda: demo_lens("reviews-small-1"),
    "tuned": lambda: demo_lens("reviews-small-0-sentiment"),
    "head": lambda: demo.head("reviews-small-0-sentiment"),
    "positive": lambda: words(0),
    "negative": lambda: words(50),
}
ALWAYS: dict[str, Any] = {"np": np, "pd": pd, "torch": torch}


@pytest.fixture(autouse=True)
@no_type_check  # with the shape checker, pytest would not recognise the function as a generator
def names_of_examples(request: pytest.FixtureRequest, doctest_namespace: dict[str, Any]) -> Iterator[None]:
    """Supply the public names and the models that an example uses. Each model is loaded once, when it is first used."""
    if not isinstance(request.node, DoctestItem):
        yield
        return
    source = "\n".join(example.source for example in request.node.dtest.examples)
    used = set(re.findall(r"\b[A-Za-z_]\w*", source))
    module = request.node.dtest.globs["__name__"]
    makers = DEMO | ({} if module.startswith(COMPARING_MODULES) else TINY)
    doctest_namespace.clear()
    doctest_namespace.update(ALWAYS)
    doctest_namespace.update({name: getattr(embspace_lens, name) for name in embspace_lens.__all__ if name in used})
    doctest_namespace.update({name: make() for name, make in makers.items() if name in used})
    if used & {"tmp_path", "folder"}:
        tmp_path = request.getfixturevalue("tmp_path")
        doctest_namespace.update(tmp_path=tmp_path, folder=tmp_path / "folder")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
