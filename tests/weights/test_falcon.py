"""Falcon's new decoder architecture, whose fused queries, keys and values TransformerLens splits in the wrong order."""

import pandas as pd
import pytest
import torch
import zoo
from oracle_cases import TOKENS, check_all, error, shared

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.checkpoints.checkpoint import Checkpoint
from embspace_lens.interventions import ablation_hooks
from embspace_lens.weights.booting import boot
from embspace_lens.weights.effective import Weights
from embspace_lens.weights.hook_points import head_hook, pattern_hook
from embspace_lens.weights.offloading import boot_offloaded


@pytest.mark.parametrize("n_groups", [1, 2, 4])
def test_queries_keys_and_values_are_those_of_the_hugging_face_module(n_groups):
    config, model, settings = zoo._TABLE["falcon_40b"][:3]
    hf_model = zoo._build("falcon_40b", config, model, settings | dict(num_kv_heads=n_groups))
    inputs, splits = {}, {}
    for layer, block in enumerate(hf_model.transformer.h):

        def record(module, args, output, layer=layer, attention=block.self_attention):
            inputs[layer] = args[0].double()[:, None]
            splits[layer] = [part.double().transpose(1, 2) for part in attention._split_heads(output)]

        block.self_attention.query_key_value.register_forward_hook(record)
    with torch.no_grad():
        hf_model(TOKENS)
    stored = Weights(zoo.boot(hf_model), fold_ln=False)
    for layer, expected in splits.items():
        for name, part in zip(("W_Q", "W_K", "W_V"), expected):
            assert error(inputs[layer] @ getattr(stored, name)(layer).double(), part) <= 1e-5, (layer, name)


@pytest.mark.parametrize("distance", [0, 1, 5])
def test_scores_at_a_distance_are_those_of_the_hugging_face_model(distance):
    hf_model = zoo.ZOO["falcon_40b"]()
    hf_model.set_attn_implementation("eager")
    inputs = []
    for block in hf_model.transformer.h:
        block.self_attention.query_key_value.register_forward_pre_hook(lambda _, args: inputs.append(args[0].double()))
    with torch.no_grad():
        patterns = hf_model(TOKENS, output_attentions=True).attentions
    stored = Weights(zoo.boot(hf_model), fold_ln=False)
    for layer, pattern in enumerate(patterns):
        x, scores = inputs[layer][:, None], []
        for back in (distance, 0):
            form = stored.W_QK(layer, back).AB.double()
            query, key = x[:, :, distance:], x[:, :, distance - back : x.shape[2] - back]
            scores.append((query @ form * key).sum(dim=-1) / 8**0.5)  # d_head is 8
        log_pattern = pattern.double().log()
        diagonals = [log_pattern.diagonal(-back, 2, 3)[..., distance - back :] for back in (distance, 0)]
        assert (scores[0] - scores[1] - diagonals[0] + diagonals[1]).abs().max() <= 1e-4, layer


@pytest.mark.parametrize("is_offloaded", [False, True])
def test_models_with_the_default_of_multi_query_are_loaded(tmp_path, is_offloaded):
    """The default is True, which transformers ignores in the new decoder architecture."""
    config, model, settings = zoo._TABLE["falcon_40b"][:3]
    hf_model = zoo._build("falcon_40b", config, model, settings | dict(multi_query=True))
    hf_model.save_pretrained(tmp_path)
    zoo.tokenizer().save_pretrained(tmp_path)
    folder = str(tmp_path)
    loaded = boot_offloaded(folder, Checkpoint.of_folder(tmp_path)) if is_offloaded else boot(folder)
    check_all(Weights(loaded), shared("falcon_40b").folded)


def test_circuits_are_read_and_the_wrong_activations_are_noted():
    lens = EmbeddingLens(shared("falcon_40b").model)
    assert len(lens.ov(k=1)) == len(lens.qk(k=1)) == zoo.N_LAYERS * zoo.N_HEADS
    table = lens.components()
    wrong = table["note"].str.contains("TransformerLens splits this weight incorrectly")
    assert sorted(set(table["weight"][wrong])) == ["W_K", "W_Q", "W_V"]


def test_hook_points_of_wrong_activations_raise_an_error():
    model = shared("falcon_40b").model
    weights = Weights(model)
    for read in (lambda: head_hook(weights, 0), lambda: head_hook(weights, 0, "W_Q"), lambda: pattern_hook(weights, 1)):
        with pytest.raises(EmbspaceError, match="new_decoder_architecture.*, so that its activations are wrong"):
            read()
    with pytest.raises(EmbspaceError, match="blocks.0.attn.hook_z of zoo is not supported"):
        ablation_hooks(pd.DataFrame({"layer": [0], "head": [1]}), model=model)
