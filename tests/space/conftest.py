"""A small tokenizer of the same kind as GPT-2's."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


@pytest.fixture
def byte_level():
    """Byte-level BPE: every byte is a token, then a few words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, "Ġc", "Ġca", "Ġcat", "ca", "cat", "Ġé"])}
    bpe = Tokenizer(
        models.BPE(vocab={**vocabulary, "Ã©": len(vocabulary)}, merges=[("Ġ", "c"), ("Ġc", "a"), ("Ġca", "t")])
    )
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe)
