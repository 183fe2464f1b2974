"""Features as interventions: edits equal hooks by hand, and activations are codes of the dictionary's own non-linearity."""

import pandas as pd
import pytest
import torch
import zoo

from embspace_lens import EmbeddingLens, Features, ablation_hooks, activations, scaling_hooks, steering_hooks
from embspace_lens.errors import EmbspaceError
from embspace_lens.features import Activation

TOKENS = torch.tensor([[5, 9, 11, 3], [8, 2, 40, 7]])
N = 29
CHOSEN = [4, 17]
ROWS = pd.DataFrame({"feature_index": [17, 4, 17, -1]})


def dictionary(hook: str, output_hook: str = "", kind: str = "jumprelu") -> Features:
    generator = torch.Generator().manual_seed(3)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    activation = Activation(kind, bias=normal(N), threshold=normal(N).abs(), k=5)  # type: ignore[arg-type]
    options = dict(hook=hook, output_hook=output_hook, activation=activation)
    return Features(normal(N, zoo.D_MODEL), normal(zoo.D_MODEL, N), "sae", **options)


PLACES = {
    "sae": ("blocks.0.hook_resid_post", ""),
    "last block": ("blocks.1.hook_resid_post", ""),
    "mlp output": ("blocks.0.hook_mlp_out", ""),
    "transcoder": ("blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out"),
    "before the gain": ("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"),
}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request):
    return zoo.boot(zoo.ZOO[request.param]())


def logits(model, hooks=()):
    return model.run_with_hooks(TOKENS, fwd_hooks=list(hooks))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("edit", ["zero", "mean", "scale"])
def test_edits_equal_hooks_by_hand(model, place, edit):
    features = dictionary(*PLACES[place])
    read = {"codes": torch.empty(0)}

    def keep(value, hook):
        read["codes"] = features.encode(value)

    def add(value, hook):
        codes = read["codes"][..., CHOSEN]
        new = {"zero": 0 * codes, "mean": codes.mean(dim=(0, 1)).expand_as(codes), "scale": -2 * codes}[edit]
        return value + (new - codes) @ features.decoder[CHOSEN]

    source = {"blocks.0.hook_resid_post": "blocks.1.hook_resid_pre"}.get(features.hook, features.hook)
    target = features.output_hook or source
    by_hand = logits(model, [(source, keep), (target, add)])
    if edit == "scale":
        hooks = scaling_hooks(ROWS, -2, model=model, vectors=features)
    else:
        hooks = ablation_hooks(ROWS, edit, model=model, vectors=features)
    edited = logits(model, hooks)
    torch.testing.assert_close(edited, by_hand, atol=1e-4, rtol=1e-4)
    assert (edited - logits(model)).abs().max() > 1e-3, "the edit takes effect"


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk"])
def test_activations_are_codes(model, kind):
    features = dictionary(*PLACES["transcoder"], kind=kind)
    df = activations(model, TOKENS, ROWS, vectors=features)
    _, cache = model.run_with_cache(TOKENS)
    codes = features.encode(cache["blocks.0.mlp.hook_in"])
    assert df.columns.tolist() == ["feature_index", "example", "pos", "activation"]
    for row in df.itertuples():
        assert row.activation == pytest.approx(codes[row.example, row.pos, row.feature_index].item(), abs=1e-4)
    assert len(df) == 2 * TOKENS.numel()
    if kind == "topk":
        assert (codes > 0).sum(-1).max() <= 5


def test_tables_of_a_feature_lens_name_features(model):
    features = dictionary(*PLACES["sae"])
    rows = EmbeddingLens(model).with_features(target=features).neurons(layer=0, neuron=1, weight="W_out", k=3)
    df = activations(model, TOKENS, rows, vectors=features)
    assert sorted(set(df["feature_index"])) == sorted(set(rows["feature_index"]))
    merged = rows.merge(df, on="feature_index")
    assert len(merged) == 3 * TOKENS.numel()


def test_a_feature_is_a_direction_to_steer_with(model):
    features = dictionary(*PLACES["sae"])
    hooks = steering_hooks(features[4], 0, model=model, scale=3)
    by_hand = logits(model, [("blocks.1.hook_resid_pre", lambda value, hook: value + 3 * features.decoder[4])])
    torch.testing.assert_close(logits(model, hooks), by_hand)


def test_bad_input(model):
    sae = dictionary(*PLACES["sae"])
    cases = [
        (ROWS, dictionary("blocks.0.hook_nowhere"), "has no hook point blocks.0.hook_nowhere"),
        (ROWS, dictionary(""), "The hook point of sae is unknown"),
        (pd.DataFrame({"layer": [0]}), sae, "names no features|no row with a feature_index"),
        (pd.DataFrame({"feature_index": [N]}), sae, f"feature={N} is out of range"),
        (pd.DataFrame({"feature_index": [0.5]}), sae, "whole number"),
        (pd.DataFrame({"feature_index": [-1]}), sae, "no row with a feature_index"),
    ]
    for rows, features, message in cases:
        with pytest.raises(EmbspaceError, match=message):
            ablation_hooks(rows, model=model, vectors=features)
    no_encoder = Features(torch.randn(N, zoo.D_MODEL), hook="blocks.0.hook_resid_post")
    with pytest.raises(EmbspaceError, match="no encoder"):
        logits(model, ablation_hooks(ROWS, model=model, vectors=no_encoder))
