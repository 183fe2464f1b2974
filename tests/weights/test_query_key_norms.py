"""Heads that normalise queries and keys: pair scores compared with the forward pass and with slow loops."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from reference import brute_normalized_scores
from torch import Tensor

from embspace_lens import EmbeddingLens, difference
from embspace_lens.errors import EmbspaceError
from embspace_lens.search.tiles import chunk_bytes
from embspace_lens.weights.modules import unwrap
from embspace_lens.weights.query_key_norms import normalized_circuits

TOKENS = torch.tensor([[5, 9, 11, 40, 7, 3, 88, 60]])
N = TOKENS.shape[1]

# Settings that the models of the zoo do not have.
LLAMA4: Any = zoo._TABLE["llama4_text"][2]
GLM4: Any = zoo._TABLE["glm4_moe"][2]
VARIANTS: dict[str, tuple[str, str, dict]] = {
    "stablelm_per_head": (  # a LayerNorm for each head, biases, a norm with a bias before attention
        "StableLmConfig", "StableLmForCausalLM", zoo.LLAMA | dict(qk_layernorm=True, use_qkv_bias=True),
    ),
    "cohere_per_head": ("CohereConfig", "CohereForCausalLM", zoo.LLAMA | dict(use_qk_norm=True)),
    "glm4_moe_bias": ("Glm4MoeConfig", "Glm4MoeForCausalLM", GLM4 | dict(attention_bias=True)),
    "llama4_no_rope": ("Llama4TextConfig", "Llama4ForCausalLM", LLAMA4 | dict(no_rope_layers=[0, 1])),
    "hunyuan_alpha": (
        "HunYuanDenseV1Config", "HunYuanDenseV1ForCausalLM",
        zoo.LLAMA | dict(head_dim=8, rope_parameters=dict(rope_type="dynamic", alpha=50.0, factor=1.0, rope_theta=1e4)),
    ),
    "olmo2_single_key": ("Olmo2Config", "Olmo2ForCausalLM", zoo.LLAMA | dict(num_key_value_heads=1)),
}  # fmt: skip
ROTARY = """
    qwen3 qwen3_moe gemma3_text olmo2 olmo3 olmoe flex_olmo apertus exaone4 glm4_moe minimax_m2 nanochat llama4_text
    stablelm_parallel stablelm_per_head cohere_per_head glm4_moe_bias llama4_no_rope olmo2_single_key
