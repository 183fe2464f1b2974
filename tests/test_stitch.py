"""Stitched models and their sweep: against the models they are made of, with hooks, on disk, and measured."""

import json
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
import zoo
from scipy.stats import binomtest
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError, PooledHead, StitchedModel, stitch, stitch_sweep, translate
from embspace_lens.compare.translation import identity
from embspace_lens.forward.batches import TokenBatch, token_batches
from embspace_lens.forward.runs import collect_activations

TEXTS = ["w2 w3 w4", "w5", "w6 w7 w8 w9 w10 w11 w12", "w13 w14", "w20 w21 w22 w23 w24 w25 w26 w27 w28"]
LABELS = ["pos", "neg", "pos", "neg", "pos"]


@pytest.fixture(autouse=True)
def a_small_vocabulary_will_do(monkeypatch):
    for name in ("FEWEST", "FEW"):
        monkeypatch.setattr(f"embspace_lens.compare.common_tokens.{name}", 10)


def head(d_model=zoo.D_MODEL, seed=0):
    torch.manual_seed(seed)
    return PooledHead(d_model, ["neg", "pos"]).eval()


@pytest.fixture(scope="module", params=["gpt2", "llama", "gemma2", "gpt_neox"])
def lens_of(request, tiny):
    return EmbeddingLens(tiny(request.param))


@pytest.fixture(scope="module")
def two(tiny):
    return EmbeddingLens(tiny("llama")), EmbeddingLens(tiny("gpt2"))


def by_hand(lens, text, head, intervene=None):
    """One text, no padding: the whole model, the mean of its last states, the head."""
    (batch,) = token_batches(lens.weights.host.model, [text])
    name = f"blocks.{lens.weights.n_layers - 1}.hook_resid_post"
    found = collect_activations(lens.weights.host.model, batch, [name], hooks=intervene or [])
    state = found[name][0][batch.mask[0]]
    return head.linear(state.mean(dim=0))


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_a_model_stitched_to_itself_is_itself(lens_of, keep):
    h = head()
    model = stitch(lens_of, lens_of, keep=keep, graft=2 - keep, translation=identity(lens_of, lens_of), head=h)
    with torch.no_grad():
        expected = torch.stack([by_hand(lens_of, text, h) for text in TEXTS])
    torch.testing.assert_close(model.logits(TEXTS), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("keep", "graft"), [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1), (1, 2), (2, 2)])
def test_stitching_by_hand(two, keep, graft):
    recipient, donor = two
    h, t = head(), translate(recipient, donor, inverse="least_squares")
    model = stitch(recipient, donor, keep=keep, graft=graft, translation=t, head=h)
    r, d = (lens.weights.host.model for lens in two)
    for text in TEXTS[:3]:
        (batch,) = token_batches(r, [text])
        entrance = f"blocks.{keep}.hook_resid_pre" if keep < 2 else "blocks.1.hook_resid_post"
        with torch.no_grad():
            state = t.state(collect_activations(r, batch, [entrance])[entrance])
            if graft:
                swap = [(f"blocks.{2 - graft}.hook_resid_pre", lambda value, hook, state=state: state)]
                name = "blocks.1.hook_resid_post"
                state = collect_activations(d, batch, [name], hooks=swap)[name]
            expected = h.linear(state[0][batch.mask[0]].mean(dim=0))
        torch.testing.assert_close(model.logits([text])[0], expected, atol=1e-4, rtol=1e-4)


