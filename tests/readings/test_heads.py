"""Pairs of heads, without pairs of the same word."""

import numpy as np
import pytest
import torch
import zoo
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.space.same_tokens import same_pairs

PAIR = ["dest_token_index", "dest_token_string", "src_token_index", "src_token_string", "score"]


def copying_model():
    """A model whose heads copy: each token's best pair is the token itself."""
    model = zoo.ZOO["llama"]()
    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
        for layer in model.model.layers:
            attention = layer.self_attn
            attention.k_proj.weight.copy_(attention.q_proj.weight[: attention.k_proj.weight.shape[0]])
            attention.o_proj.weight.zero_()
            attention.o_proj.weight[:, :16] = attention.v_proj.weight.T[:, :16]
    return zoo.boot(model)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("score", ["dot", "cosine"])
@pytest.mark.parametrize("rule", ["exact", "fuzzy"])
def test_pairs_without_the_same_word_are_the_best_of_the_others(rule, score, largest):
    """Compared with all pairs of dense matrices. Tokens 0, 7, 14 … have the text of another token, in another case."""
    lens = EmbeddingLens(copying_model(), score=score)
    strings = [text.upper() if i % 7 else f"w{i + 1}" for i, text in enumerate(lens.vocabulary.strings)]
    lens.vocabulary.__dict__["_decoded"] = (np.array(strings, dtype=object), np.ones(97, dtype=bool))
    same = torch.zeros(97 * 97, dtype=torch.bool)
    same[same_pairs(strings, rule)] = True
    same = same.view(97, 97)
    rows = lens.space.read[:].double()
    for circuit in ("ov", "qk"):
        table = getattr(lens, circuit)(0, exclude_same=rule, k=20, largest=largest)
        check_tidy(table, ["layer", "head", "weight", "rank"], ["layer", "head", "weight", "rank", *PAIR])
        form = lens.weights.W_OV(0) if circuit == "ov" else lens.weights.W_QK(0)
        n_same = 0
        for head, pairs in table.groupby("head"):
            dense = form.A[head].double() @ form.B[head].double()
            norm = torch.linalg.matrix_norm(dense, 2)
            dense = dense / norm if score == "cosine" and norm else dense  # two heads are zero
            columns = lens.space.write[:].double() if circuit == "ov" else rows
            scores = rows @ dense @ columns.T
            n_same += int(same.flatten()[scores.flatten().topk(20, largest=largest).indices].sum())
            expected = (
                scores.masked_fill(same, -torch.inf if largest else torch.inf).flatten().topk(20, largest=largest)
            )
            np.testing.assert_allclose(pairs["score"], expected.values, atol=1e-5)
            first, second = ("src", "dest") if circuit == "ov" else ("dest", "src")
            keys = torch.tensor((pairs[f"{first}_token_index"] * 97 + pairs[f"{second}_token_index"]).tolist())
            assert not same.flatten()[keys].any() and len(keys.unique()) == 20
            np.testing.assert_allclose(scores.flatten()[keys], pairs["score"], atol=1e-5)
        assert n_same > 0 or not largest, "some pairs had to be left out"


def test_more_pairs_than_remain_raise_an_error(lens):
    assert len(lens.ov(0, 0, exclude_same="exact", k=97 * 96)) == 97 * 96
    with pytest.raises(EmbspaceError, match=r"k=9313 .*9,312|k=9,?313"):
        lens.ov(0, 0, exclude_same="exact", k=97 * 96 + 1)
