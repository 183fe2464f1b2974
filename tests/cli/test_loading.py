"""Lenses of the command line: the same vocabularies, scores and models as in the Python API."""

import inspect
from pathlib import Path
from typing import get_args

import pytest
from command_line import as_csv, check_refusal, read_csv
from range_server import serving

from embspace_lens import EmbeddingLens, demo
from embspace_lens.cli.options import DEFAULTS, InverseName, SpaceName
from embspace_lens.space import embedding_space

ONE_NEURON = ["neurons", "--layer", "0", "--neuron", "0", "-k", "2"]


@pytest.mark.parametrize("vocabulary", ["words & trained", "ascii&words", "all & words"])
def test_combined_vocabularies_equal_those_of_the_python_api(run, folder, vocabulary):
    python_vocabulary = {"all & words": "words"}.get(vocabulary, vocabulary)
    lens = EmbeddingLens.from_pretrained(folder, vocabulary=python_vocabulary)
    assert lens.space.n_tokens < EmbeddingLens.from_pretrained(folder, vocabulary="trained").space.n_tokens
    result = run(*ONE_NEURON, "--vocabulary", vocabulary, "--format", "csv", model=folder)
    assert result.stdout == as_csv(lens.neurons(0, 0, k=2))
    printed = run(*ONE_NEURON, "--vocabulary", vocabulary, model=folder)
    assert printed.stdout.splitlines()[-1].endswith(f"--vocabulary '{vocabulary}'")


@pytest.mark.parametrize("vocabulary", ["all", "ascii", "words", "trained"])
@pytest.mark.parametrize("score", ["dot", "centered", "cosine"])
def test_vocabularies_and_scores_equal_those_of_the_python_api(run, folder, vocabulary, score):
    result = run(*ONE_NEURON, "--vocabulary", vocabulary, "--score", score, "--format", "csv", model=folder)
    lens = EmbeddingLens.from_pretrained(folder, vocabulary=None if vocabulary == "all" else vocabulary, score=score)
    assert result.stdout == as_csv(lens.neurons(0, 0, k=2))


@pytest.mark.skipif("reviews-small-0" not in demo.names(), reason="the demo models are not in this checkout")
def test_frequent_words_equal_those_of_the_python_api(run, demo_lens):
    result = run(*ONE_NEURON, "--vocabulary", "frequent", "--score", "cosine", "--format", "csv")
    assert read_csv(result)["token_string"].tolist() == demo_lens.neurons(0, 0, k=2)["token_string"].tolist()


@pytest.mark.parametrize("vocabulary", ["word", "ascii & word"])
def test_unknown_vocabularies_are_refused(run, folder, vocabulary):
    message = (
        r"--vocabulary='word' is not one of 'all', 'ascii', 'words', 'trained', 'frequent'\. Did you mean 'words'\?"
    )
    check_refusal(run("neurons", "--vocabulary", vocabulary, model=folder), message)


def test_frequent_words_of_other_models_are_refused(run, folder):
    result = run("neurons", "--vocabulary", "frequent", model=folder)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1


def test_models_that_do_not_exist_are_refused(run):
    check_refusal(run("neurons", model="./nowhere"), r"nowhere does not exist\. .*")
    check_refusal(run("neurons", model="."), r"\. holds no config\.json, so it is not the folder of a model\.")


@pytest.mark.parametrize(
    ("options", "python_options"),
    [
        (["--space", "embed"], {"space": "embed"}),
        (["--inverse", "pinv"], {"inverse": "pinv"}),
        (["--no-fold"], {"fold_ln": False}),
        (["--device", "cpu", "--space", "embed"], {"space": "embed"}),
    ],
)
def test_options_of_the_lens_equal_those_of_the_python_api(run, folder, options, python_options):
    result = run(*ONE_NEURON, *options, "--format", "csv", model=folder)
    default = as_csv(EmbeddingLens.from_pretrained(folder).neurons(0, 0, k=2))
    assert result.stdout == as_csv(EmbeddingLens.from_pretrained(folder, **python_options).neurons(0, 0, k=2))
    assert result.stdout != default
    hint = run(*ONE_NEURON, *options, model=folder).stdout.splitlines()[-1]
    assert all(option in hint for option in options)


def test_groups_of_options_have_the_values_and_defaults_of_the_lens():
    parameters = inspect.signature(EmbeddingLens).parameters
    assert get_args(SpaceName) == get_args(embedding_space.Space)
    assert get_args(InverseName) == get_args(embedding_space.Inverse)
    assert (DEFAULTS.space, DEFAULTS.inverse, DEFAULTS.fold) == tuple(
        parameters[name].default for name in ("space", "inverse", "fold_ln")
    )


def test_devices_that_do_not_exist_are_refused(run, folder):
    for device in ("nowhere", "xpu:7"):
        check_refusal(
            run(*ONE_NEURON, "--device", device, model=folder), rf"device='{device}' cannot be used \(.*\)\. .*"
        )


def test_commands_read_folders_and_addresses_weight_by_weight(run, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("EMBSPACE_LENS_CACHE", str(tmp_path))
    expected = run(*ONE_NEURON, "--format", "csv", "--no-offload", model=folder).stdout
    assert run(*ONE_NEURON, "--format", "csv", "--offload", model=folder).stdout == expected
    assert run("components", "--offload", "--no-cache", model=folder).exit_code == 0
    with serving(Path(folder)) as server:
        for options in ([], ["--no-cache"]):
            assert run(*ONE_NEURON, "--format", "csv", *options, model=server.url).stdout == expected
        check_refusal(run(*ONE_NEURON, "--no-offload", model=server.url), r"The weights at http://.* can be read .*")
