"""Strings of token ids, and ids of strings."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from embspace_lens import EmbspaceError
from embspace_lens.space.undertrained import never_trained
from embspace_lens.space.vocabulary import Vocabulary


def sentencepiece_like():
    vocabulary = [("<unk>", 0.0), ("▁cat", -1.0), ("▁▁", -2.0), ("cat", -1.5), ("<0xE2>", -3.0), ("▁", -3.0)]
    unigram = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=unigram, unk_token="<unk>")


def test_strings_are_exact(byte_level):
    tokenizer = byte_level
    vocabulary = Vocabulary(tokenizer, len(tokenizer) + 3)
    by_piece = {piece: vocabulary.strings[i] for piece, i in tokenizer.get_vocab().items()}
    assert by_piece["Ġcat"] == " cat" and by_piece["cat"] == "cat" and by_piece["Ã©"] == "é"
    assert by_piece["Ã"] == "Ã", "half of a character has the tokenizer's piece as string"
    assert vocabulary.strings[-1] == str(len(tokenizer) + 2), (
        "ids beyond the tokenizer's vocabulary are their own strings"
    )
    assert all(isinstance(text, str) and text for text in vocabulary.strings)


def test_a_merged_character_is_one_trained_token():
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


def test_leading_spaces_of_sentencepiece_are_kept():
    strings = Vocabulary(sentencepiece_like(), 6).strings.tolist()
    assert strings == ["<unk>", " cat", "  ", "cat", "<0xE2>", " "]


def test_index_of_one_token(byte_level):
    vocabulary = Vocabulary(byte_level, len(byte_level))
    assert vocabulary.strings[vocabulary.index(" cat")] == " cat"
    assert vocabulary.index(7) == 7
    with pytest.raises(EmbspaceError) as caught:
        vocabulary.index("  cat")
    assert (
        str(caught.value)
        == "\"  cat\" is 2 tokens in this vocabulary (' ', ' cat'); search() takes a single token. Did you mean ' cat'?"
    )
