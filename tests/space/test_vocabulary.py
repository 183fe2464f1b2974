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
    assert by_piece["Ã"] == "<0xC3>", "half of a character is shown as its byte"
    assert vocabulary.strings[-1] == str(len(tokenizer) + 2), (
        "ids beyond the tokenizer's vocabulary are their own strings"
    )
    assert all(isinstance(text, str) and text for text in vocabulary.strings)


def test_no_byte_that_is_part_of_a_character_is_shown_as_a_letter():
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ã©", "ĠâĸĪ", "Ġâĸ", "aÃ", "ï¿½"]
    bpe = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    bpe.decoder = decoders.ByteLevel()
    vocabulary = Vocabulary(PreTrainedTokenizerFast(tokenizer_object=bpe), len(pieces))
    text_of = dict(zip(pieces, vocabulary.strings, strict=True))
    assert text_of["é"] == "<0xE9>" and text_of["Ã©"] == "é" and list(vocabulary.strings).count("é") == 1
    assert text_of["ĠâĸĪ"] == " █" and text_of["Ġâĸ"] == " <0xE2><0x96>" and text_of["aÃ"] == "a<0xC3>"
    assert len(set(vocabulary.strings)) == len(pieces), "no two tokens look the same"
    assert not any(text.isalpha() and not text.isascii() for text in vocabulary.strings[:256])


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
        == "\"  cat\" is 2 tokens in this vocabulary (' ', ' cat'); each string given to search() must be one token. Did you mean ' cat'?"
    )
