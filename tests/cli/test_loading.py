"""Lenses of the command line: the same vocabularies, scores and models as in the Python API."""

import pytest
from command_line import as_csv, check_refusal, read_csv

from embspace_lens import EmbeddingLens, demo
from embspace_lens.cli.loading import open_lens

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


def test_space_option_is_passed_to_the_lens(folder):
    assert open_lens(folder, space="embed").space.kind == "embed"