""".split()
ROTATED_FIRST = ["hunyuan_dense", "hunyuan_alpha"]  # gains multiply the rotated queries and keys
OTHERS = ["afmoe", "lfm2", "lfm2_moe", "qwen3_next", "qwen3_5", "olmo_hybrid", "gemma4_text", *ROTATED_FIRST]


def available(names: Iterable[str]) -> list[Any]:
    """Parameters of a test; `make test` runs one of the variants."""
    is_full = {name: name in VARIANTS and name != "stablelm_per_head" for name in names}
    return [
        pytest.param(name, marks=pytest.mark.full if is_full[name] else ())
        for name in names
        if name not in zoo.UNAVAILABLE
    ]


def boot(hf_model: Any) -> Any:
    return zoo.boot(hf_model)


@pytest.fixture(scope="module")
def model_of(tiny):
    """Tiny models of the zoo and of `VARIANTS`, each booted once."""
    booted: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in VARIANTS:
            return tiny(name)
        if name not in booted:
            booted[name] = boot(zoo._build(name, *VARIANTS[name]))
        return booted[name]

    return get


def stored_embeddings(model: Any) -> Tensor:
    """The embeddings of `TOKENS`."""
    return model.W_E[TOKENS[0]].detach()


def forward_scores(model: Any, layer: int, tokens: Tensor = TOKENS, factor: float = 100) -> Tensor:
    """Attention scores `[heads, query, key]` of a block whose residual stream holds token embeddings alone, times a factor.

    A factor of 100 makes the epsilon of the norm before attention negligible. The lens leaves this epsilon out, because its
    effect depends on the scale of the residual stream. It matters where queries and keys have biases: with an epsilon of
    1e-5 and a factor of 1, scores of StableLM 2 differ by up to 1.5e-4 of their norm; without biases their norms cancel it.
    """
    stream = factor * model.W_E[tokens].detach()
    cached = {}
    hooks = [
        (f"blocks.{layer}.hook_in", lambda x, hook: stream),
        (f"blocks.{layer}.attn.hook_attn_scores", lambda x, hook: cached.update(scores=x[0].double())),
    ]
    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=hooks)
    return cached["scores"]


def pair_scores(lens: EmbeddingLens, layer: int, distance: int | None = None) -> Tensor:
    """The scores `[heads, query, key]` of all pairs of `TOKENS`."""
    table: Any = lens.qk(layer=layer, distance=distance, k=N * N)
    position = {int(token): i for i, token in enumerate(TOKENS[0])}
    scores = torch.full((lens.weights.n_heads, N, N), torch.nan, dtype=torch.float64)
    dest, src = (table[f"{end}_token_index"].map(position).tolist() for end in ("dest", "src"))
    scores[table["head"].tolist(), dest, src] = torch.tensor(table["score"].tolist(), dtype=torch.float64)
    return scores


def lens_of(model: Any, **options: Any) -> EmbeddingLens:
    return EmbeddingLens(model, vocabulary=TOKENS[0].sort().values, **options)


def compare_with_forward(model: Any, lens: EmbeddingLens, layer: int) -> None:
    if zoo.HookedTransformer is not None and lens.weights.host.architecture == "NanoChatForCausalLM":
        pytest.skip("TransformerLens 3 does not call this model's hooks of attention scores")
    actual = forward_scores(model, layer)
    is_pattern = bool((actual >= 0).all())  # in some architectures this hook point holds the pattern
    expected = torch.full_like(actual, -torch.inf)
    i, j = torch.tril_indices(N, N)
    for distance in range(N) if is_pattern else (0, 1, 5):
        attn: Any = unwrap(model.blocks[layer].attn)
        scores = pair_scores(lens, layer, distance) * attn.scaling
        if not normalized_circuits(lens.weights, layer):  # the scale of the residual stream does not cancel
            length = stored_embeddings(model).double().square().mean(dim=1).sqrt()
            scores = scores / length[:, None] / length
        q, k = i[i - j == distance], j[i - j == distance]
        expected[:, q, k] = scores[:, q, k]
    is_compared = torch.isfinite(expected)
    expected = expected.softmax(dim=-1) if is_pattern else expected
    torch.testing.assert_close(expected[is_compared], actual[is_compared], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", available(ROTARY))
def test_pair_scores_at_all_distances_equal_the_attention_scores(model_of, name):
    model = model_of(name)
    lens = lens_of(model)
    for layer in range(zoo.N_LAYERS):
        compare_with_forward(model, lens, layer)


@pytest.mark.parametrize("name", available([*ROTARY, *OTHERS]))
@pytest.mark.parametrize("score", ["dot", "centered", "cosine"])
def test_pair_scores_equal_products_of_the_outputs_of_the_models_norms(model_of, name, score):
    """The norms are Hugging Face's modules; embeddings are centred before them, cosines are of their outputs."""
    model = model_of(name)
    lens = lens_of(model, score=score)
    layer = lens.weights.layers_with("attn")[-1]
    expected = brute_normalized_scores(model, layer, stored_embeddings(model), score)
    torch.testing.assert_close(pair_scores(lens, layer), expected, atol=2e-5, rtol=2e-5)
    if score == "cosine":
        assert pair_scores(lens, layer).abs().max() <= 1 + 1e-6


def test_attention_scores_of_block_0_are_those_of_the_lens(model_of):
    """The forward pass as it is, without a hook that writes: only epsilons differ."""
    model = model_of("qwen3")
    with torch.no_grad():
        _, cache = model.run_with_cache(TOKENS)
    actual = cache["blocks.0.attn.hook_attn_scores"][0].double()
    lens = lens_of(model)
    for distance in (0, 1, 5):
        expected = pair_scores(lens, 0, distance).diagonal(-distance, dim1=1, dim2=2) / 16**0.5
        torch.testing.assert_close(expected, actual.diagonal(-distance, dim1=1, dim2=2), atol=1e-4, rtol=1e-4)


