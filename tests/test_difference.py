"""Differences of two models: every reading on after − before, and how far they point to words of one sign."""

import copy
import json
import math
import shutil
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from safetensors.torch import load_file, save_file
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError, demo, difference, displacement
from embspace_lens.compare.differences import _signs

ARCHITECTURES = ["gpt2", "llama", "mixtral", "gemma2"]
TUNED = "reviews-small-0-sentiment"
needs_demo = pytest.mark.skipif(TUNED not in demo.names(), reason="the demo models are not in this checkout")


def tuned(name, scale=0.05, blocks_alone=False):
    """A model and a copy of it with every weight moved a little."""
    before, after = zoo.ZOO[name](), zoo.ZOO[name]()
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    with torch.no_grad():
        for key, parameter in after.named_parameters():
            if not blocks_alone or ".h." in key or "layers" in key:
                parameter += scale * parameter.std() * torch.randn_like(parameter)
    return zoo.boot(after), zoo.boot(before)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request):
    torch.manual_seed(1)
    after, before = tuned(request.param)
    return EmbeddingLens(after), EmbeddingLens(before)


def test_every_weight_is_after_less_before(pair):
    after, before = pair
    change = difference(after, before)
    a, b = after.weights, before.weights
    for name in ("W_E", "W_U"):
        torch.testing.assert_close(getattr(change.weights, name), getattr(a, name) - getattr(b, name))
    for layer in range(b.n_layers):
        for name in ("W_Q", "W_K", "W_V", "W_O"):
            expected = a.directions(name, layer) - b.directions(name, layer)
            torch.testing.assert_close(change.weights.directions(name, layer), expected)
            assert expected.abs().max() > 0
        for name in ("W_OV", "W_QK"):
            dense, both = getattr(change.weights, name)(layer), [getattr(w, name)(layer) for w in (a, b)]
            assert dense.A.shape[-1] == both[0].A.shape[-1] + both[1].A.shape[-1]
            torch.testing.assert_close(dense.AB, both[0].AB - both[1].AB, atol=1e-4, rtol=1e-4)
        for expert in b.experts(layer) or [None]:
            for name in ("W_in", "W_out", *(["W_gate"] if b.is_gated(layer) else [])):
                expected = a.directions(name, layer, expert) - b.directions(name, layer, expert)
                torch.testing.assert_close(change.weights.directions(name, layer, expert), expected)


def test_every_reading_reads_the_change(pair):
    after, before = pair
    change = difference(after, before)
    mixed = ["expert"] if before.weights.has_experts else []
    read = change.neurons(layer=0, weight="W_out", k=3)
    check_tidy(read, ["layer", *mixed, "neuron", "weight", "rank"], list(before.neurons(layer=1, k=1)))
    expert = (before.weights.experts(0) or [None])[0]
    scores = change.weights.directions("W_out", 0, expert) @ before.weights.W_U  # into the base's tokens
    first = read.query("rank == 0")["score"].to_numpy()[: len(scores)]
    np.testing.assert_allclose(first, scores.max(dim=1).values.numpy(), rtol=1e-4, atol=1e-5)
    for table, grain in (
        (change.subheads(k=1), ["layer", "head", "subhead", "weight", "rank"]),
        (change.ov(k=2), ["layer", "head", "rank"]),
        (change.qk(k=2), ["layer", "head", "rank"]),
    ):
        check_tidy(table, grain, list(table))
        assert len(table)
    assert len(change.singular(layer=0, weight="W_OV", n_directions=2, k=1))
    assert len(change.search("w5", layer=0, k=2))
    best = change.ov(layer=1, head=0, k=1)["score"].item()
    dense = before.weights.W_E @ change.weights.W_OV(1)[0].AB @ before.weights.W_U
    assert best == pytest.approx(dense.max().item(), rel=1e-4)


def test_components_describe_the_change_and_not_the_base(pair):
    after, before = pair
    change = difference(after, before)
    df = change.components().set_index(["layer", "weight"])
    assert df.loc[(-1, "W_E"), "norm"] == pytest.approx(
        (after.weights.W_E - before.weights.W_E).norm().item(), rel=1e-4
    )
    assert df.loc[(-1, "W_U"), "norm"] == pytest.approx(change.weights.W_U.norm().item(), rel=1e-4)
    assert df.loc[(1, "W_V"), "norm"] == pytest.approx(change.weights.W_V(1).norm().item(), rel=1e-4)
    assert list(change.components()) == list(before.components())


