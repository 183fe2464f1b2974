"""Translations: compared with formulas in numpy, on models with a known translation, and errors."""

import copy

import numpy as np
import pytest
import torch
from laws import permute_neurons, random_rotation, rotate_residual_stream
from model_pairs import boot, build, lens_of, plain_norms

from embspace_lens import EmbeddingLens, EmbspaceError, Translation, translate, translate_states
from embspace_lens.compare.translation import random_translation, untranslated
from embspace_lens.search.tiles import chunk_bytes

pytestmark = pytest.mark.filterwarnings("ignore:.*a comparison over so few tokens is weak")


@pytest.fixture(scope="module")
def rotated():
    """A llama, a copy whose residual stream is rotated by Q, and Q."""
    hf_model = build("llama", edit=plain_norms)
    copied, Q = copy.deepcopy(hf_model), random_rotation(hf_model.config.hidden_size)
    rotate_residual_stream(copied, Q)
    permute_neurons(copied, torch.randperm(hf_model.config.intermediate_size))
    return EmbeddingLens(boot(hf_model), space="embed"), EmbeddingLens(boot(copied), space="embed"), Q


@pytest.mark.parametrize("inverse", ["pinv", "least_squares", "procrustes"])
def test_rotation_is_recovered(rotated, inverse):
    a, b, Q = rotated
    translation = translate(a, b, inverse=inverse)
    x = torch.randn(5, a.weights.d_model)
    for side in ("write", "read"):
        torch.testing.assert_close(translation(x, side=side), x @ Q, atol=1e-3, rtol=1e-3)
    assert translation.round_trip_error < 1e-3


def test_low_rank_translation_has_a_round_trip_error(rotated):
    a, b, _ = rotated
    assert translate(a, b, rank=4).round_trip_error > 0.1
    assert translate(a, b, rank=4).there.A.shape == (a.weights.d_model, 4)


@pytest.mark.parametrize("inverse", ["pinv", "least_squares", "ridge", "procrustes", "transpose"])
def test_map_equals_its_formula(inverse):
    a, b = (lens_of(name, options={"space": "embed"}) for name in ("gpt2", "llama"))
    S, T = (lens.weights.W_E.double().numpy() for lens in (a, b))
    if inverse == "pinv":
        K = S.T @ np.linalg.pinv(T).T
    elif inverse == "least_squares":
        K = np.linalg.lstsq(S, T, rcond=None)[0]
    elif inverse == "ridge":
        K = np.linalg.solve(S.T @ S + 0.01 * np.trace(S.T @ S) / S.shape[1] * np.eye(S.shape[1]), S.T @ T)
    else:
        u, _, v = np.linalg.svd(S.T @ T)
        K = u @ v if inverse == "procrustes" else S.T @ T
        K = K * (S @ K * T).sum() / (S @ K * (S @ K)).sum()
    translation = translate(a, b, inverse=inverse)
    np.testing.assert_allclose(translation.there.AB.numpy(), K, atol=2e-4 * np.abs(K).max())
    x = torch.randn(3, 5, S.shape[1])
    np.testing.assert_allclose(translation(x).numpy(), x.numpy() @ K, atol=1e-3)
    back = translate(b, a, inverse=inverse).there.AB.numpy()
    np.testing.assert_allclose(translation.back.AB.numpy(), back, atol=2e-4 * np.abs(back).max())
    np.testing.assert_allclose(translation(x, side="read").numpy(), x.numpy() @ back.T, atol=1e-3)
    error = np.linalg.norm(S - S @ K @ back) / np.linalg.norm(S)
    assert translation.round_trip_error == pytest.approx(error, rel=1e-3)


def test_probe_has_the_same_value_on_a_translated_state(rotated):
    a, b, _ = rotated
    translation, probe, state = translate(a, b), torch.randn(32), torch.randn(7, 32)
    translated = translation.state(state) @ translation(probe, side="read")
    torch.testing.assert_close(translated, state @ probe, atol=1e-3, rtol=1e-3)


def test_translation_is_restored_from_metadata_and_tensors(rotated):
    translation = translate(*rotated[:2], rank=6)
    restored = Translation.of(translation.facts(), translation.tensors())
    x = torch.randn(4, 32)
    torch.testing.assert_close(restored(x), translation(x), atol=0, rtol=0)
    torch.testing.assert_close(restored.state(x), translation.state(x), atol=0, rtol=0)
    assert repr(restored) == repr(translation) and restored.there.A.shape == (32, 6)


