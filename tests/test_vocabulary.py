"""Ids ↔ strings, and masks."""

import pytest
import torch
import zoo
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from embspace_lens import EmbeddingLens, EmbspaceError, ascii_tokens, seen_in, whole_words
from embspace_lens.search import tiles as rows
from embspace_lens.space import embedding_space as space
from embspace_lens.space import vocabulary as vocabulary_module
from embspace_lens.space.undertrained import never_trained, undertraining
from embspace_lens.space.vocabulary import Vocabulary


def byte_level():
    """Every byte as a token, then a few words, as GPT-2's tokenizer writes them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, "Ġc", "Ġca", "Ġcat", "ca", "cat", "Ġé"])}
    bpe = Tokenizer(
        models.BPE(vocab={**vocabulary, "Ã©": len(vocabulary)}, merges=[("Ġ", "c"), ("Ġc", "a"), ("Ġca", "t")])
    )
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


def sentencepiece_like():
    vocabulary = [("<unk>", 0.0), ("▁cat", -1.0), ("▁▁", -2.0), ("cat", -1.5), ("<0xE2>", -3.0), ("▁", -3.0)]
    unigram = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=unigram, unk_token="<unk>")


def test_strings_are_exact_and_keyed_by_id():
    tokenizer = byte_level()
    vocabulary = Vocabulary(tokenizer, len(tokenizer) + 3)
    by_piece = {piece: vocabulary.strings[i] for piece, i in tokenizer.get_vocab().items()}
    assert by_piece["Ġcat"] == " cat" and by_piece["cat"] == "cat" and by_piece["Ã©"] == "é"
    assert by_piece["Ã"] == "Ã", "half of a character is shown as the tokenizer's own piece"
    assert vocabulary.strings[-1] == str(len(tokenizer) + 2), "ids past the tokenizer's end are their own strings"
    assert all(isinstance(text, str) and text for text in vocabulary.strings)


def test_a_merged_character_is_neither_its_bytes_nor_untrained():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate([*alphabet, "Ã¶"])}, merges=[("Ã", "¶")]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe)
    vocabulary = Vocabulary(tokenizer, len(tokenizer))
    merged = tokenizer.get_vocab()["Ã¶"]
    assert vocabulary.strings[merged] == "ö" and vocabulary.index("ö") == merged
    assert merged not in never_trained(vocabulary) and len(never_trained(vocabulary)) == 13
    with pytest.raises(EmbspaceError, match="is 2 tokens in this vocabulary"):
        vocabulary.index("é")


def test_sentencepiece_keeps_its_leading_spaces():
    strings = Vocabulary(sentencepiece_like(), 6).strings.tolist()
    assert strings == ["<unk>", " cat", "  ", "cat", "<0xE2>", " "]


def test_one_token():
    vocabulary = Vocabulary(byte_level(), len(byte_level()))
    assert vocabulary.strings[vocabulary.index(" cat")] == " cat"
    assert vocabulary.index(7) == 7
    with pytest.raises(EmbspaceError) as caught:
        vocabulary.index("  cat")
    assert (
        str(caught.value)
        == "\"  cat\" is 2 tokens in this vocabulary (' ', ' cat'); search() takes one. Did you mean ' cat'?"
    )


def test_masks_join(tiny):
    tokenizer = byte_level()
    vocabulary = Vocabulary(tokenizer, len(tokenizer))
    texts = ["a cat, a cat", "é"]
    chosen = (whole_words & seen_in(texts, at_least=2)).choose(vocabulary, lambda: ())
    assert [vocabulary.strings[i] for i in torch.nonzero(chosen)[:, 0]] == [" cat"]
    assert (whole_words & ascii_tokens).name == "words & ascii"
    printable = ascii_tokens.choose(vocabulary, lambda: ())
    assert all(vocabulary.strings[i].isascii() for i in torch.nonzero(printable)[:, 0])


def test_untrained_tokens_are_found_from_embeddings_alone():
    """Planted: impossible bytes and three more tokens keep their first, small embeddings along the common direction."""
    tokenizer = byte_level()
    vocabulary = Vocabulary(tokenizer, len(tokenizer))
    common = torch.randn(48)
    W = torch.randn(len(vocabulary), 48) + 3 * common
    planted = [40, 41, 42]
    untouched = sorted({*never_trained(vocabulary), *planted})
    assert len(never_trained(vocabulary)) == 13
    drift = torch.randn(48)
    W[untouched] = 3 * common + 4 * drift + 0.05 * torch.randn(len(untouched), 48)
    indicator, threshold = undertraining(vocabulary, W, W)
    found = torch.nonzero(indicator <= threshold)[:, 0].tolist()
    assert found == untouched
    trained = torch.randn(len(vocabulary), 48) + 3 * common  # the control: nothing was left untrained but by name
    indicator, _ = undertraining(vocabulary, trained, trained)
    assert indicator[planted].min() > 0.3


def test_without_known_untrained_tokens_the_norm_decides():
    vocabulary = Vocabulary(zoo.tokenizer(), zoo.D_VOCAB)
    W = torch.nn.functional.normalize(torch.randn(zoo.D_VOCAB, 32), dim=1) * (1 + 0.05 * torch.randn(zoo.D_VOCAB, 1))
    W[[5, 6]] *= 0.01
    indicator, threshold = undertraining(vocabulary, W, W)
    assert torch.nonzero(indicator <= threshold)[:, 0].tolist() == [5, 6]


def test_a_named_mask_reaches_the_lens(tiny):
    lens = EmbeddingLens(tiny("gpt2"), tokenizer=zoo.tokenizer(), vocabulary="ascii")
    assert "97 of 97 tokens (ascii)" in repr(lens)


def test_untrained_tokens_are_found_by_the_tile(tiny, monkeypatch):
    """Rows asked for a few at a time, never W_U whole, and the same answer as from all at once."""
    lens = EmbeddingLens(tiny("gpt2"))
    vocabulary = Vocabulary(zoo.tokenizer(), zoo.D_VOCAB)
    monkeypatch.setattr(vocabulary_module, "never_trained", lambda vocabulary: [3, 50, 90])
    whole = undertraining(vocabulary, lens.weights.W_E, lens.weights.W_U.T)
    asked = []
    made = space.Embedding.__getitem__

    def count(self, index):
        rows = made(self, index)
        asked.append(len(rows))
        return rows

    monkeypatch.setattr(space.Embedding, "__getitem__", count)
    monkeypatch.setattr(rows, "TILE_BYTES", 4 * 32 * 10)
    found = undertraining(vocabulary, lens.weights.W_E, space.unembedding_rows(lens.weights))
    assert len(asked) == 2 * -(-zoo.D_VOCAB // 10) + 1 and max(asked) <= 10, "tiles, twice, and the known untrained"
    torch.testing.assert_close(found[0], whole[0], atol=1e-5, rtol=1e-4)
    assert found[1] == pytest.approx(whole[1], rel=1e-3)
    monkeypatch.setattr(type(lens.weights), "W_U", property(lambda self: pytest.fail("a whole new matrix")))
    assert "trained" in repr(EmbeddingLens(tiny("gpt2"), tokenizer=zoo.tokenizer(), vocabulary="trained"))
