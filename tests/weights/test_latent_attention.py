"""Multi-head latent attention: the part of queries and keys without rotary positions, and values, as the forward pass computes them."""

from typing import Any

import pandas as pd
import pytest
import torch
import zoo
from oracle import LATENT
from oracle_cases import TOKENS, activations, error, fresh, shared, skipping
from torch import Tensor

from embspace_lens import EmbeddingLens, EmbspaceError, circuits, difference
from embspace_lens.checkpoints.checkpoint import Checkpoint
from embspace_lens.interventions import ablation_hooks
from embspace_lens.weights import latent_attention
from embspace_lens.weights.attention_scores import attention_scale
from embspace_lens.weights.booting import boot
from embspace_lens.weights.effective import Weights
from embspace_lens.weights.hook_points import head_hook, pattern_hook
from embspace_lens.weights.offloading import boot_offloaded
from embspace_lens.weights.query_key_norms import normalized_circuits

D_KEY, D_VALUE, D_ROTARY, RANK = 8, 6, 4, 16
MODULES = ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")


def recorded(hf_model: Any) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """The inputs and outputs of the linear layers of every attention in one forward pass of the Hugging Face model."""
    inputs, outputs = ([{} for _ in hf_model.model.layers] for _ in range(2))
    for layer, block in enumerate(hf_model.model.layers):
        for name in (*MODULES, "input_layernorm"):
            module = getattr(block if name == "input_layernorm" else block.self_attn, name, None)
            if module is not None:

                def record(module, args, output, layer=layer, name=name):
                    shape = (*TOKENS.shape, -1)  # the latent vector is one head with dimensions of its own
                    inputs[layer][name], outputs[layer][name] = (x.double().reshape(shape) for x in (args[0], output))

                module.register_forward_hook(record)
    with torch.no_grad():
        hf_model(TOKENS)
    return inputs, outputs


def rms(x: Tensor, eps: float = 1e-6) -> Tensor:
    """The scale by which an RMSNorm divides."""
    return (x.square().mean(dim=-1, keepdim=True) + eps).sqrt()


def by_head(x: Tensor) -> Tensor:
    """[batch, pos, heads · width] → [batch, heads, pos, width]."""
    return x.unflatten(-1, (zoo.N_HEADS, -1)).transpose(1, 2)


@pytest.mark.parametrize("name", skipping(list(LATENT)))
def test_queries_keys_and_values_are_those_of_the_hugging_face_modules(name):
    """Up to the scale of the norm between the factors, which differs from token to token."""
    hf_model = zoo.ZOO[name]()
    inputs, outputs = recorded(hf_model)
    weights = Weights(zoo.boot(hf_model))
    for layer in range(weights.n_layers):
        x = inputs[layer]["input_layernorm"]
        x = x / rms(x, hf_model.config.rms_norm_eps)
        out = outputs[layer]
        q_scale = rms(out["q_a_proj"])[:, None] if "q_a_proj" in out else 1.0
        kv_scale = rms(out["kv_a_proj_with_mqa"][..., :RANK])[:, None]
        queries = by_head(out.get("q_b_proj", out.get("q_proj")))[..., :D_KEY]
        keys, values = by_head(out["kv_b_proj"]).split([D_KEY, D_VALUE], dim=-1)
        for weight, expected, scale in (("W_Q", queries, q_scale), ("W_K", keys, kv_scale), ("W_V", values, kv_scale)):
            read = getattr(weights, weight)(layer).double()
            assert error(x[:, None] @ read / scale, expected) <= 1e-5, (layer, weight)
        written = (by_head(inputs[layer]["o_proj"]) @ weights.W_O(layer).double()).sum(dim=1)
        assert error(written, outputs[layer]["o_proj"]) <= 1e-5, layer


@pytest.mark.parametrize("name", skipping(list(LATENT)))
def test_scores_at_distance_zero_are_the_sum_of_both_parts(name):
    """Where a token attends to itself, rotations cancel: scores are W_QK's plus the product of the rotary dimensions."""
    cache, weights = activations(name), Weights(shared(name).model)
    for layer in range(weights.n_layers):
        prefix = f"blocks.{layer}."
        x = cache[f"{prefix}hook_in"]
        x = (x / rms(x, weights.host.eps))[:, None]
        q, k = x @ weights.W_Q(layer).double(), x @ weights.W_K(layer).double()
        latent = cache[f"{prefix}attn.kv_a_proj_with_mqa.hook_out"]
        q_name = f"{prefix}attn.q_a_proj.hook_out"
        q_scale = rms(cache[q_name])[:, None] if q_name in cache else 1.0
        kv_scale = rms(latent[..., :RANK])[:, None]
        queries = cache.get(f"{prefix}attn.q_b_proj.hook_out", cache.get(f"{prefix}attn.q_proj.hook_out"))
        assert queries is not None
        rotary = by_head(queries)[..., D_KEY:] * latent[:, None, :, RANK:]
        scores = ((q * k / q_scale / kv_scale).sum(dim=-1) + rotary.sum(dim=-1)) * attention_scale(weights, layer, 1)
        expected = cache[f"{prefix}attn.hook_attn_scores"].diagonal(dim1=-2, dim2=-1)
        assert error(scores, expected) <= 1e-5, layer


