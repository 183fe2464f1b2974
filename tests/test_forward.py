"""The only forward passes: batches of tokens, hidden states, activations, states put in, and made-up text."""

from typing import Any

import pandas as pd
import pytest
import torch
import zoo

from embspace_lens import EmbspaceError, demo
from embspace_lens.forward import hidden_states as forward
from embspace_lens.forward.batches import token_batches
from embspace_lens.forward.runs import collect_activations, residual, resume
from embspace_lens.forward.sampling import own_words
from embspace_lens.forward.states import hidden_states
from embspace_lens.weights.hook_points import state_hook

TEXTS = ["w2 w3 w4", "", "w5", "w6 w7 w8 w9 w10 w11 w12", "w13 w14", "w20 w21 w22 w23 w24 w25 w26 w27 w28"]
RUNS = ["gpt2", "llama", "gemma2", "gpt_neox", "mixtral", "bloom", "falcon_7b", "cohere2"]


@pytest.fixture(scope="module")
def gpt2(tiny):
    return tiny("gpt2")


def texts_of(batches, tokenizer):
    """What the batches hold, put together again by example and place."""
    found = {}
    for batch in batches:
        for example, start, tokens, mask in zip(batch.example, batch.start, batch.tokens, batch.mask):
            found.setdefault(int(example), {})[int(start)] = tokens[mask].tolist()
    return {n: tokenizer.decode([i for start in sorted(rows) for i in rows[start]]) for n, rows in found.items()}


@pytest.mark.parametrize("batch_tokens", [1, 10, 8192])
def test_no_text_is_lost(gpt2, batch_tokens):
    found = texts_of(token_batches(gpt2, TEXTS, batch_tokens=batch_tokens), gpt2.tokenizer)
    assert found == {n: text for n, text in enumerate(TEXTS) if text}


def test_many_texts_in_windows_and_batches_within_their_size(gpt2):
    many = [f"w{2 + n % 90} " * (1 + n * 7 % 20) for n in range(2500)]
    batches = list(token_batches(gpt2, iter(many), batch_tokens=64))
    assert sorted(int(n) for batch in batches for n in batch.example) == list(range(2500))
    assert max(batch.tokens.numel() for batch in batches if len(batch) > 1) <= 64
    padding = sum(int(b.tokens.numel() - b.length.sum()) for b in batches)
    assert padding < 0.1 * sum(b.tokens.numel() for b in batches), "rows of a batch are about as long as each other"


def test_long_texts_are_cut_or_split(gpt2):
    long = " ".join(f"w{2 + n % 90}" for n in range(10_000))
    (cut,) = token_batches(gpt2, [long])
    assert cut.tokens.shape[1] <= zoo.N_CTX and int(cut.start[0]) == 0
    split = list(token_batches(gpt2, [long], overflow="split"))
    assert texts_of(split, gpt2.tokenizer) == {0: long}
    first = split[0]
    own = torch.cat([batch.own_pos[batch.mask] for batch in split])
    assert sorted(own.tolist()) == list(range(10_000)) and first.tokens.shape[1] <= zoo.N_CTX
    (short,) = token_batches(gpt2, [long], max_tokens=5)
    assert short.tokens.shape[1] == 5


@pytest.mark.skipif("reviews-small-0" not in demo.names(), reason="the demo models are not in this checkout")
def test_what_is_prepended_is_not_the_texts_own():
    model = demo.load("reviews-small-0")
    (batch,) = token_batches(model, ["A fine film."])
    assert batch.tokens.tolist() == model.to_tokens("A fine film.").tolist()
    assert batch.mask[0].tolist() == [False] + [True] * (batch.tokens.shape[1] - 1)
    assert batch.own_pos[0, 1:].tolist() == list(range(batch.tokens.shape[1] - 1))


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ("w1 w2", {}, "texts is one string"),
        ([3], {}, "Text 0 is a int, not a string"),
        (["w1"], {"overflow": "wrap"}, "overflow='wrap' is neither"),
        (["w1"], {"max_tokens": 1}, "max_tokens=1 leaves no room"),
    ],
)
def test_what_cannot_be_batched(gpt2, arguments, options, sentence):
    with pytest.raises(EmbspaceError, match=sentence):
        list(token_batches(gpt2, arguments, **options))


# -- hidden states


def available(name):
    return name in zoo.ZOO and name not in zoo.UNAVAILABLE and name not in zoo.NO_FORWARD