def test_padding_and_batches_make_no_difference(two):
    h = head()
    model = stitch(*two, keep=1, graft=1, translation=translate(*two), head=h)
    together, alone = model.logits(TEXTS), torch.cat([model.logits([text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.logits(TEXTS, batch_tokens=10), alone, atol=1e-4, rtol=1e-4)
    (batch,) = model.batches(TEXTS)
    noise = torch.where(batch.mask | (torch.arange(batch.tokens.shape[1]) == 0), batch.tokens, 7)
    other = TokenBatch(batch.example, batch.start, noise, batch.mask, batch.length)
    torch.testing.assert_close(model(other), model(batch), atol=1e-4, rtol=1e-4)


def test_empty_texts_have_no_scores(two):
    model = stitch(*two, keep=1, graft=1, translation=translate(*two), head=head())
    scores = model.logits(["", "w3 w4"])
    assert scores[0].isnan().all() and not scores[1].isnan().any()
    assert model.logits([]).shape == (0, 2)


def test_hooks_on_both_halves(two):
    model = stitch(*two, keep=1, graft=1, translation=translate(*two), head=head())
    (batch,) = model.batches(TEXTS[:1])
    plain = model(batch)
    seen = []

    def double(value, hook):
        seen.append(value)
        return 2 * value

    for name in ("recipient.blocks.0.hook_resid_post", "translation.hook_out", "donor.blocks.1.attn.hook_z", "head.hook_pooled"):  # fmt: skip
        seen.clear()
        changed = model.run_with_hooks(batch, [(name, double)])
        assert len(seen) == 1 and not torch.allclose(changed, plain), name
    pooled = model.run_with_hooks(batch, [("head.hook_pooled", double)])
    bias = model.head.linear.bias
    torch.testing.assert_close(pooled - bias, 2 * (plain - bias), atol=1e-4, rtol=1e-4)
    changed = model.run_with_hooks(batch, [("recipient.blocks.0.hook_resid_post", double)])
    mine = model.run_with_hooks(batch, [("translation.hook_out", double)])
    torch.testing.assert_close(changed, mine, atol=1e-4, rtol=1e-4)  # a linear map: twice in, twice out
    torch.testing.assert_close(model(batch), plain)
    for half in (model.recipient, model.donor):
        assert not any(point.fwd_hooks for point in half.hook_dict.values()), "nothing is left on the models"


def test_what_passed_comes_back(two):
    model = stitch(*two, keep=1, graft=1, translation=translate(*two), head=head())
    (batch,) = model.batches(TEXTS[:2])
    scores, cache = model.run_with_cache(batch)
    assert list(cache) == [
        "recipient.blocks.0.hook_resid_post", "translation.hook_out", "donor.blocks.1.hook_resid_post", "head.hook_pooled"
    ]  # fmt: skip
    torch.testing.assert_close(scores, model(batch))
    state = model.translation.state(cache["recipient.blocks.0.hook_resid_post"])
    torch.testing.assert_close(cache["translation.hook_out"], state)
    torch.testing.assert_close(scores, model.head.linear(cache["head.hook_pooled"]))
    for name, sentence in (
        ("blocks.0.hook_resid_post", "is no hook point of a stitched model"),
        ("recipient.blocks.1.hook_resid_post", "of the recipient, blocks 0 do"),
        ("donor.blocks.0.attn.hook_z", "of the donor, blocks 1 do"),
    ):
        with pytest.raises(EmbspaceError, match=sentence):
            model.run_with_cache(batch, [name])


def test_saved_and_loaded_it_is_the_same(two, tmp_path):
    model = stitch(*two, keep=1, graft=2, translation=translate(*two, rank=5), head=head())
    folder = model.save(tmp_path / "a" / "b")
    assert sorted(path.name for path in folder.iterdir()) == ["cfg.json", "stitched.safetensors"]
    again = StitchedModel.load(folder, *two)
    torch.testing.assert_close(again.logits(TEXTS), model.logits(TEXTS), atol=1e-5, rtol=1e-4)
    assert (again.keep, again.graft, again.labels) == (1, 2, ("neg", "pos"))
    assert again.translation.facts() == model.translation.facts()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda f: (f / "cfg.json").unlink(), r"cfg\.json"),
        (lambda f: (f / "cfg.json").write_text("[1"), r"cfg\.json"),
        (lambda f: (f / "cfg.json").write_text("{}"), "holds no stitched model"),
        (lambda f: (f / "stitched.safetensors").write_bytes(b"x" * 40), "holds no stitched model"),
        (lambda f: _edit(f / "cfg.json", keep=3), "keep=3 is not between 0 and 2"),
        (lambda f: _edit(f / "cfg.json", source="another"), "was stitched with another, not with"),
    ],
)
def test_damaged_and_foreign_folders_are_refused(damage, sentence, two, tmp_path):
    folder = stitch(*two, keep=1, graft=1, translation=translate(*two), head=head()).save(tmp_path)
    damage(folder)
    with pytest.raises(EmbspaceError, match=sentence):
        StitchedModel.load(folder, *two)


def _edit(path, **facts):
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_a_translation_of_other_widths_is_refused(two, demo_lens):
    t = translate(demo_lens, demo_lens)
    with pytest.raises(EmbspaceError, match="The translation goes from width 192, but .* has d_model=32"):
        stitch(*two, keep=1, graft=1, translation=t, head=head())


# -- the sweep


def test_the_sweep_is_every_stitched_model_and_its_controls(two):
    recipient, donor = two
    donors = {"a": (donor, head(seed=1)), "b": (donor, head(seed=2))}
    df = stitch_sweep(
        recipient, donors, TEXTS, LABELS, graft=1, kernels=["pinv", "transpose", "untranslated"], batch_tokens=16
    )
    check_tidy(
        df,
        ["recipient", "donor", "kernel", "keep"],
        ["recipient", "donor", "kernel", "keep", "accuracy", "low", "high", "n"],
    )
    assert len(df) == 2 * (2 + 3 * 3)
    for (name, (lens, h)), kernel in zip(donors.items(), ("pinv", "transpose")):
        for keep in range(3):
            made = stitch(
                recipient, lens, keep=keep, graft=1, translation=translate(recipient, lens, inverse=kernel), head=h
            )
            guesses = [h.labels[i] for i in made.logits(TEXTS).argmax(1).tolist()]
            row = df[(df["donor"] == name) & (df["kernel"] == kernel) & (df["keep"] == keep)].iloc[0]
            assert row["accuracy"] == pytest.approx(np.mean([g == t for g, t in zip(guesses, LABELS)]))
            interval = binomtest(round(row["accuracy"] * 5), 5).proportion_ci(method="wilson")
            assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high)) and row["n"] == 5
    own = df[(df["kernel"] == "donor") & (df["donor"] == "b")].iloc[0]
    with torch.no_grad():  # the donor reads the recipient's tokens; here both have one tokenizer
        guesses = [("neg", "pos")[int(by_hand(donor, text, donors["b"][1]).argmax())] for text in TEXTS]
    assert own["accuracy"] == pytest.approx(np.mean([g == t for g, t in zip(guesses, LABELS)])) and own["keep"] == -1
    assert set(df[df["kernel"] == "chance"]["accuracy"]) == {np.float32(0.6)}


