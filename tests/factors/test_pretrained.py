"""The factors of a demo model, and texts that it samples."""

import pytest
import torch
import zoo

from embspace_lens import EmbspaceError, demo
from embspace_lens.factors import demo_factors
from embspace_lens.forward import sample_texts
from embspace_lens.forward.states import hidden_states

needs_demo = pytest.mark.skipif(
    "reviews-small-0" not in demo.names(), reason="the demo models are not in this checkout"
)


@needs_demo
def test_sampled_texts_depend_only_on_the_seed():
    model = demo.load("reviews-small-0")
    texts = sample_texts(model, n=2, n_tokens=8, seed=3)
    assert 1 <= len(texts) <= 2 and all(1 <= len(model.tokenizer(text).input_ids) <= 12 for text in texts)
    assert texts == sample_texts(model, n=2, n_tokens=8, seed=3) != sample_texts(model, n=2, n_tokens=8, seed=4)
    state = torch.get_rng_state()
    sample_texts(model, n=1, n_tokens=2)
    assert torch.equal(state, torch.get_rng_state()) and not any("<|" in text for text in texts)
    with pytest.raises(EmbspaceError, match="Sampling needs a causal model"):
        sample_texts(zoo.boot(zoo.ZOO["bert"]()))


@needs_demo
def test_demo_factors_explain_new_hidden_states():
    factors = demo_factors()
    assert repr(factors) == "Factors(1000 factors, d_model 192, l1 2)"
    x = torch.cat([s for part in hidden_states(demo.load("reviews-small-0"), ["A wonderful film, with a fine cast."], [0, 1, 2, 3]) for s in part.states.values()])  # fmt: skip
    unexplained = (x - factors.decode(factors.encode(x))).square().sum() / (x - x.mean(0)).square().sum()
    assert unexplained < 0.3
