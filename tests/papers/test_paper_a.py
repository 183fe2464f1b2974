"""Paper A's experiments: their measures against slow loops and planted answers."""

import numpy as np
import pandas as pd
import pytest
import torch
from model_pairs import lens_of

from embspace_lens import EmbeddingLens, EmbspaceError, align, translate
from embspace_lens.papers.data_files import data_file
from embspace_lens.papers.example_heads import same_word
from embspace_lens.papers.experiment import Setting
from embspace_lens.papers.layer_alignment import count_layers
from embspace_lens.papers.pair_overlaps import strongest_pairs
from embspace_lens.papers.raw_lens import two_models
from embspace_lens.papers.singular_values import mean_cosine
from embspace_lens.papers.stitching import notebook_translation, summarise
from embspace_lens.papers.truncated_products import crossing_of
from embspace_lens.papers.tuning import read_sentiment


def test_crossing_is_interpolated_between_the_measured_k():
    curves = pd.DataFrame({"transpose": [0.9, 0.6, 0.3], "pinv": [0.1, 0.4, 0.9]}, index=[16, 64, 256])
    crossing = crossing_of(curves)
    share = 0.2 / (0.2 + 0.6)
    assert crossing == pytest.approx(64 * 4**share)


@pytest.mark.parametrize("pinv", [[0.0, 0.0], [1.0, 1.0]])
def test_curves_that_do_not_cross_have_no_crossing(pinv):
    assert np.isnan(crossing_of(pd.DataFrame({"transpose": [0.5, 0.5], "pinv": pinv}, index=[1, 2])))


@pytest.mark.filterwarnings("ignore:.*a comparison over so few tokens is weak")
def test_nearest_layers_are_those_of_a_slow_loop():
    alignment = align(lens_of("llama"), lens_of("llama", 1))
    counts = count_layers(alignment)
    for weight, part in alignment.correlation.groupby("weight", observed=True):
        grid = part.pivot(index="layer_a", columns="layer_b", values="correlation").to_numpy()
        assert counts.loc[weight, "nearest"] == sum(int(row.argmax()) == i for i, row in enumerate(grid))


def test_strongest_pairs_are_those_of_a_slow_loop(lens):
    table = strongest_pairs(lens, 10)
    scores = {
        weight: [lens.project(lens.weights.directions(weight, layer), side).abs() for layer in range(2)]
        for weight, side in (("W_in", "read"), ("W_out", "write"))
    }
    best = []
    for layer in range(2):
        for neuron, (a, b) in enumerate(zip(scores["W_in"][layer], scores["W_out"][layer])):
            first, second = (set(x.topk(10).indices.tolist()) for x in (a, b))
            best.append((len(first & second) / len(first | second), layer, neuron))
    rows = table[table["pair"] == "W_in-W_out"]
    assert rows["jaccard"].tolist() == pytest.approx([value for value, _, _ in sorted(best, reverse=True)[:5]])
    assert (rows["head"] == -1).all() and (table.loc[table["pair"] == "W_V-W_O", "neuron"] == -1).all()


def test_mean_cosine_is_that_of_a_slow_loop(lens):
    x = torch.randn(3, lens.weights.d_model)
    values = mean_cosine(lens, x, 4)
    rows = lens.space.rows("write")
    for vector, value in zip(x, values):
        ids = lens.project(vector).topk(4).indices
        unit = torch.nn.functional.normalize(rows[ids].float(), dim=-1)
        expected = np.mean([float(unit[i] @ unit[j]) for i in range(4) for j in range(4) if i != j])
        assert float(value) == pytest.approx(expected, abs=1e-5)


def test_same_words_are_equal_but_for_case_and_space():
    left, right = (
        pd.Series([" film", "The", " a"], index=[4, 5, 6]),
        pd.Series(["Film ", " the", " b"], index=[4, 5, 6]),
    )
    assert same_word(left, right).to_dict() == {4: True, 5: True, 6: False}


def test_notebook_maps_states_behind_the_final_norm_and_adds_positions_again():
    recipient = EmbeddingLens.from_pretrained("reviews-small-0", fold_ln=False, space="unembed")
    translation = notebook_translation(recipient, recipient)
    tokens = torch.arange(5, 12)[None]
    hf = recipient.model.original_model
    with torch.no_grad():
        _, cache = recipient.model.run_with_cache(tokens)
        expected = hf.transformer(tokens).last_hidden_state  # Hugging Face's hidden_states[-1]
    plain = translate(recipient, recipient).state(expected)
    positions = recipient.weights.W_pos[:7]
    actual = translation.state(cache["blocks.3.hook_resid_post"])
    torch.testing.assert_close(actual, plain + positions, rtol=1e-3, atol=1e-3)


def test_best_number_of_kept_blocks_is_chosen_for_each_seed():
    inverses = ("pinv", "notebook", "pinv, difference", "states", "untranslated", "random")
    cells = [
        {
            "inverse": inverse,
            "donor": f"seed {seed}",
            "keep": keep,
            "accuracy": 0.5 + 0.1 * keep * (seed + 1) / 2,
            "n": 10,
        }
        for inverse in inverses
        for seed in range(2)
        for keep in range(3)
    ]
    cells += [
        {"inverse": name, "donor": "seed 0", "keep": -1, "accuracy": 0.6, "n": 10} for name in ("chance", "donor")
    ]
    rows = {row["measure"]: row for row in summarise(pd.DataFrame(cells))}
    assert rows["pinv: seed 0"]["value"] == pytest.approx(0.6) and rows["pinv: seed 1"]["value"] == pytest.approx(0.7)
    assert rows["pinv: mean over seeds, control random"]["value"] == pytest.approx(0.65)


def test_two_models_are_needed():
    assert two_models("A:alignment", Setting("a, b")) == ("a", "b")
    with pytest.raises(EmbspaceError, match="A:alignment cannot run on a: it needs two models, joined by a comma"):
        two_models("A:alignment", Setting("a"))


def test_comments_of_the_lexicon_are_left_out(tmp_path):
    (tmp_path / "sentiment").mkdir()
    (tmp_path / "sentiment" / "opinion_positive.txt").write_text("; a comment\n\ngood\nfine\n")
    assert read_sentiment(Setting("m", tmp_path), "positive") == ["good", "fine"]


def test_missing_file_is_named(tmp_path):
    with pytest.raises(EmbspaceError, match="has no file for 'reviews'. The experiment needs labelled movie reviews"):
        data_file(Setting("m", tmp_path), "reviews")
    with pytest.raises(EmbspaceError, match="There is no data folder"):
        data_file(Setting("m"), "brown")