def test_a_model_less_itself_is_nothing(lens):
    change = difference(lens, lens)
    assert set(change.components()["norm"]) == {0.0} and set(change.neurons(k=1)["score"]) == {0.0}


def test_what_was_not_tuned_has_not_changed():
    after, before = (EmbeddingLens(model) for model in tuned("gpt2", blocks_alone=True))
    norms = difference(after, before).components().set_index(["layer", "weight"])["norm"]
    assert norms.loc[(-1, "W_E")].item() == 0 and norms.loc[(0, "W_in")].item() > 0


def test_strangers_are_refused(pair, tiny):
    after, before = pair
    other = EmbeddingLens(tiny("gpt2" if before.weights.host.model.cfg.architecture != "GPT2LMHeadModel" else "llama"))
    with pytest.raises(EmbspaceError, match="a difference needs a model and its own base|is not a tuned"):
        difference(other, before)
    with pytest.raises(EmbspaceError, match=r"differ in fold_ln \(False and True\)"):
        difference(EmbeddingLens(after.weights.host.model, fold_ln=False), before)


# -- files


@needs_demo
@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda f: (f / "difference.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}"), "holds no classifier that can be read"),
        (lambda f: (f / "difference.safetensors").unlink(), "holds no classifier that can be read"),
        (lambda f: (f / "difference.json").write_text("{"), r"difference\.json"),
        (lambda f: (f / "difference.json").write_text('{"labels": ["neg", "pos"]}'), "holds no classifier that can be read"),
        (lambda f: _edit(f, base="reviews-large-0"), r"base='reviews-large-0' is not one of"),
        (lambda f: _edit(f, base="reviews-medium-0"), r"is not a difference of reviews-medium-0: .* does not fit"),
    ],
)  # fmt: skip
def test_damaged_and_foreign_differences_are_refused(damage, sentence, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(demo.MODELS / TUNED, folder)
    damage(folder)
    with pytest.raises(EmbspaceError, match=sentence):
        demo.load_tuned(folder)


def _edit(folder, **facts):
    held = json.loads((folder / "difference.json").read_text())
    (folder / "difference.json").write_text(json.dumps(held | facts))


@needs_demo
def test_a_classifiers_folder_is_a_model_like_any_other(tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(demo.MODELS / TUNED, folder)
    lens = EmbeddingLens.from_pretrained(folder)
    assert lens.name == "mine" and demo.card(folder)["base"] == "reviews-small-0"
    torch.testing.assert_close(lens.weights.W_out(3), EmbeddingLens.from_pretrained(TUNED).weights.W_out(3))
    tensors = load_file(folder / "difference.safetensors")
    save_file({k: v for k, v in tensors.items() if k.startswith("head")}, folder / "difference.safetensors")
    unchanged = EmbeddingLens.from_pretrained(folder).weights.W_out(3)
    torch.testing.assert_close(unchanged, EmbeddingLens.from_pretrained("reviews-small-0").weights.W_out(3))


# -- displacement

P, N = [f" W{i}" for i in range(10, 30)], [f"w{i}" for i in range(50, 75)]


def planted(n_planted):
    """A base, and a copy whose first neurons of block 1 write for P and against N."""
    before = zoo.boot(zoo.ZOO["gpt2"]())
    after: Any = zoo.ZOO["gpt2"]()
    after.load_state_dict(zoo.ZOO["gpt2"]().state_dict())
    E = after.transformer.wte.weight.detach()
    sign = E[10:30].mean(0) - E[50:75].mean(0)
    with torch.no_grad():
        c_proj = after.transformer.h[1].mlp.c_proj.weight  # [d_mlp, d_model]
        noise = 0.1 * torch.randn(zoo.D_MLP, zoo.D_MODEL)
        c_proj += noise
        c_proj[:n_planted] += sign - noise[:n_planted]
    return EmbeddingLens(zoo.boot(after), space="embed"), EmbeddingLens(before, space="embed")


def slow_share(lens, vectors, k):
    """Both ends of every direction, one at a time."""
    shares = []
    words = [text.strip().lower() for text in lens.vocabulary.array]
    positive, negative = ({w.strip().lower() for w in words_} for words_ in (P, N))
    for vector in vectors:
        scores = (lens.weights.W_E @ vector).tolist()
        order = sorted(range(len(scores)), key=lambda i: scores[i])
        for end in (order[:k], order[-k:]):
            up = sum(words[i] in positive for i in end)
            down = sum(words[i] in negative for i in end)
            shares.append(max(up, down) / k)
    return sum(shares) / len(shares)


def test_displacement_is_what_counting_by_hand_gives():
    after, before = planted(24)
    df = displacement(after, before, P, N, layer=1, weight="W_out", k=5, n_random=200)
    check_tidy(df, ["layer", "weight", "sample"], ["layer", "weight", "sample", "share", "low", "high", "n"])
    rows = df.set_index("sample")
    moved = after.weights.W_out(1) - before.weights.W_out(1)
    assert rows.loc["difference", "share"] == pytest.approx(slow_share(before, moved, 5), abs=1e-6)
    assert rows.loc["base", "share"] == pytest.approx(slow_share(before, before.weights.W_out(1), 5), abs=1e-6)
    noise = torch.randn(200, zoo.D_MODEL, generator=torch.Generator().manual_seed(0))
    assert rows.loc["random", "share"] == pytest.approx(slow_share(before, noise, 5), abs=1e-6)
    assert rows["n"].to_dict() == {"difference": zoo.D_MLP, "base": zoo.D_MLP, "random": 200}
    assert all(row["low"] <= row["share"] <= row["high"] for row in df.to_dict("records"))


def test_planted_words_are_found_and_nothing_is_where_nothing_was_planted():
    shares = [displacement(*planted(n), P, N, layer=1, weight="W_out", k=5).set_index("sample") for n in (zoo.D_MLP, 0)]
    assert shares[0].loc["difference", "low"] > shares[0].loc["random", "high"] + 0.2
    assert shares[1].loc["difference", "low"] < shares[1].loc["random", "high"]


def test_displacement_is_decided_by_its_seed():
    after, before = planted(8)
    one, two, other = (displacement(after, before, P, N, layer=1, weight="W_out", k=5, seed=s) for s in (0, 0, 1))
    assert one.equals(two) and not one.equals(other)


def test_what_did_not_change_has_no_share():
    after, before = planted(8)
    df = displacement(after, before, P, N, layer=0, weight="W_out", k=5).set_index("sample")
    assert df.loc["difference", "n"] == 0 and math.isnan(df.loc["difference", "share"])
    assert df.loc["base", "n"] == zoo.D_MLP


def test_a_word_of_both_lists_counts_for_neither():
    after, before = planted(24)
    both = [f"w{i}" for i in range(80, 90)]
    options = {"layer": 1, "weight": "W_out", "k": 5}
    plain = displacement(after, before, P, N, **options)
    assert displacement(after, before, [*P, *both], [*N, *both], **options).equals(plain)
    assert not displacement(after, before, [*P, *both], N, **options).equals(plain)


@pytest.mark.parametrize(
    ("lists", "sentence"),
    [
        (([], N), "Only 0 of the positive words are tokens"),
        ((P, ["w50", "elsewhere"]), "Only 1 of the negative words are tokens"),
        (("w1 w2", N), "one of them is a string"),
        ((P, P), "Only 0 of the positive words"),
    ],
)
def test_lists_that_measure_nothing_are_refused(lists, sentence):
    after, before = planted(1)
    with pytest.raises(EmbspaceError, match=sentence):
        displacement(after, before, *lists)


def test_all_weights_by_default_and_experts_too():
    after, before = (EmbeddingLens(model) for model in tuned("mixtral"))
    df = displacement(after, before, P, N, k=3, n_random=10)
    assert set(df["weight"]) == {"W_in", "W_gate", "W_out", "W_Q", "W_K", "W_V", "W_O"} and set(df["layer"]) == {0, 1}
    n_experts = len(before.weights.experts(0))
    n = df.query("weight == 'W_out' and sample == 'difference'")["n"]
    assert sorted(set(n)) == [n_experts * len(before.weights.directions("W_out", 0, 0))]


@needs_demo
def test_words_are_compared_with_tokens_without_case_or_space():
    lens = EmbeddingLens.from_pretrained("reviews-small-0")
    good, bad = (["GOOD", *(f" {w} " for w in words)] for words in (["great"] * 3, ["awful"] * 3))
    more = [text.strip() for text in lens.vocabulary.array if text.strip().isalpha()][500:600]
    sign = _signs(lens, [*good, *more[:50]], [*bad[1:], *more[50:]])
    index = lens.vocabulary.index
    found = [sign[index(text)] for text in (" good", " Good", " Great", " great", " awful")]
    assert found == [1, 1, 1, 1, -1]
