"""The sweep over stitched models: compared with each stitched model; controls, checkpoint and errors."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from classifiers import LABELS, TEXTS, classify, pooled_head
from model_pairs import lens_of
from tables import check_tidy

from embspace_lens import EmbspaceError, PooledHead, stitch, stitch_sweep, translate
from embspace_lens.compare.stitching import POOLED
from embspace_lens.forward.batches import token_batches
from embspace_lens.tables.intervals import proportion_interval

pytestmark = pytest.mark.filterwarnings("ignore:.*a comparison over so few tokens is weak")


def test_rows_are_the_accuracies_of_stitched_models_and_controls(recipient_and_donor):
    recipient, donor = recipient_and_donor
    donors = {"a": (donor, pooled_head(seed=1)), "b": (donor, pooled_head(seed=2))}
    inverses = ["pinv", "transpose", "untranslated"]
    df = stitch_sweep(recipient, donors, TEXTS, LABELS, graft=1, inverse=inverses, batch_tokens=16)
    grain = ["recipient", "donor", "inverse", "keep"]
    check_tidy(df, grain, [*grain, "accuracy", "low", "high", "n"])
    assert len(df) == 2 * (2 + 3 * 3) and df.attrs["embspace_kind"] == "stitch"
    for (name, (lens, head)), inverse in zip(donors.items(), ("pinv", "transpose")):
        for keep in range(3):
            translation = translate(recipient, lens, inverse=inverse)
            model = stitch(recipient, lens, keep=keep, graft=1, translation=translation, head=head)
            predicted = [head.labels[i] for i in model.logits(TEXTS).argmax(1).tolist()]
            row = df[(df["donor"] == name) & (df["inverse"] == inverse) & (df["keep"] == keep)].iloc[0]
            assert row["accuracy"] == pytest.approx(np.mean([p == label for p, label in zip(predicted, LABELS)]))
            interval = proportion_interval(round(row["accuracy"] * 5), 5)
            assert (row["low"], row["high"]) == pytest.approx(interval) and row["n"] == 5
    donor_row = df[(df["inverse"] == "donor") & (df["donor"] == "b")].iloc[0]
    with torch.no_grad():  # the donor reads the recipient's tokens; both have one tokenizer here
        predicted = [("neg", "pos")[int(classify(donor, text, donors["b"][1]).argmax())] for text in TEXTS]
    assert donor_row["accuracy"] == pytest.approx(np.mean([p == label for p, label in zip(predicted, LABELS)]))
    assert donor_row["keep"] == -1
    assert set(df[df["inverse"] == "chance"]["accuracy"]) == {np.float32(0.6)}


class InterruptedHead(PooledHead):
    """A head that counts its calls, and fails at one of them."""

    n_calls, fails_at = 0, -1

    def forward(self, *arguments):
        self.n_calls += 1
        if self.n_calls == self.fails_at:
            raise KeyboardInterrupt
        return super().forward(*arguments)


def test_interrupted_sweep_resumes_to_the_same_table(recipient_and_donor, tmp_path):
    recipient, donor = recipient_and_donor
    head = InterruptedHead(32, ["neg", "pos"])
    donors = {"a": (donor, head)}
    options: dict[str, Any] = {"graft": 1, "inverse": ["least_squares", "random"], "batch_tokens": 10}
    uninterrupted = stitch_sweep(recipient, donors, TEXTS, LABELS, **options)
    path = tmp_path / "sweep.json"
    head.n_calls, head.fails_at = 0, 12
    with pytest.raises(KeyboardInterrupt):
        stitch_sweep(recipient, donors, TEXTS, LABELS, checkpoint=path, **options)
    assert 0 < json.loads(path.read_text())["n"] < len(TEXTS)
    head.n_calls, head.fails_at = 0, -1
    resumed = stitch_sweep(recipient, donors, TEXTS, LABELS, checkpoint=path, **options)
    pd.testing.assert_frame_equal(resumed, uninterrupted)
    n_batches = len(list(token_batches(recipient.model, TEXTS, batch_tokens=10)))
    assert head.n_calls < 7 * n_batches, "finished batches are not computed again"
    pd.testing.assert_frame_equal(
        stitch_sweep(recipient, donors, TEXTS, LABELS, checkpoint=path, **options), uninterrupted
    )
    with pytest.raises(EmbspaceError, match="is the checkpoint of a sweep with other arguments"):
        stitch_sweep(recipient, donors, TEXTS, LABELS, checkpoint=path, **options | {"graft": 2})


def test_subtracted_base_leaves_what_tuning_changed(recipient_and_donor):
    recipient, after = recipient_and_donor
    before = lens_of("gpt2", 1)
    head = pooled_head(seed=3)
    df = stitch_sweep(
        recipient, {"a": (after, head)}, TEXTS, LABELS, graft=1, keep=[1], inverse=["pinv"], subtract={"a": before}
    )
    translation = translate(recipient, after)
    (batch,) = token_batches(recipient.model, TEXTS)
    with torch.no_grad():
        pooled = [
            stitch(recipient, lens, keep=1, graft=1, translation=translation, head=head).run_with_cache(batch)[1][
                POOLED
            ]
            for lens in (after, before)
        ]
        best = head.linear(pooled[0] - pooled[1]).argmax(1)
    labels = [LABELS[i] for i in batch.example.tolist()]
    accuracy = np.mean([head.labels[i] == label for i, label in zip(best.tolist(), labels, strict=True)])
    assert df.loc[df["inverse"] == "pinv", "accuracy"].item() == pytest.approx(accuracy)


def test_subtracted_donor_itself_leaves_the_bias_of_the_head(recipient_and_donor):
    recipient, donor = recipient_and_donor
    head = pooled_head(seed=3)
    df = stitch_sweep(recipient, {"a": (donor, head)}, TEXTS, LABELS, graft=2, inverse=["pinv"], subtract={"a": donor})
    constant = head.labels[int(head.linear.bias.argmax())]
    assert df.loc[df["inverse"] == "pinv", "accuracy"].tolist() == pytest.approx([LABELS.count(constant) / 5] * 3)


def test_inverse_can_be_a_function(recipient_and_donor):
    layers = []

    def procrustes(recipient, donor, layer_source, layer_target):
        layers.append((layer_source, layer_target))
        return translate(recipient, donor, inverse="procrustes")

    donors = {"a": (recipient_and_donor[1], pooled_head(seed=1))}
    inverses = {"function": procrustes, "name": "procrustes"}
    df = stitch_sweep(recipient_and_donor[0], donors, TEXTS, LABELS, graft=1, inverse=inverses)
    assert layers == [(-1, 0), (0, 0), (1, 0)]
    a, b = (df[df["inverse"] == inverse]["accuracy"].tolist() for inverse in inverses)
    assert a == b


def test_inverse_of_states_and_no_grafted_block(recipient_and_donor):
    donors = {"a": (recipient_and_donor[1], pooled_head(seed=1))}
    df = stitch_sweep(recipient_and_donor[0], donors, TEXTS, LABELS, graft=0, keep=[0, 2], inverse=["states"])
    assert df["keep"].tolist() == [-1, -1, 0, 2] and df["accuracy"].between(0, 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": []}, "texts holds no texts to classify"),
        ({"texts": "w1 w2"}, "texts holds no texts to classify"),
        ({"texts": [""] * 5}, "texts holds no tokens"),
        ({"labels": ["pos"] * 5}, "All 5 texts have the label 'pos'. Accuracy needs texts of two or more classes."),
        ({"labels": LABELS[:4]}, "There are 5 texts and 4 labels. Give one label per text."),
        ({"labels": [*LABELS[:4], "meh"]}, "label 'meh' is not a class of a's head. Its classes: neg, pos"),
        ({"donors": {}}, "donors must map at least one name"),
        ({"graft": 3}, "graft=3 is not an integer from 0 to 2"),
        ({"keep": [0, 3]}, "keep=3 is not an integer from 0 to 2"),
        ({"inverse": ["best"]}, "inverse='best' is not one of"),
        ({"inverse": {"chance": "pinv"}}, "inverse holds 'chance', which is the name of a control"),
        ({"head": pooled_head(7)}, "head's directions have width 7"),
    ],
)
def test_errors_state_what_is_allowed(change, message, recipient_and_donor, unchecked_types):
    arguments: dict[str, Any] = {
        "donors": {"a": (recipient_and_donor[1], change.get("head", pooled_head()))},
        "texts": TEXTS,
        "labels": LABELS,
        "graft": 1,
        "inverse": ["pinv"],
    }
    arguments |= {name: value for name, value in change.items() if name != "head"}
    with pytest.raises(EmbspaceError, match=message):
        stitch_sweep(recipient_and_donor[0], **arguments)


def test_one_map_can_be_named_as_in_translate(recipient_and_donor):
    arguments: Any = ({"a": (recipient_and_donor[1], pooled_head(seed=1))}, TEXTS, LABELS)
    named, listed = (
        stitch_sweep(recipient_and_donor[0], *arguments, graft=1, inverse=inverse) for inverse in ("pinv", ["pinv"])
    )
    pd.testing.assert_frame_equal(named, listed)
