"""The demo models: their cards, loading without a network, and checks of their training."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embspace_lens import EmbeddingLens, EmbspaceError, demo, evidence, whole_words
from embspace_lens.space.undertrained import undertraining

CLASSIFIERS = ["reviews-small-0-sentiment"]
MODELS = [name for name in demo.names() if name not in CLASSIFIERS]


def test_models_are_two_seeds_of_one_shape_and_a_larger_one():
    cards = {name: demo.card(name)["config"] for name in MODELS}
    a, b, c = cards["reviews-small-0"], cards["reviews-small-1"], cards["reviews-medium-0"]
    assert {**a, "seed": None} == {**b, "seed": None} and a["seed"] != b["seed"]
    assert c["d_model"] > a["d_model"] and c["n_layers"] > a["n_layers"]


def test_models_take_at_most_26_megabytes():
    assert sum(path.stat().st_size for path in demo.MODELS.rglob("*") if path.is_file()) <= 26e6


@pytest.mark.parametrize("name", MODELS)
def test_cards_state_the_training_run(name):
    facts = demo.card(name)
    card = (demo.MODELS / name / "README.md").read_text()
    assert f"Held-out loss: {facts['held_out_loss']:.3f} nats" in card and f"{facts['tokens_seen']:,}" in card
    assert facts["tokens_seen"] >= 0.99 * facts["tokens_in_corpus"], "one pass, except for the last incomplete batch"
    weights = load_file(demo.MODELS / name / "model.safetensors")
    assert {w.dtype for w in weights.values() if w.is_floating_point()} == {torch.float16}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_differs_from_its_base_in_the_last_blocks(name):
    facts, head = demo.card(name), demo.head(name)
    card = (demo.MODELS / name / "README.md").read_text()
    assert f"Held-out accuracy: {facts['held_out_accuracy']:.3f}" in card and head.labels == ("neg", "pos")
    tuned, base = demo.load(name), demo.load(facts["base"])
    assert (tuned.blocks[0].mlp.W_in == base.blocks[0].mlp.W_in).all()
    assert not (tuned.blocks[3].mlp.W_in == base.blocks[3].mlp.W_in).all()


@pytest.mark.parametrize("name", MODELS)
def test_model_predicts_english(name):
    model = demo.load(name)
    logits = model(model.to_tokens("This was the worst movie I have ever"))[0, -1]
    assert model.to_string(logits.argmax()).strip() in {"seen", "watched", "saw"}
    assert repr(EmbeddingLens(model)).startswith(f"EmbeddingLens({name}: ")


def paired_and_shuffled(lens, pair, k=100):
    frame = evidence.related_pairs(lens, pairs=pair, k=k)
    return [frame[frame["sample"] == sample]["jaccard"] for sample in ("paired", "shuffled")]


@pytest.mark.parametrize("pair", ["W_in-W_out", "W_V-W_O"])
@pytest.mark.parametrize("name", [MODELS[0], *(pytest.param(name, marks=pytest.mark.full) for name in MODELS[1:])])
def test_paired_parameters_share_tokens(name, pair):
    """Dar et al. 2023, §4.1: top tokens of paired parameters overlap more than those of the shuffled control."""
    lens = EmbeddingLens(demo.load(name), vocabulary="words", score="cosine")
    paired, shuffled = paired_and_shuffled(lens, pair)
    assert np.mean(paired) >= 1.5 * np.mean(shuffled)
    assert all(p > s for p, s in zip(paired, shuffled)), "in every layer"


def test_paired_parameters_of_a_random_model_share_no_tokens(tiny):
    """The control for the overlap in trained models."""
    paired, shuffled = paired_and_shuffled(EmbeddingLens(tiny("gpt2"), score="cosine"), "W_in-W_out", k=20)
    assert 0.8 < np.mean(paired) / np.mean(shuffled) < 1.25


@pytest.mark.parametrize("name", MODELS)
def test_undertrained_tokens_are_those_absent_from_the_training_texts(name):
    lens = EmbeddingLens(demo.load(name))
    indicator, threshold = undertraining(lens.vocabulary, lens.weights.W_E, lens.weights.W_U.T)
    counts = load_file(demo.MODELS / "tokenizer" / "counts.safetensors")["counts"]
    flagged = indicator <= threshold
    assert flagged[counts == 0].float().mean() > 0.95
    assert flagged[counts >= 10].float().mean() < 0.001


def test_token_counts_for_another_model_raise_an_error(tiny):
    with pytest.raises(EmbspaceError, match="the demo models' token counts"):
        EmbeddingLens(tiny("gpt2"), vocabulary=demo.seen(5))
    lens = EmbeddingLens(demo.load("reviews-small-0"), vocabulary=whole_words & demo.seen(200))
    assert "of 7168 tokens (words & seen 200+ times)" in repr(lens)


def test_local_folder_gives_the_same_tables(tmp_path):
    for part in ("tokenizer", "reviews-small-0"):
        for path in (p for p in (demo.MODELS / part).iterdir() if p.is_file()):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    lens = EmbeddingLens.from_pretrained(tmp_path, vocabulary="words")
    demo_model_lens = EmbeddingLens.from_pretrained("reviews-small-0", vocabulary="words")
    assert lens.name == tmp_path.name
    a, b = (each_lens.neurons(layer=3, neuron=range(20), k=3) for each_lens in (lens, demo_model_lens))
    assert a.equals(b)


def test_unknown_names_raise_an_error():
    with pytest.raises(EmbspaceError, match="model='reviews-smal-0' is not one of .* Did you mean 'reviews-small-0'"):
        demo.load("reviews-smal-0")
