"""Shared tokens: tokenizers of several kinds, compared with slow loops, and errors."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from model_pairs import D_VOCAB, boot, build, lens_of

from embspace_lens import EmbeddingLens, EmbspaceError, align, match_neurons
from embspace_lens.compare.common_tokens import _equal_tokens, shared_rows, shared_tokens
from embspace_lens.space.vocabulary import Vocabulary

pytestmark = pytest.mark.filterwarnings("ignore:.*a comparison over so few tokens is weak")


class Pieces:
    """A tokenizer with given pieces, and given texts of the pieces."""

    def __init__(self, pieces, texts=None):
        self.pieces, self.texts = list(pieces), list(texts or pieces)

    def __len__(self):
        return len(self.pieces)

    def convert_ids_to_tokens(self, ids):
        return [self.pieces[i] for i in ids]

    def batch_decode(self, ids, **_):
        return [self.texts[i] for (i,) in ids]


def vocabulary(pieces, texts=None, d_vocab=None):
    return Vocabulary(Pieces(pieces, texts), d_vocab or len(pieces))


def equal_ids(a, b):
    return [ids.tolist() for ids in _equal_tokens(a, b)]


def test_tokens_are_equal_if_their_pieces_are():
    assert equal_ids(vocabulary("abc"), vocabulary("abc")) == [[0, 1, 2], [0, 1, 2]]
    assert equal_ids(vocabulary(["Ġa", "b", "c"]), vocabulary(["c", "x", "Ġa", "a"])) == [[0, 2], [2, 0]]
    # Bytes that do not decode by themselves have the same text but different pieces.
    bytes_a, bytes_b = (vocabulary(p, ["\ufffd"] * 2 + [" z"]) for p in (["Ã", "Ð", "Ġz"], ["Ð", "Ñ", "Ġz"]))
    assert equal_ids(bytes_a, bytes_b) == [[1, 2], [0, 2]]


def test_tokens_of_different_tokenizer_families_are_equal_if_their_texts_are():
    gpt = vocabulary(["Ġfilm", "film", "Ã", "A"], [" film", "film", "\ufffd", "A"])
    llama = vocabulary(["▁film", "<0x41>", "A", "film", "<0xC3>"], ["film", "A", "A", "film", "\ufffd"])
    assert equal_ids(gpt, llama) == [[0, 1, 3], [0, 3, 2]]
    doubled = vocabulary(["▁film", "A", "a"], ["film", "A", "A"])  # two tokens with one text: neither is used
    assert equal_ids(gpt, doubled) == [[0], [0]]


def test_ids_beyond_the_tokenizers_vocabulary_are_ignored():
    assert equal_ids(vocabulary("abc", d_vocab=5), vocabulary("abc", d_vocab=6)) == [[0, 1, 2], [0, 1, 2]]
    assert equal_ids(vocabulary("abc", d_vocab=2), vocabulary("cab")) == [[0, 1], [1, 2]], (
        "so are pieces beyond the model's vocabulary"
    )
    assert equal_ids(vocabulary(["a", "3"], d_vocab=5), vocabulary(["3", "a"], d_vocab=4)) == [[0, 1], [1, 0]]


@settings(max_examples=50, deadline=None)
@given(*[st.lists(st.sampled_from([f"Ġ{c}" for c in "abcdefghijk"]), unique=True, min_size=1)] * 2)
def test_equal_tokens_equal_slow_loops(a, b):
    expected = [(i, j) for i in range(len(a)) for j in range(len(b)) if a[i] == b[j]]
    assert list(zip(*equal_ids(vocabulary(a), vocabulary(b)))) == expected


def test_result_is_independent_of_the_order_of_ids():
    a, b = lens_of("llama"), lens_of("llama", 1)
    order = torch.cat([torch.arange(2), torch.randperm(D_VOCAB - 2) + 2])
    model = build("llama", 1)
    with torch.no_grad():
        for rows in (model.model.embed_tokens.weight, model.lm_head.weight):
            rows.copy_(rows[order])
    renumbered = EmbeddingLens(boot(model, [f"w{i}" for i in order[2:].tolist()]))
    ids_a, ids_b = shared_tokens(a, renumbered)
    assert (order[ids_b] == ids_a).all()
    np.testing.assert_allclose(
        align(a, b).correlation["correlation"], align(a, renumbered).correlation["correlation"], atol=1e-6
    )


def test_only_tokens_that_both_lenses_read_are_shared(two_lenses):
    a = lens_of("llama", options=dict(vocabulary=range(10, 125), score="centered"))
    ids_a, ids_b = shared_tokens(a, two_lenses[1])
    assert ids_a.tolist() == ids_b.tolist() == list(range(10, 125))
    ids_b, ids_a = shared_tokens(two_lenses[1], a)
    assert torch.equal(shared_rows(a, "write", ids_a)[:], a.space.rows("write")[:])
    two_rows = shared_rows(a, "read", torch.tensor([12, 40]))
    assert two_rows.shape == (2, 32) and torch.equal(two_rows[:], a.space.rows("read")[torch.tensor([2, 30])])


def test_without_tokenizers_ids_are_compared_if_the_vocabularies_have_equal_sizes():
    def lens_without_tokenizer(d_vocab):
        lens = lens_of("llama", d_vocab=d_vocab)
        lens.vocabulary.tokenizer = None
        return lens

    assert shared_tokens(lens_without_tokenizer(130), lens_without_tokenizer(130))[1].tolist() == list(range(130))
    with pytest.raises(
        EmbspaceError, match="zoo has 130 tokens and no tokenizer; zoo has 140 tokens and no tokenizer either"
    ):
        shared_tokens(lens_without_tokenizer(130), lens_without_tokenizer(140))
    with pytest.raises(
        EmbspaceError, match=r"zoo has 130 tokens and a tokenizer. .* Give EmbeddingLens\(model, tokenizer=…\)"
    ):
        shared_tokens(lens_of("llama"), lens_without_tokenizer(130))


@pytest.mark.filterwarnings("error")
def test_few_shared_tokens_raise_an_error_or_a_warning(two_lenses):
    lens_of_99_tokens = lens_of("llama", options=dict(vocabulary=range(99)))
    with pytest.raises(EmbspaceError, match="share 99 of the 99 and 130 tokens .* A comparison needs 100 or more"):
        align(lens_of_99_tokens, two_lenses[0])
    with pytest.warns(UserWarning, match="zoo and zoo share 130 of the 130 and 130 tokens .* is weak"):
        align(*two_lenses, weights="W_V")
    small, large = (lens_of("llama", d_vocab=size) for size in (1050, 10600))
    align(small, small, weights="W_V")
    with pytest.warns(UserWarning, match="share 1,050 of the 1,050 and 10,600 tokens"):
        match_neurons(small, large, 0, 0, one_to_one=False)
