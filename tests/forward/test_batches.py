"""Texts as batches of tokens."""

import pytest
import torch
import zoo
from unchecked import unchecked_types

from embspace_lens import EmbspaceError, demo
from embspace_lens.forward.batches import token_batches

TEXTS = ["w2 w3 w4", "", "w5", "w6 w7 w8 w9 w10 w11 w12", "w13 w14", "w20 w21 w22 w23 w24 w25 w26 w27 w28"]


@pytest.fixture(scope="module")
def gpt2(tiny):
    return tiny("gpt2")


def decoded_texts(batches, tokenizer):
    """The texts of the batches by example, with the rows of a split text joined."""
    rows = {}
    for batch in batches:
        for example, start, tokens, mask in zip(batch.example, batch.start, batch.tokens, batch.mask):
            rows.setdefault(int(example), {})[int(start)] = tokens[mask].tolist()
    return {n: tokenizer.decode([i for start in sorted(parts) for i in parts[start]]) for n, parts in rows.items()}


@pytest.mark.parametrize("batch_tokens", [1, 10, 8192])
def test_batches_contain_all_texts_that_are_not_empty(gpt2, batch_tokens):
    texts = decoded_texts(token_batches(gpt2, TEXTS, batch_tokens=batch_tokens), gpt2.tokenizer)
    assert texts == {n: text for n, text in enumerate(TEXTS) if text}


def test_batches_of_many_texts_have_the_given_size_and_little_padding(gpt2):
    many_texts = [f"w{2 + n % 90} " * (1 + n * 7 % 20) for n in range(2500)]
    batches = list(token_batches(gpt2, iter(many_texts), batch_tokens=64))
    assert sorted(int(n) for batch in batches for n in batch.example) == list(range(2500))
    assert max(batch.tokens.numel() for batch in batches if len(batch) > 1) <= 64
    padding = sum(int(b.tokens.numel() - b.length.sum()) for b in batches)
    assert padding < 0.1 * sum(b.tokens.numel() for b in batches)


def test_long_texts_are_cut_or_split(gpt2):
    long = " ".join(f"w{2 + n % 90}" for n in range(10_000))
    (cut,) = token_batches(gpt2, [long])
    assert cut.tokens.shape[1] <= zoo.N_CTX and int(cut.start[0]) == 0
    split = list(token_batches(gpt2, [long], overflow="split"))
    assert decoded_texts(split, gpt2.tokenizer) == {0: long}
    positions = torch.cat([batch.own_pos[batch.mask] for batch in split])
    assert sorted(positions.tolist()) == list(range(10_000))
    n_special = int(split[0].mask[0].int().argmax())
    positions_in_run = torch.cat([batch.pos[batch.mask] for batch in split])
    assert sorted(positions_in_run.tolist()) == list(range(n_special, n_special + 10_000)), "no position occurs twice"
    assert all(batch.tokens.shape[1] <= zoo.N_CTX for batch in split)
    (short,) = token_batches(gpt2, [long], max_tokens=5)
    assert short.tokens.shape[1] == 5


@pytest.mark.skipif("reviews-small-0" not in demo.names(), reason="the demo models are not in this checkout")
def test_mask_excludes_the_prepended_token():
    model = demo.load("reviews-small-0")
    (batch,) = token_batches(model, ["A fine film."])
    assert batch.tokens.tolist() == model.to_tokens("A fine film.").tolist()
    assert batch.mask[0].tolist() == [False] + [True] * (batch.tokens.shape[1] - 1)
    assert batch.own_pos[0, 1:].tolist() == list(range(batch.tokens.shape[1] - 1))
    assert batch.pos[0].tolist() == list(range(batch.tokens.shape[1])), "the prepended token has position 0"


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ("w1 w2", {}, "texts is one string"),
        ([3], {}, "Text 0 has the type int; texts are strings."),
        (["w1"], {"overflow": "wrap"}, "overflow='wrap' is not one of 'cut', 'split'."),
        (["w1"], {"max_tokens": 1}, "max_tokens=1 is not an integer of 2 or more."),
        (["w1"], {"batch_tokens": 0}, "batch_tokens=0 is not an integer of 1 or more."),
    ],
)
def test_unusable_texts_and_options_raise_an_error(gpt2, texts, options, message):
    with unchecked_types(), pytest.raises(EmbspaceError, match=message):
        list(token_batches(gpt2, texts, **options))


def test_model_without_tokenizer_raises_an_error():
    model = zoo.NATIVE["native_ln"]()
    with pytest.raises(EmbspaceError, match="has no tokenizer"):
        next(token_batches(model, ["w1"]))
