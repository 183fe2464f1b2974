"""Token masks, by name and given directly."""

import pytest
import torch
import zoo
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from embspace_lens import EmbeddingLens, EmbspaceError, ascii_tokens, demo, seen_in, whole_words
from embspace_lens.lens import MASKS
from embspace_lens.space.vocabulary import Vocabulary


def test_masks_select_by_string(byte_level):
    vocabulary = Vocabulary(byte_level, len(byte_level))
    mask = ascii_tokens.choose(vocabulary, lambda: ())
    is_ascii = dict(zip(vocabulary.strings, mask.tolist()))
    assert is_ascii["c"] and is_ascii[" cat"] and not is_ascii["é"] and not is_ascii["\n"]
    mask = whole_words.choose(vocabulary, lambda: ())
    assert [vocabulary.strings[i] for i in torch.nonzero(mask)[:, 0]] == [" ca", " cat"]


def chosen_words(model, decoder, **options):
    """The words of a small vocabulary."""
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoder
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)
    vocabulary = Vocabulary(fast, len(fast))
    return [vocabulary.strings[i] for i in torch.nonzero(whole_words.choose(vocabulary, lambda: ()))[:, 0]]


def test_words_of_wordpiece_have_no_continuation_marker():
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[unused0]",
        "film",
        "##film",
        "##s",
        "a",
        "the",
        "2020",
        "!",
        "café",
        "世",
        "##世",
    ]
    model = models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    assert chosen_words(model, decoders.WordPiece(), unk_token="[UNK]") == ["film", "the", "café", "世"]


def test_words_of_a_vocabulary_without_markers_are_its_alphabetic_tokens():
    model = models.WordLevel({piece: i for i, piece in enumerate(["film", "a", "7", "great", "w2", "<unk>"])}, "<unk>")
    assert chosen_words(model, None, unk_token="<unk>") == ["film", "great"]


def test_words_of_bpe_with_a_marker_behind_the_word_have_that_marker():
    pieces = ["fil", "film</w>", "m</w>", "good", "good</w>"]
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, [])
    assert chosen_words(model, decoders.BPEDecoder()) == ["film", "good"]


def test_words_of_scripts_without_spaces_need_no_space():
    pieces = [
        "▁film",
        "film",
        "▁",
        "世界",
        "我",
        "▁我",
        "これ",
        "ー",
        "の",
        "ที่",
        "▁हिन्दी",
        "हिन्दी",
        "▁한국",
        "한국",
        "▁में",
        "，",
        "<0xE4>",
    ]
    model = models.Unigram([(piece, -1.0) for piece in ["<unk>", *pieces]], unk_id=0, byte_fallback=True)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    words = chosen_words(model, decoders.Sequence(parts), unk_token="<unk>")
    assert words == [" film", "世界", "我", " 我", "これ", "ที่", " हिन्दी", " 한국", " में"]


def test_few_spaced_tokens_do_not_change_the_words_of_wordpiece():
    pieces = ["[UNK]", "film", "##s", "##ing", " added"]
    model = models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    assert chosen_words(model, decoders.WordPiece(), unk_token="[UNK]") == ["film"]


def test_error_of_an_empty_mask_names_a_mask_that_selects_tokens(tiny):
    with pytest.raises(EmbspaceError) as caught:
        EmbeddingLens(tiny("gpt2"), tokenizer=zoo.tokenizer(), vocabulary="words")
    assert str(caught.value) == (
        "The token mask 'words' selects no token of zoo. "
        "Use vocabulary='ascii', which selects 97, or vocabulary=None for all tokens."
    )


def test_combined_masks_select_their_intersection(byte_level):
    vocabulary = Vocabulary(byte_level, len(byte_level))
    texts = ["a cat, a cat", "é"]
    mask = (whole_words & seen_in(texts, at_least=2)).choose(vocabulary, lambda: ())
    assert [vocabulary.strings[i] for i in torch.nonzero(mask)[:, 0]] == [" cat"]
    assert (whole_words & ascii_tokens).name == "words & ascii"


def test_a_mask_can_be_given_by_name(tiny):
    lens = EmbeddingLens(tiny("gpt2"), tokenizer=zoo.tokenizer(), vocabulary="ascii")
    assert "97 of 97 tokens (ascii)" in repr(lens)


@pytest.mark.parametrize("tokens", [[7, 3, 7], torch.tensor([3, 7]), ["w3", "w7"], torch.arange(97) % 4 == 3])
def test_tokens_can_be_given_directly(tiny, tokens):
    lens = EmbeddingLens(tiny("gpt2"), tokenizer=zoo.tokenizer(), vocabulary=tokens)
    assert lens.mask == "given"
    assert lens.space.token_ids.tolist()[:2] == [3, 7]


def test_frequent_mask_selects_whole_words_that_occur_200_times():
    lens = EmbeddingLens.from_pretrained("reviews-small-0", vocabulary="frequent", score="cosine")
    assert lens.mask == "frequent"
    assert lens.space.token_ids.equal(demo_word_ids(lens))
    tokens = lens.neurons(layer=0, neuron=0, k=5)["token_string"]
    assert tokens.str.fullmatch(r" \w\w+").all()


def demo_word_ids(lens):
    is_word, is_seen = (mask.choose(lens.vocabulary, lambda: ()) for mask in (whole_words, demo.seen(200)))
    return torch.nonzero(is_word & is_seen)[:, 0]


def test_frequent_words_of_another_model_raise(tiny):
    with pytest.raises(EmbspaceError) as caught:
        EmbeddingLens(tiny("gpt2"), tokenizer=zoo.tokenizer(), vocabulary="frequent")
    assert str(caught.value) == (
        "zoo has 97 tokens, and the demo models' token counts (vocabulary='frequent') are for their 7,168 tokens. "
        "Use vocabulary='words', or seen_in(texts) with your own texts."
    )


def test_every_named_mask_has_its_name():
    assert {name: mask.name for name, mask in MASKS.items()} == {name: name for name in MASKS}