def test_an_interrupted_sweep_goes_on_to_the_same_table(two, tmp_path, monkeypatch):
    donors = {"a": (two[1], head(seed=1))}
    options: dict[str, Any] = {"graft": 1, "kernels": ["least_squares", "random"], "batch_tokens": 10}
    whole = stitch_sweep(two[0], donors, TEXTS, LABELS, **options)
    path = tmp_path / "sweep.json"
    from embspace_lens.compare import stitching_sweep as sweep

    calls, right = [], sweep._right

    def fails(*arguments):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return right(*arguments)

    with monkeypatch.context() as m:
        m.setattr(sweep, "_right", fails)
        with pytest.raises(KeyboardInterrupt):
            stitch_sweep(two[0], donors, TEXTS, LABELS, checkpoint=path, **options)
    assert 0 < json.loads(path.read_text())["n"] < len(TEXTS)
    before = len(calls)
    with monkeypatch.context() as m:
        m.setattr(sweep, "_right", lambda *a: calls.append(1) or right(*a))
        again = stitch_sweep(two[0], donors, TEXTS, LABELS, checkpoint=path, **options)
    pd.testing.assert_frame_equal(again, whole)
    n_batches = len(list(token_batches(two[0].weights.host.model, TEXTS, batch_tokens=10)))
    assert len(calls) - before < 7 * n_batches, "what was done is not done again"
    pd.testing.assert_frame_equal(stitch_sweep(two[0], donors, TEXTS, LABELS, checkpoint=path, **options), whole)
    another: dict[str, Any] = options | {"graft": 2}
    with pytest.raises(EmbspaceError, match="holds another sweep"):
        stitch_sweep(two[0], donors, TEXTS, LABELS, checkpoint=path, **another)


def test_a_kernel_of_ones_own(two):
    asked = []

    def mine(recipient, donor, layer_source, layer_target):
        asked.append((layer_source, layer_target))
        return translate(recipient, donor, inverse="procrustes")

    donors = {"a": (two[1], head(seed=1))}
    df = stitch_sweep(two[0], donors, TEXTS, LABELS, graft=1, kernels={"mine": mine, "theirs": "procrustes"})
    assert asked == [(-1, 0), (0, 0), (1, 0)]
    a, b = (df[df["kernel"] == k]["accuracy"].tolist() for k in ("mine", "theirs"))
    assert a == b


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"texts": []}, "There are no texts"),
        ({"texts": "w1 w2"}, "There are no texts"),
        ({"labels": ["pos"] * 5}, "All 5 texts are 'pos'"),
        ({"labels": LABELS[:4]}, "There are 5 texts and 4 labels"),
        ({"labels": [*LABELS[:4], "meh"]}, "label 'meh' is not among those of a's head: neg, pos"),
        ({"donors": {}}, "donors is a mapping"),
        ({"graft": 3}, "graft=3 is not between 0 and 2"),
        ({"keep": [0, 3]}, "keep=3 is not between 0 and 2"),
        ({"kernels": ["best"]}, "inverse='best' is not one of"),
        ({"kernels": {"chance": "pinv"}}, "kernels holds 'chance'"),
    ],
)
def test_mistakes_are_sentences(change, sentence, two):
    arguments = {
        "donors": {"a": (two[1], head())},
        "texts": TEXTS,
        "labels": LABELS,
        "graft": 1,
        "kernels": ["pinv"],
    } | change
    with pytest.raises(EmbspaceError, match=sentence):
        stitch_sweep(two[0], **arguments)


def test_a_head_of_another_width_or_kind(two):
    with pytest.raises(EmbspaceError, match="head's directions have width 7"):
        stitch_sweep(two[0], {"a": (two[1], head(7))}, TEXTS, LABELS, graft=1)
    with pytest.raises(EmbspaceError, match="Linear is not a PooledHead"):
        stitch(*two, keep=1, graft=1, translation=translate(*two), head=cast(Any, torch.nn.Linear(32, 2)))
