"""The output of the first MLP, called alone, equals its output inside the model, in every architecture and state."""

from contextlib import ExitStack

import pytest
import torch
import zoo

from embspace_lens import EmbspaceError
from embspace_lens.weights.effective import Weights
from embspace_lens.weights.first_mlp import _norm_modules, first_mlp_output
from embspace_lens.weights.host import Host
from embspace_lens.weights.modules import unwrap

# One of each kind: norms before the MLP, after it, both, neither; parallel; fused; mixtures; MLPs without a separate module.
FAMILIES = [
    "gpt2", "openai_gpt", "gptj", "bloom", "mpt", "opt", "opt_350m", "xglm", "llama", "gemma2", "glm4", "olmo2", "phi3",
    "falcon_7b", "mixtral", "qwen2_moe", "gpt_oss", "modernbert_decoder", "native_ln", "native_no_norm", "ht_gpt2",
    "ht_gqa_gated_rms", "ht_parallel", "ht_moe",
]  # fmt: skip
ADDS = ("bloom", "mpt")  # the MLP module adds the residual stream
MODELS = {**zoo.ZOO, **zoo.NATIVE, **zoo.HT_ZOO}
STATES = [(name, state) for name in FAMILIES for state in ("raw", "compat") if state == "raw" or name in zoo.ZOO]


def booted(name, state):
    if name not in MODELS:
        pytest.skip("only TransformerLens 3 has HookedTransformer")
    if name in zoo.UNAVAILABLE:
        pytest.skip(zoo.UNAVAILABLE[name])
    if name in zoo.NO_FORWARD:
        pytest.skip(zoo.NO_FORWARD[name])
    model = MODELS[name]()
    if name in zoo.ZOO:
        model = zoo.boot(model)
    return zoo.compat(model) if state == "compat" else model


@pytest.mark.parametrize(("name", "state"), STATES)
def test_output_equals_that_inside_the_model(name, state):
    model = booted(name, state)
    host = Host(model)
    before, after = _norm_modules(host, model.blocks[0]._modules)
    mlp = host.blocks[0].mlp
    output_projection = mlp._modules["out"] if host.is_bridge and unwrap(mlp) is unwrap(model.blocks[0]) else mlp
    input_module = mlp if isinstance(before, torch.nn.Identity) else before
    output_module = output_projection if isinstance(after, torch.nn.Identity) else after
    recorded = {}
    with ExitStack() as stack:

        def record(module, key, select):
            def hook(_, args, kwargs, out):
                recorded[key] = select([*args, *kwargs.values()], out)

            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)

        record(input_module, "in", lambda args, out: args[0])
        record(output_module, "out", lambda args, out: out[0] if isinstance(out, tuple) else out)
        if name in ADDS:
            record(mlp, "stream", lambda args, out: args[1])
        with torch.no_grad():
            model(torch.tensor([[3, 5, 6, 7, 9]]))
    expected = recorded["out"].reshape(-1, 32) - (recorded["stream"][0] if name in ADDS else 0)
    torch.testing.assert_close(
        first_mlp_output(Weights(model), recorded["in"].reshape(-1, 32)), expected, atol=2e-6, rtol=1e-5
    )


def test_hooks_of_the_model_are_unchanged(tiny):
    model = tiny("gpt2")
    before = [(name, len(point.fwd_hooks)) for name, point in model.hook_dict.items()]
    first_mlp_output(Weights(model), torch.randn(3, 32))
    assert [(name, len(point.fwd_hooks)) for name, point in model.hook_dict.items()] == before


@pytest.mark.parametrize("name", ["native_attn_only", "bert"])
def test_models_without_a_first_mlp_raise(name):
    model = booted(name, "raw")
    with pytest.raises(EmbspaceError, match=r"first_mlp=False"):
        first_mlp_output(Weights(model), torch.randn(3, 32))
