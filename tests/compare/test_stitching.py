"""Stitched models: compared with the models that they combine, with hooks, and on disk."""

import json
from typing import Any, cast

import pytest
import torch
from classifiers import TEXTS, classify, pooled_head
from model_pairs import lens_of

from embspace_lens import EmbspaceError, StitchedModel, stitch, translate
from embspace_lens.compare.translation import untranslated
from embspace_lens.forward.batches import TokenBatch, token_batches
from embspace_lens.forward.runs import collect_activations

pytestmark = pytest.mark.filterwarnings("ignore:.*a comparison over so few tokens is weak")


@pytest.mark.parametrize("keep", [0, 1, 2])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_model_stitched_to_itself_equals_the_model(family, keep):
    lens, head = lens_of(family), pooled_head()
    model = stitch(lens, lens, keep=keep, graft=2 - keep, translation=untranslated(lens, lens), head=head)
    with torch.no_grad():
        expected = torch.stack([classify(lens, text, head) for text in TEXTS])
    torch.testing.assert_close(model.logits(TEXTS), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("keep", "graft"), [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1), (1, 2), (2, 2)])
def test_logits_equal_those_of_the_parts_in_sequence(recipient_and_donor, keep, graft):
    recipient, donor = recipient_and_donor
    head, translation = pooled_head(), translate(recipient, donor, inverse="least_squares")
    model = stitch(recipient, donor, keep=keep, graft=graft, translation=translation, head=head)
    for text in TEXTS[:3]:
        (batch,) = token_batches(recipient.model, [text])
        input_hook = f"blocks.{keep}.hook_resid_pre" if keep < 2 else "blocks.1.hook_resid_post"
        with torch.no_grad():
            state = translation.state(collect_activations(recipient.model, batch, [input_hook])[input_hook])
            if graft:
                replacement_hooks = [(f"blocks.{2 - graft}.hook_resid_pre", lambda value, hook, state=state: state)]
                name = "blocks.1.hook_resid_post"
                state = collect_activations(donor.model, batch, [name], hooks=replacement_hooks)[name]
            expected = head.linear(state[0][batch.mask[0]].mean(dim=0))
        torch.testing.assert_close(model.logits([text])[0], expected, atol=1e-4, rtol=1e-4)


def test_result_is_independent_of_padding_and_batch_size(recipient_and_donor):
    model = stitch(
        *recipient_and_donor, keep=1, graft=1, translation=translate(*recipient_and_donor), head=pooled_head()
    )
    batched, single = model.logits(TEXTS), torch.cat([model.logits([text]) for text in TEXTS])
    torch.testing.assert_close(batched, single, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.logits(TEXTS, batch_tokens=10), single, atol=1e-4, rtol=1e-4)
    (batch,) = model.batches(TEXTS)
    noise = torch.where(batch.mask | (torch.arange(batch.tokens.shape[1]) == 0), batch.tokens, 7)
    changed_padding = TokenBatch(batch.example, batch.start, noise, batch.mask, batch.length)
    torch.testing.assert_close(model(changed_padding), model(batch), atol=1e-4, rtol=1e-4)


def test_scores_of_empty_texts_are_nan(recipient_and_donor):
    model = stitch(
        *recipient_and_donor, keep=1, graft=1, translation=translate(*recipient_and_donor), head=pooled_head()
    )
    scores = model.logits(["", "w3 w4"])
    assert scores[0].isnan().all() and not scores[1].isnan().any()
    assert model.logits([]).shape == (0, 2)


def test_hooks_take_effect_in_recipient_and_donor(recipient_and_donor):
    model = stitch(
        *recipient_and_donor, keep=1, graft=1, translation=translate(*recipient_and_donor), head=pooled_head()
    )
    (batch,) = model.batches(TEXTS[:1])
    plain = model(batch)
    values = []

    def double(value, hook):
        values.append(value)
        return 2 * value

    for name in ("recipient.blocks.0.hook_resid_post", "translation.hook_out", "donor.blocks.1.attn.hook_z", "head.hook_pooled"):  # fmt: skip
        values.clear()
        changed = model.run_with_hooks(batch, [(name, double)])
        assert len(values) == 1 and not torch.allclose(changed, plain), name
    pooled = model.run_with_hooks(batch, [("head.hook_pooled", double)])
    bias = model.head.linear.bias
    torch.testing.assert_close(pooled - bias, 2 * (plain - bias), atol=1e-4, rtol=1e-4)
    before = model.run_with_hooks(batch, [("recipient.blocks.0.hook_resid_post", double)])
    after = model.run_with_hooks(batch, [("translation.hook_out", double)])
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)  # the translation is linear
    torch.testing.assert_close(model(batch), plain)
    for host_model in (model.recipient, model.donor):
        assert not any(point.fwd_hooks for point in host_model.hook_dict.values()), "no hooks are left on the models"