@pytest.mark.parametrize("name", skipping(list(LATENT)))
def test_attention_outputs_are_weighted_sums_of_the_ov_circuit(name):
    cache, weights = activations(name), Weights(shared(name).model)
    for layer in range(weights.n_layers):
        prefix = f"blocks.{layer}."
        x = cache[f"{prefix}hook_in"]
        x = x / rms(x, weights.host.eps) / rms(cache[f"{prefix}attn.kv_a_proj_with_mqa.hook_out"][..., :RANK])
        moved = x[:, None] @ weights.W_OV(layer).AB.double()
        written = (cache[f"{prefix}attn.hook_pattern"] @ moved).sum(dim=1)
        assert error(written, cache[f"{prefix}attn.o.hook_out"]) <= 1e-5, layer


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v2_lite"])
def test_pairs_are_the_best_of_all_pairs(name):
    case = shared(name)
    table = EmbeddingLens(case.model).qk(layer=1, k=3)
    embedding, heads = case.folded.W_E, case.folded.attention[1]
    for head, rows in table.groupby("head"):
        scores = embedding @ heads["W_Q"][head] @ heads["W_K"][head].T @ embedding.T
        best = scores.flatten().topk(3)
        pairs = rows["dest_token_index"] * zoo.D_VOCAB + rows["src_token_index"]
        assert pairs.tolist() == best.indices.tolist()
        assert rows["score"].tolist() == pytest.approx(best.values.tolist(), rel=1e-4)


def test_every_reading_allows_values_of_another_size_than_keys():
    lens = EmbeddingLens(shared("deepseek_v2").model)
    columns = lens.subheads(k=1).groupby(["layer", "head", "weight"])["subhead"].nunique().unstack()
    assert columns.drop_duplicates().to_dict("records") == [
        {"W_K": D_KEY, "W_O": D_VALUE, "W_Q": D_KEY, "W_V": D_VALUE}
    ]
    found = lens.search(5, weight=["W_Q", "W_V", "W_OV", "W_QK"], k=200)
    assert found.query("weight == 'W_Q'")["subhead"].max() == D_KEY - 1
    assert found.query("weight == 'W_V'")["subhead"].max() == D_VALUE - 1
    assert found["weight"].nunique() == 4
    assert lens.singular(weight="W_OV", k=1)["component"].nunique() <= D_VALUE
    statistics = circuits.head_statistics(lens)
    assert len(statistics) == zoo.N_LAYERS * zoo.N_HEADS
    assert len(lens.read(lens.subheads(layer=0, head=1, weight="W_V", k=1)))


@pytest.mark.parametrize("name", skipping(list(LATENT)))
def test_distances_raise_an_error(name):
    with pytest.raises(EmbspaceError) as raised:
        EmbeddingLens(shared(name).model).qk(distance=1)
    assert str(raised.value) == (
        "A distance in zoo is not supported: the rotary dimensions of multi-head latent attention are not read. "
        "Omit the distance."
    )


@pytest.mark.parametrize("name", skipping(list(LATENT)))
def test_norms_between_factors_are_not_norms_of_heads(name):
    weights = Weights(shared(name).model)
    assert not any(weights.host.has_head_norms(block) for block in weights.host.blocks)
    assert normalized_circuits(weights, 0) == []


def test_every_head_has_its_own_keys_and_values():
    """The configuration may have fewer key-value heads, which the modules ignore."""
    config, model, settings = zoo._TABLE["deepseek_v3"][:3]
    weights = Weights(zoo.boot(zoo._build("deepseek_v3", config, model, settings | dict(num_key_value_heads=2))))
    assert weights.n_key_value_heads == zoo.N_HEADS
    assert not torch.equal(weights.W_K(0)[0], weights.W_K(0)[1])