@pytest.mark.parametrize("name", [name for name in [*RUNS, "bert"] if available(name)])
@pytest.mark.parametrize("batch_tokens", [8, 8192])
def test_hidden_states_are_the_hosts(tiny, name, batch_tokens):
    model = tiny(name)
    found = {}
    for part in hidden_states(model, TEXTS, batch_tokens=batch_tokens):
        for layer, states in part.states.items():
            for example, pos, token, state in zip(part.example, part.pos, part.token_index, states):
                found[int(example), int(pos), layer] = (int(token), state)
    seen = 0
    for number, text in enumerate(TEXTS):
        if not text:
            continue
        (batch,) = token_batches(model, [text])
        _, cache = model.run_with_cache(batch.tokens)
        before = int((~batch.mask[0]).sum())
        for layer in range(-1, zoo.N_LAYERS):
            name = f"blocks.{layer}.hook_resid_post" if layer >= 0 else "blocks.0.hook_resid_pre"
            for pos, expected in enumerate(cache[name][0][before:]):
                token, state = found[number, pos, layer]
                torch.testing.assert_close(state, expected, atol=2e-4, rtol=2e-4)
                assert token == int(batch.tokens[0, before + pos])
                seen += 1
    assert len(found) == seen, "nothing of padding or of special tokens"


def test_hidden_states_of_a_hooked_transformer():
    if not zoo.HT_ZOO:
        pytest.skip("this TransformerLens has no HookedTransformer")
    model: Any = next(iter(zoo.HT_ZOO.values()))()
    if model.tokenizer is None:
        model.set_tokenizer(zoo.tokenizer())
    (part,) = hidden_states(model, ["w2 w3 w4"], layers=[0])
    (batch,) = token_batches(model, ["w2 w3 w4"])
    _, cache = model.run_with_cache(batch.tokens)
    torch.testing.assert_close(
        part.states[0], cache["blocks.0.hook_resid_post"][0][batch.mask[0]], atol=1e-4, rtol=1e-4
    )


def test_layers_that_are_not_there(gpt2):
    with pytest.raises(EmbspaceError, match="layer=2 is out of range"):
        list(hidden_states(gpt2, TEXTS, layers=[2]))
    assert state_hook(gpt2, 0) == "blocks.1.hook_resid_pre" and state_hook(gpt2, 1) == "blocks.1.hook_resid_post"


# -- activations


def test_activations_stop_early_and_leave_nothing(gpt2):
    (batch,) = token_batches(gpt2, TEXTS[:1])
    ran = []
    watch = [("blocks.1.hook_resid_post", lambda value, hook: ran.append(1))]
    found = collect_activations(gpt2, batch, ["blocks.0.mlp.hook_post"], hooks=watch)
    assert list(found) == ["blocks.0.mlp.hook_post"] and not ran
    assert not any(point.fwd_hooks for point in gpt2.hook_dict.values())
    _, cache = gpt2.run_with_cache(batch.tokens)
    torch.testing.assert_close(found["blocks.0.mlp.hook_post"], cache["blocks.0.mlp.hook_post"])
    with pytest.raises(EmbspaceError, match="no such hook point|Nothing passed"):
        collect_activations(gpt2, batch, ["blocks.0.hook_nothing"])


@pytest.mark.parametrize("name", [name for name in RUNS if available(name)])
@pytest.mark.parametrize("layer", [0, 1])
def test_to_go_on_from_its_own_state_is_to_run_through(tiny, name, layer):
    model = tiny(name)
    (batch,) = token_batches(model, TEXTS)
    own = residual(model, batch, layer - 1)
    end, _ = resume(model, batch, own, layer, names=[f"blocks.{layer}.hook_resid_pre"])
    expected = residual(model, batch, zoo.N_LAYERS - 1)
    torch.testing.assert_close(end[batch.mask], expected[batch.mask], atol=1e-4, rtol=1e-4)
    other, _ = resume(model, batch, own + torch.randn_like(own), layer)
    assert (other[batch.mask] - expected[batch.mask]).abs().max() > 0.01


# -- made-up text


