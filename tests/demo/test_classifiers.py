"""Classifiers as differences from their base, on disk."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from embspace_lens import EmbeddingLens, EmbspaceError, demo

TUNED = "reviews-small-0-sentiment"
pytestmark = pytest.mark.skipif(TUNED not in demo.names(), reason="the demo models are not in this checkout")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "difference.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}"), "holds no classifier that can be read"),
        (lambda f: (f / "difference.safetensors").unlink(), "holds no classifier that can be read"),
        (lambda f: (f / "difference.json").write_text("{"), r"difference\.json"),
        (lambda f: (f / "difference.json").write_text('{"labels": ["neg", "pos"]}'), "holds no classifier that can be read"),
        (lambda f: _edit(f, base="reviews-large-0"), r"reviews-large-0 could not be loaded\. It is neither a demo model"),
        (lambda f: _edit(f, base="reviews-medium-0"), r"is not a difference of reviews-medium-0: .* does not fit"),
    ],
)  # fmt: skip
def test_damaged_differences_and_other_bases_raise_an_error(damage, message, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(demo.MODELS / TUNED, folder)
    damage(folder)
    with pytest.raises(EmbspaceError, match=message):
        demo.load_tuned(folder)


def _edit(folder, **facts):
    saved = json.loads((folder / "difference.json").read_text())
    (folder / "difference.json").write_text(json.dumps(saved | facts))


def test_folder_of_a_classifier_is_loaded_as_a_model(tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(demo.MODELS / TUNED, folder)
    lens = EmbeddingLens.from_pretrained(folder)
    assert lens.name == "mine" and demo.card(folder)["base"] == "reviews-small-0"
    torch.testing.assert_close(lens.weights.W_out(3), EmbeddingLens.from_pretrained(TUNED).weights.W_out(3))
    tensors = load_file(folder / "difference.safetensors")
    save_file({k: v for k, v in tensors.items() if k.startswith("head")}, folder / "difference.safetensors")
    unchanged = EmbeddingLens.from_pretrained(folder).weights.W_out(3)
    torch.testing.assert_close(unchanged, EmbeddingLens.from_pretrained("reviews-small-0").weights.W_out(3))
