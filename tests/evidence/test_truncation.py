"""Keep-k: compared with slow loops, on embeddings with a known inverse, and errors."""

import numpy as np
import pytest
import torch
import zoo
from reference import brute_keep_k
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError, evidence
from embspace_lens.evidence.truncation import _sample_outputs
from embspace_lens.search.tiles import chunk_bytes

COLUMNS = ["source", "inverse", "k", "similarity", "n"]


@pytest.mark.parametrize(("name", "options"), [("gpt2", {}), ("llama", {"score": "cosine", "vocabulary": range(60)})])
def test_similarity_equals_slow_loops(tiny, name, options):
    lens = EmbeddingLens(tiny(name), **options)
    X = torch.randn(6, 32)
    frame = evidence.keep_k(lens, X, ks=[1, 7, 40], n=6)
    check_tidy(frame, COLUMNS[:3], COLUMNS)
    assert frame.attrs["embspace_kind"] == "keep_k"
    similarity = frame.set_index(COLUMNS[:3])["similarity"]
    assert frame["source"].unique().tolist() == ["W_out", "gaussian", "given"]
    E = lens.space.write[:].double()
    X = lens.space.vectors(X, "write").double()
    inverses = {"transpose": E, "pinv": torch.linalg.pinv(E, rtol=1e-5).T}
    for inverse, E_inverse in inverses.items():
        for k in (1, 7, 40):
            slow = brute_keep_k(X, E, E_inverse, k)
            assert similarity["given", inverse, k] == pytest.approx(slow, abs=1e-4)


def test_exact_inverse_over_the_whole_vocabulary_preserves_inner_products(tiny):
    centred = torch.randn(20, 32)
    centred = centred - centred.mean(dim=1, keepdim=True)  # as the LayerNorm's output is
    for name in ("llama", "gpt2"):
        frame = evidence.keep_k(EmbeddingLens(tiny(name)), {"span": centred}, n=20, inverses="pinv")
        curve = frame[frame["source"] == "span"].set_index("k")["similarity"]
        assert curve[97] == pytest.approx(1, abs=1e-5)
        assert (curve.diff().dropna() > 0).all() and curve.iloc[0] < 0.9


def test_transpose_and_inverse_of_orthonormal_embeddings_are_equal():
    hf = zoo.ZOO["llama"]()
    with torch.no_grad():
        hf.lm_head.weight.copy_(torch.linalg.qr(torch.randn(97, 32))[0])
        hf.model.norm.weight.fill_(1)
    frame = evidence.keep_k(EmbeddingLens(zoo.boot(hf)))
    curves = [frame[frame["inverse"] == inverse]["similarity"].to_numpy() for inverse in ("transpose", "pinv")]
    assert np.allclose(*curves, atol=1e-4)
    assert curves[0][frame["k"][: len(curves[0])] == 97] == pytest.approx(1, abs=1e-5)


def test_result_is_independent_of_chunk_size_and_depends_on_the_seed(lens):
    unchunked = evidence.keep_k(lens, n=20)
    with chunk_bytes(97 * 7):  # 7 of 20 vectors at a time, of 4 bytes and scaled by 4
        assert np.allclose(unchunked["similarity"], evidence.keep_k(lens, n=20)["similarity"], atol=1e-5)
    assert not np.allclose(unchunked["similarity"], evidence.keep_k(lens, n=20, seed=1)["similarity"], atol=1e-3)


def test_rows_of_W_out_are_drawn_from_all_layers_and_experts(moe_lens):
    rows = torch.cat([moe_lens.weights.W_out(layer, e) for layer in (0, 1) for e in range(3)])
    drawn = _sample_outputs(moe_lens, [0, 1], 10**6, torch.Generator())
    assert torch.equal(drawn, rows)
    sample = _sample_outputs(moe_lens, [0, 1], 40, torch.Generator().manual_seed(0))
    indices = (sample[:, None] == rows).all(-1).nonzero()[:, 1]
    assert len(indices) == 40 and (indices.diff() > 0).all()
    assert len({int(index) // 48 for index in indices}) == 6, "from every expert of every layer"


def test_model_without_mlp_has_no_rows_of_W_out():
    frame = evidence.keep_k(EmbeddingLens(zoo.NATIVE["native_attn_only"]()), ks=[5], n=5)
    assert frame["source"].unique().tolist() == ["gaussian"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ks": [98]}, "k=98 is not an integer from 1 to 97, the number of tokens that this lens reads."),
        ({"inverses": "inverse"}, "inverses='inverse' is not one of 'transpose', 'pinv'"),
        ({"n": 1}, "n=1 is not an integer of 2 or more"),
        ({"vectors": torch.zeros(4, 31)}, "vectors have width 31"),
        ({"vectors": torch.zeros(32)}, "vectors 'given' have shape .32,.. Give .n, d_model. with n of 2 or more."),
        (
            {"vectors": {"W_out": torch.zeros(4, 32)}},
            "vectors holds the name 'W_out', which is a source of this table already",
        ),
        ({"vectors": torch.full((4, 32), torch.nan)}, "NaN or infinite"),
    ],
)
def test_errors_state_what_is_allowed(lens, options, message, unchecked_types):
    with pytest.raises(EmbspaceError, match=message):
        evidence.keep_k(lens, **options)
