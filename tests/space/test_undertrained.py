"""Under-trained tokens are recognised from the embeddings alone."""

import pytest
import torch
import zoo

from embspace_lens import EmbeddingLens
from embspace_lens.search.tiles import chunk_bytes
from embspace_lens.space.embeddings import Embedding, unembedding_rows
from embspace_lens.space.undertrained import never_trained, undertraining
from embspace_lens.space.vocabulary import Vocabulary


def test_planted_untrained_tokens_are_recovered(byte_level):
    """Unused bytes and three more tokens keep their initial, small embeddings along the common direction."""
    vocabulary = Vocabulary(byte_level, len(byte_level))
    common = torch.randn(48)
    W = torch.randn(len(vocabulary), 48) + 3 * common
    planted = [40, 41, 42]
    untrained = sorted({*never_trained(vocabulary), *planted})
    assert len(never_trained(vocabulary)) == 13
    drift = torch.randn(48)
    W[untrained] = 3 * common + 4 * drift + 0.05 * torch.randn(len(untrained), 48)
    indicator, threshold = undertraining(vocabulary, W, W)
    assert torch.nonzero(indicator <= threshold)[:, 0].tolist() == untrained


def test_trained_tokens_are_far_from_untrained_ones(byte_level):
    """The control for the test above: nothing is planted."""
    vocabulary = Vocabulary(byte_level, len(byte_level))
    W = torch.randn(len(vocabulary), 48) + 3 * torch.randn(48)
    indicator, _ = undertraining(vocabulary, W, W)
    assert indicator[[40, 41, 42]].min() > 0.3


def test_norms_are_used_without_known_untrained_tokens():
    vocabulary = Vocabulary(zoo.tokenizer(), zoo.D_VOCAB)
    W = torch.nn.functional.normalize(torch.randn(zoo.D_VOCAB, 32), dim=1) * (1 + 0.05 * torch.randn(zoo.D_VOCAB, 1))
    W[[5, 6]] *= 0.01
    indicator, threshold = undertraining(vocabulary, W, W)
    assert torch.nonzero(indicator <= threshold)[:, 0].tolist() == [5, 6]


def test_result_is_independent_of_chunk_size(tiny, monkeypatch):
    """Few rows are computed at a time, and the whole W_U is never computed."""
    lens = EmbeddingLens(tiny("gpt2"))
    vocabulary = Vocabulary(zoo.tokenizer(), zoo.D_VOCAB)
    known_untrained = [3, 50, 90]
    expected = undertraining(vocabulary, lens.weights.W_E, lens.weights.W_U.T, known_untrained)
    n_rows = []
    make_rows = Embedding.__getitem__

    def counted(self, index):
        rows = make_rows(self, index)
        n_rows.append(len(rows))
        return rows

    monkeypatch.setattr(Embedding, "__getitem__", counted)
    with chunk_bytes(4 * 32 * 10):
        indicator, threshold = undertraining(
            vocabulary, lens.weights.W_E, unembedding_rows(lens.weights), known_untrained
        )
    assert len(n_rows) == 2 * -(-zoo.D_VOCAB // 10) + 1, "two passes over all chunks, and the known tokens"
    assert max(n_rows) <= 10
    torch.testing.assert_close(indicator, expected[0], atol=1e-5, rtol=1e-4)
    assert threshold == pytest.approx(expected[1], rel=1e-3)


def test_mask_does_not_compute_the_whole_unembedding(tiny, monkeypatch):
    weights = EmbeddingLens(tiny("gpt2")).weights
    monkeypatch.setattr(type(weights), "W_U", property(lambda self: pytest.fail("the whole W_U is computed")))
    assert "trained" in repr(EmbeddingLens(tiny("gpt2"), tokenizer=zoo.tokenizer(), vocabulary="trained"))
