"""The dictionaries that come with a demo model: files, size, places, and the figures stated for them."""

import bz2
import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from embspace_lens import EmbeddingLens, EmbspaceError, demo
from embspace_lens.demo.catalog import load_base
from embspace_lens.demo.dictionary_evaluation import SavedDictionary, evaluate
from embspace_lens.demo.train_features import FeatureConfig, held_out_rows
from embspace_lens.features.pretrained import demo_features

FOLDER = demo.MODELS / "reviews-small-0" / "features"
NAMES = ["sae-1", "transcoder-1", "transcoder-3"]
REVIEWS = Path(__file__).parents[3] / "shared/data/imdb.jsonl.bz2"
RESULTS = json.loads((FOLDER / "training.json").read_text())["results"] if FOLDER.is_dir() else {}

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the dictionaries are not in this checkout")


def test_dictionaries_take_at_most_4_megabytes():
    assert sorted(path.name for path in FOLDER.iterdir() if path.is_dir()) == NAMES
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 4e6


@pytest.mark.parametrize("name", NAMES)
def test_dictionary_is_at_hook_points_of_the_model(name):
    features, n = demo_features(name), FeatureConfig.n_features
    assert features.decoder.shape == (n, 192) and features.encoder.shape == (192, n) and features.name == name
    assert features.layer == int(name[-1]) and features.is_transcoder == name.startswith("transcoder")
    assert {tensor.dtype for tensor in load_file(FOLDER / name / "sae_weights.safetensors").values()} == {torch.float16}
    torch.testing.assert_close(features.decoder.float().norm(dim=1), torch.ones(n), rtol=2e-3, atol=0)
    model = demo.load("reviews-small-0")
    cache = model.run_with_cache(model.to_tokens("This was the worst movie I have ever seen."))[1]
    x, y = cache[features.hook], cache[features.output_hook]
    codes = features.encode(x)
    saved = SavedDictionary.load(FOLDER / name)
    torch.testing.assert_close(codes, saved.encode(x), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(features.decode(codes), saved.decode(saved.encode(x)), rtol=1e-4, atol=1e-2)
    error = (features.decode(codes) - y).square().sum() / (y - y.mean((0, 1))).square().sum()
    assert error < 0.6, "most of the variance is explained in a sentence of ten tokens"
    assert 2 < (codes > 0).sum(-1).float().mean() < 60


@pytest.mark.parametrize("name", NAMES)
def test_figures_describe_a_useful_dictionary(name):
    values = RESULTS[name]
    assert values["fvu"] < 0.4 and 10 < values["l0"] < 40 and values["inactive"] <= 0.1 * FeatureConfig.n_features
    assert values["loss"] < values["loss_spliced"] < min(values["loss_mean"], values["loss_zero"])
    assert min(values["recovered_from_mean"], values["recovered_from_zero"]) > 0.5
    card = (FOLDER / "README.md").read_text()
    assert f"{values['fvu']:.4g} | {values['l0']:.4g} |" in card


@pytest.fixture(scope="module")
def measured():
    """The dictionaries, measured again on 48 rows of held-out reviews."""
    if not REVIEWS.is_file():
        pytest.skip("the reviews (../shared/data) are missing")
    with bz2.open(REVIEWS, "rt", encoding="utf-8") as lines:
        reviews = (json.loads(line) for line in lines)
        texts = list(itertools.islice((r["text"] for r in reviews if r["split"] == "test"), 48))
    model, tokenizer = load_base("reviews-small-0", torch.float32)
    rows = held_out_rows(texts, tokenizer, 128, 48)
    return evaluate(model.eval(), {name: SavedDictionary.load(FOLDER / name) for name in NAMES}, rows)


@pytest.mark.parametrize("name", NAMES)
def test_figures_hold_on_other_held_out_reviews(measured, name):
    values, stated = measured[name], RESULTS[name]
    assert values["fvu"] == pytest.approx(stated["fvu"], rel=0.1)
    assert values["l0"] == pytest.approx(stated["l0"], rel=0.1)
    for figure in ("recovered_from_mean", "recovered_from_zero"):
        assert values[figure] == pytest.approx(stated[figure], abs=0.1)


def test_shuffled_encoder_recovers_less(measured):
    """The control: the same features, each read by the encoder of another feature."""
    model, tokenizer = load_base("reviews-small-0", torch.float32)
    dictionary = SavedDictionary.load(FOLDER / "sae-1")
    order = torch.randperm(FeatureConfig.n_features, generator=torch.Generator().manual_seed(0))
    shuffled = dictionary.tensors | {name: dictionary.tensors[name][..., order] for name in ("W_enc", "b_enc")}
    rows = held_out_rows(["The film was bad, and the actors were terrible. " * 20] * 4, tokenizer, 128, 4)
    values = evaluate(model.eval(), {"shuffled": SavedDictionary(dictionary.place, shuffled)}, rows)["shuffled"]
    assert values["fvu"] > 1 > 3 * measured["sae-1"]["fvu"]


def test_unknown_names_raise_an_error():
    with pytest.raises(EmbspaceError, match="features='sae-2' is not one of 'sae-1', 'transcoder-1', 'transcoder-3'"):
        demo_features("sae-2")
    with pytest.raises(EmbspaceError, match="model='reviews-medium-0' is not one of 'reviews-small-0'"):
        demo_features(model="reviews-medium-0")


def test_lens_reads_dictionary_directions():
    lens = EmbeddingLens.from_pretrained("reviews-small-0")
    table = lens.directions(demo_features("transcoder-3").decoder[:5].float(), k=3)
    assert len(table) == 15