def test_scores_with_biases_differ_by_the_epsilon_before_attention_alone(model_of):
    model = model_of("stablelm_per_head")
    lens, norm = lens_of(model), unwrap(model.blocks[1].ln1)
    i, j = torch.tril_indices(N, N)
    errors = []
    for eps in (norm.eps, 0.0):
        stored, norm.eps = norm.eps, eps
        actual = forward_scores(model, 1, factor=1)
        norm.eps = stored
        parts = []
        for distance in range(N):
            is_at_distance = i - j == distance
            q, k = i[is_at_distance], j[is_at_distance]
            expected = pair_scores(lens, 1, distance) * unwrap(model.blocks[1].attn).scaling
            parts.append((actual - expected)[:, q, k].flatten())
        errors.append(torch.cat(parts).norm() / actual[:, i, j].norm())
    assert errors[0] > 1e-5 and errors[1] < 1e-6


@pytest.mark.parametrize("name", ["qwen3", "olmo2"])
@pytest.mark.parametrize("options", [{}, dict(score="centered"), dict(score="cosine"), dict(inverse="pinv")])
def test_scores_are_independent_of_the_scale_of_the_embeddings(name, options):
    tables = []
    for factor in (1, 1e-4, 1000):
        model = boot(zoo.ZOO[name]())
        with torch.no_grad():
            model.W_E.mul_(factor)
        tables.append(EmbeddingLens(model, **options).qk(layer=1, k=5))
    for table in tables[1:]:
        np.testing.assert_allclose(table["score"], tables[0]["score"], rtol=1e-5)
        assert table["dest_token_index"].equals(tables[0]["dest_token_index"])


def test_the_epsilon_of_the_norms_counts_after_a_norm_before_attention():
    """With an epsilon of 1 the scores are far smaller, and they still are those of the forward pass."""
    row = ("Qwen3Config", "Qwen3ForCausalLM", zoo.LLAMA | dict(head_dim=16))
    model = boot(zoo._build("qwen3", *row))
    plain = pair_scores(lens_of(model), 1)
    for norm in ("q_norm", "k_norm"):
        module: Any = unwrap(model.blocks[1].attn._modules[norm])
        module.variance_epsilon = 1.0
    lens = lens_of(model)
    assert pair_scores(lens, 1).abs().max() < 0.9 * plain.abs().max()
    expected = brute_normalized_scores(model, 1, stored_embeddings(model), "dot")
    torch.testing.assert_close(pair_scores(lens, 1), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ["qwen3", "olmo2", "stablelm_per_head"])
@pytest.mark.parametrize("options", [{}, dict(space="unembed"), dict(inverse="pinv", score="cosine")])
def test_best_pairs_are_the_best_of_all_pairs_in_any_budget(model_of, name, options):
    lens = EmbeddingLens(model_of(name), **options)
    n = zoo.D_VOCAB
    every: Any = lens.qk(layer=1, head=2, k=n * n)
    assert every["score"].is_monotonic_decreasing
    with chunk_bytes(2**12):
        best: Any = lens.qk(layer=1, head=2, k=20)
    assert best["dest_token_index"].tolist() == every["dest_token_index"].tolist()[:20]
    assert best["src_token_index"].tolist() == every["src_token_index"].tolist()[:20]
    worst: Any = lens.qk(layer=1, head=2, k=20, largest=False)
    np.testing.assert_allclose(worst["score"], every["score"][::-1][:20], rtol=1e-6)


def test_equal_embeddings_have_equal_scores_and_the_order_of_their_indices():
    model = boot(zoo.ZOO["qwen3"]())
    with torch.no_grad():
        model.W_E[10:90] = model.W_E[10]
    table: Any = EmbeddingLens(model).qk(layer=0, head=0, k=zoo.D_VOCAB**2)
    copies = table[table["dest_token_index"].between(10, 89) & table["src_token_index"].between(10, 89)]
    assert copies["score"].nunique() == 1
    assert copies["dest_token_index"].is_monotonic_increasing


