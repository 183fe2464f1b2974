"""`embspace-lens singular` and `directions`: the tables of the library, and errors."""

import re
from types import SimpleNamespace

import pytest
import torch
from command_line import as_csv, check_refusal
from safetensors.torch import save_file

from embspace_lens import EmbeddingLens


@pytest.fixture
def vectors(tmp_path):
    """A file of three vectors in two tensors."""
    tensors = {"probe": torch.randn(2, 32), "bias": torch.randn(32)}
    save_file(tensors, tmp_path / "vectors.safetensors")
    return tensors


@pytest.mark.parametrize("weight", ["W_OV", "W_in"])
def test_options_of_singular_are_passed_to_the_lens(run, folder, weight):
    options = ["--layer", "1", "--weight", weight, "--n-directions", "3", "-k", "2"]
    result = run("singular", *options, "--format", "csv", model=folder)
    lens = EmbeddingLens.from_pretrained(folder)
    assert result.stdout == as_csv(lens.singular(1, weight=weight, n_directions=3, k=2))
    hint = run("singular", *options, model=folder).stdout.splitlines()[-1]
    assert re.search(r"heads --layer 1 --head 0 " if weight == "W_OV" else r"neurons --layer 1 ", hint)


def test_directions_of_a_file_are_named_after_their_tensor_and_row(run, folder, vectors):
    result = run("directions", "vectors.safetensors", "-k", "2", "--format", "csv", model=folder)
    lens = EmbeddingLens.from_pretrained(folder)
    x = torch.cat([vectors["bias"][None], vectors["probe"]])
    assert result.stdout == as_csv(lens.directions(x, names=["bias", "probe.0", "probe.1"], k=2))


def test_options_of_directions_are_passed_to_the_lens(run, folder, vectors):
    options = ["--tensor", "bias", "--side", "read", "-k", "3", "--lowest", "--format", "csv"]
    result = run("directions", "vectors.safetensors", *options, model=folder)
    lens = EmbeddingLens.from_pretrained(folder)
    expected = lens.directions(vectors["bias"], names=["bias"], side="read", k=3, largest=False)
    assert result.stdout == as_csv(expected)
    assert run("directions", "vectors.safetensors", model=folder).exit_code == 0


@pytest.mark.parametrize("side", ["read", "write"])
def test_autoencoders_are_read_as_the_lens_reads_them(run, folder, tmp_path, side):
    tensors = {"W_dec": torch.randn(5, 32), "W_enc": torch.randn(32, 5), "b_enc": torch.randn(5)}
    save_file(tensors, tmp_path / "sae.safetensors")
    result = run("directions", "sae.safetensors", "--side", side, "-k", "1", "--format", "csv", model=folder)
    lens = EmbeddingLens.from_pretrained(folder)
    assert result.stdout == as_csv(lens.directions(SimpleNamespace(**tensors), side=side, k=1))


def test_files_without_directions_are_refused(run, folder, vectors, tmp_path):
    (tmp_path / "text.safetensors").write_text("text")
    save_file({"wide": torch.randn(2, 40)}, tmp_path / "wide.safetensors")
    for arguments, message in [
        (["text.safetensors"], r"text\.safetensors cannot be read as safetensors \(.*\)\."),
        (["nowhere.safetensors"], r"nowhere\.safetensors cannot be read as safetensors \(.*\)\."),
        (["vectors.safetensors", "--tensor", "x"], r".* holds no tensor 'x'\. It holds 'bias', 'probe'\."),
        (["wide.safetensors"], r"The tensor 'wide' has shape \(2, 40\)\. Directions are \[n, 32\] or \[32\]\. .*"),
    ]:
        check_refusal(run("directions", *arguments, model=folder), message)