def test_repr_summarises_the_translation(rotated):
    translation = translate(rotated[0], rotated[0])
    assert repr(translation) == ("Translation(zoo → zoo: width 32 → 32, pinv, 130 shared tokens; round trip loses 0%)")


def test_result_is_independent_of_chunk_size(rotated):
    unchunked = translate(*rotated[:2]).there.AB
    with chunk_bytes(8 * 64 * 7):
        torch.testing.assert_close(translate(*rotated[:2]).there.AB, unchunked, atol=1e-4, rtol=1e-4)


def test_controls_have_the_norm_and_the_width_of_a_map():
    narrow, wide = lens_of("llama"), lens_of("llama", hidden_size=40, head_dim=8)
    translation = translate(narrow, wide, inverse="least_squares")
    control = random_translation(translation, seed=0)
    assert control.there.norm().item() == pytest.approx(translation.there.norm().item(), rel=1e-5)
    assert not torch.allclose(control.there.AB, random_translation(translation, seed=1).there.AB)
    x = torch.randn(3, 32)
    torch.testing.assert_close(untranslated(narrow, wide).state(x), torch.cat([x, torch.zeros(3, 8)], dim=1))
    assert untranslated(narrow, wide).round_trip_error == 0
    assert untranslated(wide, narrow).round_trip_error == pytest.approx((8 / 40) ** 0.5)


def test_errors_state_what_is_allowed(rotated, unchecked_types):
    a, b, _ = rotated
    translation = translate(a, b)
    for options, message in (
        ({"inverse": "inverse"}, "inverse='inverse' is not one of 'pinv'"),
        ({"rank": 0}, "rank=0 is not an integer from 1 to 32, the number of dimensions of the narrower model."),
        ({"rank": 33}, "rank=33 is not an integer from 1 to 32"),
    ):
        with pytest.raises(EmbspaceError, match=message):
            translate(a, b, **options)
    for vectors, side, message in (
        (torch.ones(3), "write", "have width 3"),
        (torch.ones(32), "both", "side='both' is not one of 'read', 'write'"),
        (torch.full((2, 32), torch.nan), "write", "NaN or infinite"),
    ):
        with pytest.raises(EmbspaceError, match=message):
            translation(vectors, side=side)
    with pytest.raises(EmbspaceError, match="int is not an EmbeddingLens"):
        translate(a, 3)


def test_too_few_shared_tokens_raise_an_error(rotated):
    lens_of_50_tokens = lens_of("llama", options={"vocabulary": range(50)})
    with pytest.raises(EmbspaceError, match="share 50 of the 130 and 50 tokens .* needs 100 or more"):
        translate(rotated[0], lens_of_50_tokens)


# -- fitted to hidden states


def test_translated_states_of_a_rotated_model_are_rotated(rotated):
    a, b, Q = rotated
    translation = translate_states(a, b, 0, 0, n_rows=40, n_tokens=12, inverse="least_squares")
    mean = translation.mean_source
    torch.testing.assert_close(translation.state(mean), translation.mean_target, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mean @ Q, translation.mean_target, atol=1e-3, rtol=1e-3)
    x = mean + 0.1 * torch.randn(5, 32)
    torch.testing.assert_close(translation.state(x), x @ Q, atol=5e-2, rtol=5e-2)
    assert translation.inverse == "least_squares on states, block 0 → 0" and translation.round_trip_error < 0.05


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ((2, 0), {}, "layer_source=2 is not an integer from -1 to 1"),
        ((0, -2), {}, "layer_target=-2 is not an integer from -1 to 1"),
        ((0, 0), {"inverse": "pinv"}, "inverse='pinv' is not one of 'ridge', 'least_squares', 'procrustes'"),
        ((0, 0), {"n_rows": 0}, "n_rows=0 is not an integer of 1 or more"),
        ((0, 0), {"n_tokens": 0}, "n_tokens=0 is not an integer of 1 or more"),
    ],
)
def test_errors_of_translate_states(rotated, layers, options, message, unchecked_types):
    a, b, _ = rotated
    with pytest.raises(EmbspaceError, match=message):
        translate_states(a, b, *layers, **options)
