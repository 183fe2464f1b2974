"""Forward passes: activations at hook points, and forward passes that resume from a given residual stream."""

import pytest
import torch
import zoo

from embspace_lens import EmbspaceError
from embspace_lens.forward.batches import token_batches
from embspace_lens.forward.runs import collect_activations, logits, residual, resume

TEXTS = ["w2 w3 w4", "w5", "w6 w7 w8 w9 w10 w11 w12"]
FAMILIES = ["gpt2", "llama", "gemma2", "gpt_neox", "mixtral", "bloom", "falcon_7b", "cohere2"]


def available(name):
    return name in zoo.ZOO and name not in zoo.UNAVAILABLE and name not in zoo.NO_FORWARD


@pytest.fixture(scope="module")
def gpt2(tiny):
    return tiny("gpt2")


def test_forward_pass_stops_early_and_leaves_no_hooks(gpt2):
    (batch,) = token_batches(gpt2, TEXTS[:1])
    calls = []
    later_hook = [("blocks.1.hook_resid_post", lambda value, hook: calls.append(1))]
    activations = collect_activations(gpt2, batch, ["blocks.0.mlp.hook_post"], hooks=later_hook)
    assert list(activations) == ["blocks.0.mlp.hook_post"] and not calls
    assert not any(point.fwd_hooks for point in gpt2.hook_dict.values())
    _, cache = gpt2.run_with_cache(batch.tokens)
    torch.testing.assert_close(activations["blocks.0.mlp.hook_post"], cache["blocks.0.mlp.hook_post"])


def test_unknown_hook_points_raise_an_error(gpt2):
    (batch,) = token_batches(gpt2, TEXTS[:1])
    with pytest.raises(EmbspaceError, match="no such hook point|No activation at"):
        collect_activations(gpt2, batch, ["blocks.0.hook_nothing"])


def test_logits_are_those_of_the_model_with_interventions(gpt2):
    (batch,) = token_batches(gpt2, TEXTS[:1])
    torch.testing.assert_close(logits(gpt2, batch), gpt2(batch.tokens))
    ablated = logits(gpt2, batch, hooks=[("blocks.0.mlp.hook_post", lambda value, hook: 0 * value)])
    assert (ablated - gpt2(batch.tokens)).abs().max() > 0.01


@pytest.mark.parametrize("name", [name for name in FAMILIES if available(name)])
@pytest.mark.parametrize("layer", [0, 1])
def test_resuming_from_an_unchanged_state_gives_the_same_result(tiny, name, layer):
    model = tiny(name)
    (batch,) = token_batches(model, TEXTS)
    own_state = residual(model, batch, layer - 1)
    final_state, _ = resume(model, batch, own_state, layer, names=[f"blocks.{layer}.hook_resid_pre"])
    expected = residual(model, batch, zoo.N_LAYERS - 1)
    torch.testing.assert_close(final_state[batch.mask], expected[batch.mask], atol=1e-4, rtol=1e-4)
    changed_state, _ = resume(model, batch, own_state + torch.randn_like(own_state), layer)
    assert (changed_state[batch.mask] - expected[batch.mask]).abs().max() > 0.01