def sampled_by_token(model, n_tokens, allowed, seed, rows):
    """The same sample, a token at a time."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.empty(rows, n_tokens, len(allowed)).exponential_(generator=generator)
    out = []
    for row in range(rows):
        text = [1 if model.tokenizer.bos_token_id is None else model.tokenizer.bos_token_id]
        text[0] = getattr(model.tokenizer, "bos_token_id", None) or 0
        for t in range(n_tokens):
            p = model(torch.tensor([text]))[0, -1, allowed].softmax(dim=-1)
            text.append(int(allowed[(p / noise[row, t]).argmax()]))
        out.append(text)
    return torch.tensor(out)


@pytest.mark.parametrize("allowed", [torch.arange(zoo.D_VOCAB), torch.tensor([5, 9, 11, 40])])
def test_made_up_text_is_the_models_exact_sample_where_the_rounds_suffice(gpt2, allowed):
    (batch,) = own_words(gpt2, 3, 6, tokens=allowed, rounds=6, seed=4)
    with torch.no_grad():
        expected = sampled_by_token(gpt2, 6, allowed, 4, 3)
    assert batch.tokens.tolist() == expected.tolist()
    assert batch.mask.tolist() == [[False] + [True] * 6] * 3 and batch.length.tolist() == [7, 7, 7]
    (few,) = own_words(gpt2, 3, 6, tokens=allowed, rounds=2, seed=4)
    assert few.tokens[:, :3].tolist() == expected[:, :3].tolist()
    assert set(few.tokens[:, 1:].flatten().tolist()) <= set(allowed.tolist())


def test_made_up_text_is_decided_by_its_seed_and_comes_in_parts(gpt2, monkeypatch):
    one, two, other = (torch.cat([b.tokens for b in own_words(gpt2, 5, 6, seed=s)]) for s in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)
    monkeypatch.setattr("embspace_lens.forward.sampling.SAMPLE_BYTES", 2 * 8 * 7 * zoo.D_VOCAB)
    parts = list(own_words(gpt2, 5, 6))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert [int(n) for part in parts for n in part.example] == list(range(5))


def test_a_model_that_looks_both_ways_writes_nothing(tiny):
    if not available("bert"):
        pytest.skip("no BERT in this zoo")
    with pytest.raises(EmbspaceError, match="looks both ways"):
        next(own_words(tiny("bert"), 1, 4))


# -- shards


def test_states_that_are_kept_are_not_computed_again(tiny, tmp_path, monkeypatch):
    model, texts = tiny("gpt2"), ["w2 w3 w4", "w5", "", "w6 w7 w8 w9", "w3 w3"]
    options = {"layers": [-1, 1], "batch_tokens": 6}
    plain = list(hidden_states(model, texts, **options))
    ran = []
    compute = forward.states_of
    monkeypatch.setattr(forward, "states_of", lambda *arguments: ran.append(1) or compute(*arguments))
    stream = hidden_states(model, texts, **options, shards=tmp_path / "kept")
    first = [next(stream), next(stream)]  # a run that is stopped here
    assert len(ran) == 2 and len(list((tmp_path / "kept").iterdir())) == 2
    again = list(hidden_states(model, texts, **options, shards=tmp_path / "kept"))
    assert len(ran) == len(plain) == len(again) > 2, "only the rest is computed"
    third = list(hidden_states(model, texts, **options, shards=tmp_path / "kept"))
    assert len(ran) == len(plain), "and then nothing"
    for a, b in zip([*first, *again, *third], [*plain[:2], *plain, *plain], strict=True):
        assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("example", "pos", "token_index"))
        assert set(a.states) == set(b.states) and all(
            torch.equal(a.states[layer], b.states[layer]) for layer in a.states
        )


def test_kept_states_of_something_else_are_refused(tiny, tmp_path):
    model, texts = tiny("gpt2"), ["w2 w3 w4", "w5 w6"]
    folder = tmp_path / "kept"
    list(hidden_states(model, texts, [0], shards=folder))
    changed = zoo.boot(zoo.ZOO["gpt2"]()).eval()
    with torch.no_grad():
        changed.blocks[1].mlp.out.weight[0, 0] += 1
    for other in (
        hidden_states(model, ["w2 w3 w4", "w5 w7"], [0], shards=folder),
        hidden_states(model, texts, [1], shards=folder),
        hidden_states(changed, texts, [0], shards=folder),
    ):
        with pytest.raises(EmbspaceError, match="made from other texts, other layers or another model"):
            list(other)
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(EmbspaceError, match="cannot be read .* Remove it, and it is made again"):
        list(hidden_states(model, texts, [0], shards=folder))
    path.unlink()
    assert len(list(hidden_states(model, texts, [0], shards=folder))) == 1
    with pytest.raises(EmbspaceError, match="cannot be made a folder"):
        list(hidden_states(model, texts, [0], shards=path))


def test_a_full_disk_keeps_what_was_kept(tiny, tmp_path, monkeypatch):
    from embspace_lens import files

    model, texts = tiny("gpt2"), ["w2 w3 w4", "w5", "w6 w7 w8 w9", "w3 w3"]
    folder = tmp_path / "kept"
    stream = hidden_states(model, texts, [0], batch_tokens=4, shards=folder)
    next(stream)
    before = {path: path.read_bytes() for path in folder.iterdir()}

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.Path, "write_bytes", full)
    with pytest.raises(EmbspaceError, match="No space left on device"):
        next(stream)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_texts_come_from_whatever_holds_them(tiny, tmp_path):
    model, texts = tiny("gpt2"), ["w2 w3 w4", "w5 w6"]
    expected = [part.token_index.tolist() for part in hidden_states(model, texts, [0])]
    pd.DataFrame({"review": texts}).to_parquet(tmp_path / "texts.parquet")
    (tmp_path / "texts.txt").write_text("w2 w3 w4\n\nw5 w6\n")

    class Dataset:
        column_names = ("review",)

        def __iter__(self):
            return iter({"review": text} for text in texts)

        def __len__(self):
            return 2

    for source, column in (
        (iter(texts), "text"),
        (tmp_path / "texts.parquet", "review"),
        (str(tmp_path / "texts.txt"), "text"),
        (Dataset(), "review"),
    ):
        assert [part.token_index.tolist() for part in hidden_states(model, source, [0], column=column)] == expected
    with pytest.raises(EmbspaceError, match="has no column 'text'; its columns are 'review'"):
        list(hidden_states(model, Dataset(), [0]))