def test_a_token_with_an_embedding_of_zero_has_scores_of_zero():
    model = boot(zoo.ZOO["qwen3"]())
    with torch.no_grad():
        model.W_E[7] = 0
    for score in ("dot", "cosine"):
        table: Any = EmbeddingLens(model, score=score).qk(layer=0, head=0, k=zoo.D_VOCAB**2)
        assert np.isfinite(table["score"]).all()
        if score == "dot":
            assert (table.loc[table["src_token_index"] == 7, "score"] == 0).all()


def test_weights_as_stored_are_read_without_the_norms(model_of):
    model = model_of("qwen3")
    lens = lens_of(model, fold_ln=False)
    form = lens.weights.W_QK(1)
    E = stored_embeddings(model)
    expected = torch.stack([E @ form.A[h] @ form.B[h] @ E.T for h in range(4)]).double()
    torch.testing.assert_close(pair_scores(lens, 1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["qwen3", "gemma3_text"])
def test_processed_weights_have_the_same_scores(name):
    """TransformerLens folds norms into the weights, but not those of queries and keys."""
    expected = pair_scores(lens_of(boot(zoo.ZOO[name]())), 1, 2)
    lens = lens_of(zoo.compat(boot(zoo.ZOO[name]())))
    torch.testing.assert_close(pair_scores(lens, 1, 2), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["qwen3", "olmo2"])
def test_a_difference_of_models_is_the_difference_of_their_scores(name):
    tuned, base = (zoo.ZOO[name]() for _ in range(2))
    with torch.no_grad():
        for parameter_name, parameter in tuned.named_parameters():
            if "layers" in parameter_name:
                parameter.add_(0.02 * torch.randn(parameter.shape))
    after, before = (lens_of(boot(model)) for model in (tuned, base))
    for distance in (None, 3):
        expected = pair_scores(after, 1, distance) - pair_scores(before, 1, distance)
        assert expected.abs().max() > 0.1
        actual = pair_scores(difference(after, before), 1, distance)
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", available(ROTATED_FIRST))
@pytest.mark.parametrize("distance", [0, 3])
def test_a_distance_raises_where_gains_follow_the_rotation(model_of, name, distance):
    with pytest.raises(EmbspaceError) as caught:
        lens_of(model_of(name)).qk(layer=0, distance=distance)
    assert str(caught.value) == (
        "A distance in zoo is not supported: gains multiply its rotated queries and keys, so that scores depend on both "
        "positions and not on the distance alone. Omit the distance."
    )


@pytest.mark.parametrize("name", available(ROTATED_FIRST))
def test_equal_gains_after_the_rotation_allow_a_distance(name):
    hf: Any = zoo._build(name, *VARIANTS[name]) if name in VARIANTS else zoo.ZOO[name]()
    with torch.no_grad():
        for parameter_name, parameter in hf.named_parameters():
            if "query_layernorm" in parameter_name or "key_layernorm" in parameter_name:
                parameter.fill_(1.5)
    model = boot(hf)
    compare_with_forward(model, lens_of(model), 1)


@pytest.mark.parametrize("inverse", ["transpose", "pinv"])
def test_cosines_of_a_difference_are_half_differences(tiny, inverse):
    """The mean of the cosine of one model and minus that of the other; nothing is cut off."""
    before, after = tiny("qwen3"), zoo.boot(zoo.ZOO["qwen3"]())
    with torch.no_grad():
        for name, parameter in after.named_parameters():
            if "layers" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    options = {"score": "cosine", "inverse": inverse}
    lenses = [EmbeddingLens(model, **options) for model in (after, before)]
    n = lenses[0].space.n_tokens ** 2
    keys = ["dest_token_index", "src_token_index"]
    a, b, change = (x.qk(0, 0, k=n).set_index(keys)["score"] for x in (*lenses, difference(*lenses)))
    np.testing.assert_allclose(change.sort_index(), (a.sort_index() - b.sort_index()) / 2, atol=1e-5)
