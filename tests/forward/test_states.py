"""Hidden states equal those of TransformerLens, and are cached on disk."""

from typing import Any

import pandas as pd
import pytest
import torch
import zoo

from embspace_lens import EmbspaceError, files
from embspace_lens.forward import states as states_module
from embspace_lens.forward.batches import token_batches
from embspace_lens.forward.states import hidden_states
from embspace_lens.weights.hook_points import state_hook

TEXTS = ["w2 w3 w4", "", "w5", "w6 w7 w8 w9 w10 w11 w12", "w13 w14", "w20 w21 w22 w23 w24 w25 w26 w27 w28"]
FAMILIES = ["gpt2", "llama", "gemma2", "gpt_neox", "mixtral", "bloom", "falcon_7b", "cohere2", "bert"]


def available(name):
    return name in zoo.ZOO and name not in zoo.UNAVAILABLE and name not in zoo.NO_FORWARD


@pytest.mark.parametrize("name", [name for name in FAMILIES if available(name)])
@pytest.mark.parametrize("batch_tokens", [8, 8192])
def test_hidden_states_equal_those_of_the_host(tiny, name, batch_tokens):
    model = tiny(name)
    actual = {}
    for batch in hidden_states(model, TEXTS, batch_tokens=batch_tokens):
        for layer, states in batch.states.items():
            for example, pos, token, state in zip(batch.example, batch.pos, batch.token_index, states):
                actual[int(example), int(pos), layer] = (int(token), state)
    n_expected = 0
    for example, text in enumerate(TEXTS):
        if not text:
            continue
        (batch,) = token_batches(model, [text])
        _, cache = model.run_with_cache(batch.tokens)
        n_special = int((~batch.mask[0]).sum())
        for layer in range(-1, zoo.N_LAYERS):
            hook = f"blocks.{layer}.hook_resid_post" if layer >= 0 else "blocks.0.hook_resid_pre"
            for pos, expected in enumerate(cache[hook][0]):
                if pos < n_special:
                    continue
                token, state = actual[example, pos, layer]
                torch.testing.assert_close(state, expected, atol=2e-4, rtol=2e-4)
                assert token == int(batch.tokens[0, pos])
                n_expected += 1
    assert len(actual) == n_expected, "padding and special tokens have no rows"


@pytest.mark.skipif(not zoo.HT_ZOO, reason="TransformerLens 4 has no HookedTransformer")
def test_hidden_states_of_a_hooked_transformer_equal_its_cache():
    model: Any = next(iter(zoo.HT_ZOO.values()))()
    if model.tokenizer is None:
        model.set_tokenizer(zoo.tokenizer())
    (states,) = hidden_states(model, ["w2 w3 w4"], layers=[0])
    (batch,) = token_batches(model, ["w2 w3 w4"])
    _, cache = model.run_with_cache(batch.tokens)
    expected = cache["blocks.0.hook_resid_post"][0][batch.mask[0]]
    torch.testing.assert_close(states.states[0], expected, atol=1e-4, rtol=1e-4)


def test_layers_out_of_range_raise_an_error(tiny):
    with pytest.raises(EmbspaceError, match="layer=2 is out of range"):
        list(hidden_states(tiny("gpt2"), TEXTS, layers=[2]))
    with pytest.raises(EmbspaceError, match="layers selects no layer"):
        list(hidden_states(tiny("gpt2"), TEXTS, layers=[]))


def test_state_hook_lets_the_forward_pass_stop_before_the_last_block(tiny):
    assert state_hook(tiny("gpt2"), 0) == "blocks.1.hook_resid_pre"
    assert state_hook(tiny("gpt2"), 1) == "blocks.1.hook_resid_post"


def test_one_layer_may_be_an_integer(tiny):
    (one,) = hidden_states(tiny("gpt2"), ["w2 w3"], 1)
    assert list(one.states) == [1]


# -- cache


def equal(a, b):
    tensors_equal = all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("example", "pos", "token_index"))
    return (
        tensors_equal
        and a.states.keys() == b.states.keys()
        and all(torch.equal(a.states[layer], b.states[layer]) for layer in a.states)
    )


