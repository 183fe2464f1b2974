"""Text sampled from a model."""

import pytest
import torch
import zoo

from embspace_lens import EmbspaceError, demo
from embspace_lens.forward import sample_texts, sample_tokens
from embspace_lens.search.tiles import chunk_bytes

needs_demo = pytest.mark.skipif(
    "reviews-small-0" not in demo.names(), reason="the demo models are not in this checkout"
)


@pytest.fixture(scope="module")
def gpt2(tiny):
    return tiny("gpt2")


@pytest.fixture(scope="module")
def bert(tiny):
    if "bert" in zoo.UNAVAILABLE:
        pytest.skip(zoo.UNAVAILABLE["bert"])
    return tiny("bert")


def sampled_one_by_one(model, n_tokens, candidates, seed, n_rows, top_k=None):
    """The same sample, computed token by token."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.empty(n_rows, n_tokens, len(candidates)).exponential_(generator=generator)
    rows = []
    for row in range(n_rows):
        text = [getattr(model.tokenizer, "bos_token_id", None) or 0]
        for t in range(n_tokens):
            logits = model(torch.tensor([text]))[0, -1, candidates]
            probabilities = logits.softmax(dim=-1)
            if top_k is not None:
                probabilities[logits.argsort(descending=True)[top_k:]] = 0
            text.append(int(candidates[(probabilities / noise[row, t]).argmax()]))
        rows.append(text)
    return torch.tensor(rows)


@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize("candidates", [torch.arange(zoo.D_VOCAB), torch.tensor([5, 9, 11, 40])])
def test_each_round_makes_one_more_token_exact(gpt2, candidates, top_k):
    options = {"tokens": candidates, "top_k": top_k, "seed": 4}
    (batch,) = sample_tokens(gpt2, 3, 6, rounds=6, **options)
    with torch.no_grad():
        expected = sampled_one_by_one(gpt2, 6, candidates, 4, 3, top_k)
    assert batch.tokens.tolist() == expected.tolist()
    assert batch.mask.tolist() == [[False] + [True] * 6] * 3 and batch.length.tolist() == [7, 7, 7]
    (few_rounds,) = sample_tokens(gpt2, 3, 6, rounds=2, **options)
    assert few_rounds.tokens[:, :3].tolist() == expected[:, :3].tolist()
    assert set(few_rounds.tokens[:, 1:].flatten().tolist()) <= set(candidates.tolist())


def test_sampling_stops_once_a_round_changes_nothing(gpt2, monkeypatch):
    """With one candidate the first round is exact, and the second changes nothing."""
    forward, calls = type(gpt2).forward, []
    monkeypatch.setattr(type(gpt2), "forward", lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs))
    (batch,) = sample_tokens(gpt2, 2, 12, tokens=torch.tensor([7]), rounds=11)
    assert batch.tokens[:, 1:].unique().tolist() == [7] and len(calls) <= 2


def test_sampling_one_token_at_a_time_equals_sampling_all_positions_at_once(gpt2):
    (batch,) = sample_tokens(gpt2, 2, 12, rounds=12)
    generator = torch.Generator().manual_seed(0)
    noise = torch.empty(2, 12, zoo.D_VOCAB).exponential_(generator=generator)
    rows = batch.tokens.clone()
    rows[:, 1:] = 5
    with torch.no_grad():
        for _ in range(12):
            rows[:, 1:] = (gpt2(rows[:, :-1]).softmax(dim=-1) / noise).argmax(dim=-1)
    assert batch.tokens.tolist() == rows.tolist()


def test_sample_depends_on_the_seed_alone(gpt2):
    first, same_seed, other_seed = (torch.cat([b.tokens for b in sample_tokens(gpt2, 5, 6, seed=s)]) for s in (0, 0, 1))
    assert torch.equal(first, same_seed) and not torch.equal(first, other_seed)


def test_large_samples_are_split_into_batches(gpt2):
    with chunk_bytes(8 * zoo.D_VOCAB * 7 * 2 // 16 + 1):  # two rows of 7 tokens
        batches = list(sample_tokens(gpt2, 5, 6))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert [int(n) for batch in batches for n in batch.example] == list(range(5))


def test_sampling_from_a_bidirectional_model_raises_an_error(bert):
    for sample in (lambda: next(sample_tokens(bert, 1, 4)), lambda: sample_texts(bert)):
        with pytest.raises(EmbspaceError, match="Sampling needs a causal model; zoo is bidirectional. Pass texts"):
            sample()


@pytest.mark.parametrize("top_k", [0, 5])
def test_top_k_beyond_the_candidates_raises_an_error(gpt2, top_k):
    message = f"top_k={top_k} is not an integer from 1 to 4, the number of tokens to sample from."
    with pytest.raises(EmbspaceError, match=message):
        next(sample_tokens(gpt2, 1, 4, tokens=torch.tensor([5, 9, 11, 40]), top_k=top_k))


@needs_demo
def test_texts_depend_only_on_the_seed_and_have_no_special_tokens():
    model = demo.load("reviews-small-0")
    random_state = torch.get_rng_state()
    texts = sample_texts(model, n=2, n_tokens=8, seed=3)
    assert 1 <= len(texts) <= 2 and all(1 <= len(model.tokenizer(text).input_ids) <= 12 for text in texts)
    assert texts == sample_texts(model, n=2, n_tokens=8, seed=3) != sample_texts(model, n=2, n_tokens=8, seed=4)
    assert torch.equal(random_state, torch.get_rng_state()) and not any("<|" in text for text in texts)


@needs_demo
def test_texts_end_at_the_end_of_sequence():
    model = demo.load("reviews-small-0")
    options = {"top_k": 50, "rounds": 8, "seed": 0}
    end_of_text = model.tokenizer.eos_token_id
    rows = [row[1:].tolist() for batch in sample_tokens(model, 40, 8, **options) for row in batch.tokens]
    assert any(end_of_text in row for row in rows)
    cut = [row[: row.index(end_of_text)] if end_of_text in row else row for row in rows]
    texts = [text for text in model.tokenizer.batch_decode(cut) if text.strip()]
    assert sample_texts(model, n=40, n_tokens=8) == texts


def test_texts_longer_than_the_context_raise_an_error(gpt2):
    with pytest.raises(EmbspaceError, match="n_tokens=24 is not an integer from 1 to 23."):
        sample_texts(gpt2, n_tokens=24)


def test_texts_need_a_tokenizer():
    with pytest.raises(EmbspaceError, match="has no tokenizer"):
        sample_texts(zoo.NATIVE["native_ln"]())
