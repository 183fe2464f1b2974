"""Models to test on, built from configurations: nothing is downloaded."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
# TransformerLens would install torchvision, and with it another torch, when it boots models with images.
os.environ |= {"PIP_NO_INDEX": "1", "PIP_QUIET": "3", "UV_OFFLINE": "1"}
# One thread for each process, also for those that tests start: threads of parallel workers slow each other down.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
import zoo

from embspace_lens import EmbeddingLens, demo

torch.set_num_threads(1)

# The architectures of `make test`: together they cover every relevant branch of weights/. `make test-full` runs all.
CORE = {
    "gpt2",  # LayerNorm, learned positions
    "gpt_neo",  # local attention windows, unscaled scores
    "gptj",  # parallel block, rotary pairs side by side
    "bloom",  # a norm after the embedding, ALiBi, an MLP that adds the residual stream itself
    "bert",  # bidirectional, norms after the residual sum, a head before the unembedding
    "opt_350m",  # a projection between the embedding and the residual stream
    "llama",  # RMSNorm, gated MLP, grouped key/value heads
    "gemma2",  # gains of 1 + weight, norms before and after a sublayer, soft caps
    "gemma4_text",  # the size of a head depends on the block
    "olmo2",  # norms only after the sublayers, norms of queries and keys over all heads
    "granite",  # multipliers of embedding, scores, residual stream and logits
    "qwen3",  # a norm of the queries and keys of each head
    "cohere2",  # rotary positions only in blocks with a sliding window; scaled logits
    "mixtral",  # experts
    "llama4_text",  # experts in every second block, in a different memory layout
    "qwen3_next",  # linear attention, a doubled query projection, a shared expert
    "deepseek_v2",  # multi-head latent attention
    "falcon_40b",  # fused weights that the host splits incorrectly
    "modernbert_decoder",  # W_in and W_gate in one matrix
    "t5",  # an encoder-decoder model
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests whose parameters name an architecture outside CORE as `full`."""
    other_architectures = zoo.ZOO.keys() - CORE
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and other_architectures & set(strings_in(callspec.params.values())):
            item.add_marker(pytest.mark.full)


def strings_in(values: Iterable[Any]) -> Iterator[str]:
    """All strings among parameters, also inside tuples and lists."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, tuple | list):
            yield from strings_in(value)


@pytest.fixture(autouse=True)
def seeded():
    """Each test starts from seed 0 and leaves the random state as it was."""
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


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """What commands keep on disk, outside the user's folder of caches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBSPACE_LENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