def test_cached_states_are_not_computed_again(tiny, tmp_path, monkeypatch):
    model, texts, folder = tiny("gpt2"), ["w2 w3 w4", "w5", "", "w6 w7 w8 w9", "w3 w3"], tmp_path / "states"
    options = {"layers": [-1, 1], "batch_tokens": 6}
    expected = list(hidden_states(model, texts, **options))
    calls = []
    compute = states_module.states_of
    monkeypatch.setattr(states_module, "states_of", lambda *arguments: calls.append(1) or compute(*arguments))
    stream = hidden_states(model, texts, **options, shards=folder)
    interrupted = [next(stream), next(stream)]
    assert len(calls) == 2 and len(list(folder.iterdir())) == 2
    resumed = list(hidden_states(model, texts, **options, shards=folder))
    assert len(calls) == len(expected) == len(resumed) > 2
    from_cache = list(hidden_states(model, texts, **options, shards=folder))
    assert len(calls) == len(expected)
    for actual, expected_states in zip(
        [*interrupted, *resumed, *from_cache], [*expected[:2], *expected, *expected], strict=True
    ):
        assert equal(actual, expected_states)


def test_cache_of_other_texts_layers_or_models_raises_an_error(tiny, tmp_path):
    model, texts, folder = tiny("gpt2"), ["w2 w3 w4", "w5 w6"], tmp_path / "states"
    list(hidden_states(model, texts, [0], shards=folder))
    changed = zoo.boot(zoo.ZOO["gpt2"]()).eval()
    with torch.no_grad():
        changed.blocks[1].mlp.out.weight[0, 0] += 1
    for other_stream in (
        hidden_states(model, ["w2 w3 w4", "w5 w7"], [0], shards=folder),
        hidden_states(model, texts, [1], shards=folder),
        hidden_states(changed, texts, [0], shards=folder),
    ):
        with pytest.raises(EmbspaceError, match="computed from other texts, other layers or another model"):
            list(other_stream)


def test_damaged_cache_raises_an_error(tiny, tmp_path):
    model, texts, folder = tiny("gpt2"), ["w2 w3 w4", "w5 w6"], tmp_path / "states"
    list(hidden_states(model, texts, [0], shards=folder))
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(EmbspaceError, match="cannot be read .* Remove it; it is then computed again"):
        list(hidden_states(model, texts, [0], shards=folder))
    path.unlink()
    assert len(list(hidden_states(model, texts, [0], shards=folder))) == 1
    with pytest.raises(EmbspaceError, match="The folder .* cannot be created"):
        list(hidden_states(model, texts, [0], shards=path))


def test_full_disk_leaves_the_cache_unchanged(tiny, tmp_path, monkeypatch):
    model, texts, folder = tiny("gpt2"), ["w2 w3 w4", "w5", "w6 w7 w8 w9", "w3 w3"], tmp_path / "states"
    stream = hidden_states(model, texts, [0], batch_tokens=4, shards=folder)
    next(stream)
    before = {path: path.read_bytes() for path in folder.iterdir()}

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.Path, "write_bytes", full)
    with pytest.raises(EmbspaceError, match="No space left on device"):
        next(stream)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


# -- sources of texts


def test_states_do_not_depend_on_the_kind_of_source(tiny, tmp_path):
    model, texts = tiny("gpt2"), ["w2 w3 w4", "w5 w6"]
    expected = [states.token_index.tolist() for states in hidden_states(model, texts, [0])]
    frame = pd.DataFrame({"review": texts})
    frame.to_parquet(tmp_path / "texts.parquet")
    (tmp_path / "texts.txt").write_text("w2 w3 w4\n\nw5 w6\n")

    class Dataset:
        column_names = ("review",)

        def __iter__(self):
            return iter({"review": text} for text in texts)

        def __len__(self):
            return 2

    for source, column in (
        (iter(texts), "text"),
        (frame, "review"),
        (tmp_path / "texts.parquet", "review"),
        (str(tmp_path / "texts.txt"), "text"),
        (Dataset(), "review"),
    ):
        assert [h.token_index.tolist() for h in hidden_states(model, source, [0], column=column)] == expected
    with pytest.raises(EmbspaceError, match="has no column 'text'. Its columns are 'review'"):
        list(hidden_states(model, Dataset(), [0]))