def test_cache_holds_the_activations(recipient_and_donor):
    model = stitch(
        *recipient_and_donor, keep=1, graft=1, translation=translate(*recipient_and_donor), head=pooled_head()
    )
    (batch,) = model.batches(TEXTS[:2])
    scores, cache = model.run_with_cache(batch)
    assert list(cache) == [
        "recipient.blocks.0.hook_resid_post", "translation.hook_out", "donor.blocks.1.hook_resid_post", "head.hook_pooled"
    ]  # fmt: skip
    torch.testing.assert_close(scores, model(batch))
    state = model.translation.state(cache["recipient.blocks.0.hook_resid_post"])
    torch.testing.assert_close(cache["translation.hook_out"], state)
    torch.testing.assert_close(scores, model.head.linear(cache["head.hook_pooled"]))
    for name, message in (
        ("blocks.0.hook_resid_post", "is not a hook point of a stitched model. Its hook points begin with"),
        ("recipient.blocks.1.hook_resid_post", "is in a block that does not run. Blocks of the recipient that run: 0."),
        ("donor.blocks.0.attn.hook_z", "Blocks of the donor that run: 1."),
    ):
        with pytest.raises(EmbspaceError, match=message):
            model.run_with_cache(batch, [name])


def test_loaded_model_equals_the_saved_one(recipient_and_donor, tmp_path):
    model = stitch(
        *recipient_and_donor, keep=1, graft=2, translation=translate(*recipient_and_donor, rank=5), head=pooled_head()
    )
    folder = model.save(tmp_path / "a" / "b")
    assert sorted(path.name for path in folder.iterdir()) == ["cfg.json", "stitched.safetensors"]
    loaded = StitchedModel.load(folder, *recipient_and_donor)
    torch.testing.assert_close(loaded.logits(TEXTS), model.logits(TEXTS), atol=1e-5, rtol=1e-4)
    assert (loaded.keep, loaded.graft, loaded.labels) == (1, 2, ("neg", "pos"))
    assert loaded.translation.facts() == model.translation.facts()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "cfg.json").unlink(), r"cfg\.json"),
        (lambda f: (f / "cfg.json").write_text("[1"), r"cfg\.json"),
        (lambda f: (f / "cfg.json").write_text("{}"), "has no stitched model that can be read"),
        (lambda f: (f / "stitched.safetensors").write_bytes(b"x" * 40), "has no stitched model that can be read"),
        (lambda f: _edit(f / "cfg.json", keep=3), "keep=3 is not an integer from 0 to 2, the number of layers of zoo"),
        (
            lambda f: _edit(f / "cfg.json", source="another"),
            "was stitched with another, not with zoo. Give the lens of another",
        ),
    ],
)
def test_damaged_folders_and_other_models_raise_an_error(damage, message, recipient_and_donor, tmp_path):
    folder = stitch(
        *recipient_and_donor, keep=1, graft=1, translation=translate(*recipient_and_donor), head=pooled_head()
    ).save(tmp_path)
    damage(folder)
    with pytest.raises(EmbspaceError, match=message):
        StitchedModel.load(folder, *recipient_and_donor)


def _edit(path, **facts):
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_translation_of_another_width_raises_an_error(recipient_and_donor, demo_lens):
    translation = translate(demo_lens, demo_lens)
    with pytest.raises(
        EmbspaceError, match="The translation's source has width 192, but zoo has d_model=32. Make it with translate"
    ):
        stitch(*recipient_and_donor, keep=1, graft=1, translation=translation, head=pooled_head())


def test_donor_with_a_smaller_vocabulary_runs():
    recipient, donor = lens_of("llama"), lens_of("gpt2", d_vocab=110)
    model = stitch(recipient, donor, keep=1, graft=1, translation=translate(recipient, donor), head=pooled_head())
    assert model.logits(["w120 w129 w3"]).isfinite().all()


def test_depths_and_heads_that_do_not_fit_raise_an_error(recipient_and_donor, unchecked_types):
    translation = translate(*recipient_and_donor)
    for options, message in (
        ({"keep": 9}, "keep=9 is not an integer from 0 to 2, the number of layers of zoo."),
        ({"graft": True}, "graft=True is not an integer from 0 to 2"),
        ({"head": pooled_head(7)}, "the head's directions have width 7"),
        ({"head": cast(Any, torch.nn.Linear(32, 2))}, "Linear is not a PooledHead"),
    ):
        arguments: dict[str, Any] = {"keep": 1, "graft": 1, "translation": translation, "head": pooled_head()}
        with pytest.raises(EmbspaceError, match=message):
            stitch(*recipient_and_donor, **arguments | options)
