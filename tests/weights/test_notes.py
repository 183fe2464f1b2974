"""Notes on weights: the operations between a weight and its effect that no weight contains."""

import pytest
import zoo

from embspace_lens import EmbeddingLens
from embspace_lens.weights.effective import Weights

LLAMA4 = zoo._TABLE["llama4_text"][2]
MINISTRAL3 = dict(
    head_dim=8,
    rope_parameters=dict(
        rope_type="yarn", rope_theta=1e4, factor=2.0, original_max_position_embeddings=8, llama_4_scaling_beta=0.1
    ),
)
# Name of a zoo row, changed settings, the weight, its note.
NOTES = [
    ("qwen3", {}, "W_Q", "queries and keys are normalised before their product; lens.qk includes it"),
    ("olmo2", {}, "W_K", "queries and keys are normalised before their product; lens.qk includes it"),
    ("olmo", dict(clip_qkv=0.5), "W_Q", "queries, keys and values are clipped to ±0.5, which no reading includes"),
    ("olmo", dict(clip_qkv=0.5), "W_V", "queries, keys and values are clipped to ±0.5, which no reading includes"),
    ("mpt", dict(attn_config=dict(clip_qkv=8.0)), "W_K", "queries, keys and values are clipped to ±8"),
    ("mpt", dict(attn_config=dict(softmax_scale=0.2)), "W_Q", "scores x 0.2 before the softmax, not 1/√d_head"),
    ("granite", {}, "W_Q", "scores x 0.3 before the softmax, not 1/√d_head"),
    ("gpt_neo", {}, "W_Q", "scores x 1 before the softmax, not 1/√d_head"),
    ("gemma4_text", {}, "W_Q", "scores x 1 before the softmax, not 1/√d_head"),
    ("llama4_text", dict(no_rope_layers=[1, 0]), "W_Q", "blocks without rotary positions: 1"),
    ("llama4_text", dict(no_rope_layers=[1, 0]), "W_Q", "in these blocks queries are multiplied by a factor that grows"),
    ("smollm3", dict(no_rope_layers=[0, 1]), "W_K", "blocks without rotary positions: 0"),
    ("ministral3", MINISTRAL3, "W_Q", "queries are multiplied by a factor that grows with their position"),
    ("bert", {}, "W_U", "mlm_head (a dense layer, an activation and a norm) precedes it"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "weight", "note"), NOTES)
def test_operations_outside_the_weights_are_noted(name, settings, weight, note):
    config, model, defaults = zoo._TABLE[name][:3]
    lens = EmbeddingLens(zoo.boot(zoo._build(name, config, model, defaults | settings)))
    notes = lens.components().query("weight == @weight")["note"]
    assert len(notes) and notes.str.contains(note, regex=False).all()


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "native_rms_gqa", "native_ln"])
def test_plain_attention_has_no_notes(tiny, name):
    notes = Weights(tiny(name) if name in zoo.ZOO else zoo.NATIVE[name]()).notes()
    assert (notes["W_Q"], notes["W_K"], notes["W_V"]) == ("", "", "")