def test_components_state_the_norms_the_scale_and_the_missing_part():
    case = fresh("deepseek_v2", dtype=torch.bfloat16)
    table = EmbeddingLens(case.model).components().query("layer == 1").set_index("weight")
    assert table.loc[["W_Q", "W_K", "W_V"], "columns"].tolist() == [D_KEY, D_KEY, D_VALUE]
    assert table.loc[["W_Q", "W_K", "W_V"], "n_heads"].tolist() == [zoo.N_HEADS] * 3
    assert set(table["dtype"]) == {"bfloat16"}
    assert table.at["W_Q", "folded"] == "ln1 gain + q_a_layernorm gain"
    assert table.at["W_V", "folded"] == "ln1 gain + kv_a_layernorm gain"
    assert table.at["W_O", "folded"] == ""
    factors = "product of two factors; {} between them also divides by a scale of each token"
    rotary = "; a part with rotary positions is added to the scores; it is not read"
    scale = "; scores x 0.2887 before the softmax, not 1/√d_head"  # 1/√(8 + 4), and d_head is 8
    assert table.at["W_Q", "note"] == factors.format("q_a_layernorm") + rotary + scale
    assert table.at["W_K", "note"] == factors.format("kv_a_layernorm") + rotary + scale
    assert table.at["W_V", "note"] == factors.format("kv_a_layernorm")


def test_components_without_a_query_latent_have_no_inner_norm():
    table = EmbeddingLens(shared("deepseek_v2_lite").model).components().query("layer == 1").set_index("weight")
    assert table.at["W_Q", "folded"] == "ln1 gain"
    assert table.at["W_Q", "note"].startswith("a part with rotary positions is added to the scores")


def test_an_indexer_is_noted():
    notes = Weights(shared("glm_moe_dsa").model).notes()
    assert "an indexer selects the keys of each query" in notes["W_Q"]


def test_heads_at_hook_points_raise_an_error():
    model = shared("deepseek_v2").model
    weights = Weights(model)
    for weight in ("W_Q", "W_K", "W_V", "W_O"):
        with pytest.raises(EmbspaceError, match="do not have the shapes of its heads"):
            head_hook(weights, 0, weight)
    with pytest.raises(EmbspaceError, match="blocks.0.attn.hook_z of zoo is not supported"):
        ablation_hooks(pd.DataFrame({"layer": [0], "head": [1]}), model=model)
    assert activations("deepseek_v2")[pattern_hook(weights, 0)].shape[1] == zoo.N_HEADS


def test_an_unknown_layout_raises_an_error_and_the_rest_is_read(monkeypatch):
    monkeypatch.setattr(latent_attention, "LATENT_ATTENTION", set())
    lens = EmbeddingLens(shared("deepseek_v2").model)
    with pytest.raises(EmbspaceError) as raised:
        lens.ov()
    assert str(raised.value) == (
        "W_V of block 0 of zoo is not supported: the layout of its multi-head latent attention (DeepseekV2Attention) is "
        "unknown."
    )
    table = lens.components()
    unread = table[table["note"].str.contains("layout of its multi-head latent attention")]
    assert sorted(set(unread["weight"])) == ["W_K", "W_O", "W_Q", "W_V"]
    assert (table.query("weight == 'W_in'")["norm"] > 0).all()


def test_a_changed_gain_between_the_factors_changes_a_block():
    before, after = fresh("deepseek_v2").model, fresh("deepseek_v2").model
    gain = dict(after.named_parameters())
    name = next(key for key in gain if "layers.1." in key and "kv_a_layernorm" in key)
    with torch.no_grad():
        gain[name].mul_(1.5)
    weights = difference(EmbeddingLens(after), EmbeddingLens(before)).weights
    assert weights.unchanged_layers() == [0]
    assert torch.allclose(weights.W_K(1), Weights(before).W_K(1) * 0.5, atol=1e-5)


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v2_lite", "falcon_40b"])
def test_weights_in_a_checkpoint_equal_those_in_memory(name, tmp_path):
    zoo.ZOO[name]().save_pretrained(tmp_path, max_shard_size="20KB")
    zoo.tokenizer().save_pretrained(tmp_path)
    in_memory = EmbeddingLens(boot(str(tmp_path)))
    offloaded = EmbeddingLens(boot_offloaded(str(tmp_path), Checkpoint.of_folder(tmp_path)))
    for read in (lambda lens: lens.components(), lambda lens: lens.subheads(k=1), lambda lens: lens.qk(k=1)):
        pd.testing.assert_frame_equal(read(in_memory), read(offloaded))
