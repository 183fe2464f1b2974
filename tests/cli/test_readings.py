"""`embspace-lens neurons`, `heads`, `search` and `components`: the tables of the library."""

import os
import re

import pytest
from command_line import as_csv, check_refusal, read_csv

from embspace_lens import EmbeddingLens
from embspace_lens.display.tokens import width


def test_neurons_are_printed_as_a_table(run, folder):
    result = run("neurons", "--layer", "0,2", "--neuron", "5", "-k", "3", model=folder)
    assert result.exit_code == 0 and result.stderr == ""
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["L0N5", "L0N5", "L2N5", "L2N5"]
    assert max(map(width, lines[:-1])) <= 100
    assert lines[-1] == f"Next: embspace-lens search ' wonderful' --model {folder}"


def test_every_option_is_passed_to_the_lens(run, folder):
    lens = EmbeddingLens.from_pretrained(folder, vocabulary="words", score="cosine")
    result = run(
        "neurons", "--layer", "1-2", "--neuron", "0-3", "--weight", "W_out", "-k", "4", "--vocabulary", "words",
        "--score", "cosine", "--lowest", "--format", "csv", model=folder,
    )  # fmt: skip
    assert result.stdout == as_csv(lens.neurons([1, 2], range(4), weight="W_out", k=4, largest=False))


def test_heads_list_both_circuits_side_by_side(run, folder):
    table = read_csv(run("heads", "--layer", "1", "--head", "0-1", "-k", "3", "--format", "csv", model=folder))
    assert table["weight"].tolist() == ["W_OV"] * 3 + ["W_QK"] * 3 + ["W_OV"] * 3 + ["W_QK"] * 3


def test_heads_list_one_circuit(run, folder):
    table = run("heads", "--layer", "1", "--weight", "W_QK", "-k", "1", model=folder).stdout.split("Next")[0]
    assert "W_OV" not in table and "→" in table


def test_heads_list_subheads(run, folder):
    options = ["--layer", "1", "--head", "2", "--weight", "W_V", "--weight", "W_O", "-k", "2"]
    table = run("heads", *options, model=folder).stdout
    assert "L1H2.0    W_V" in table and "L1H2.7    W_O" in table


def test_search_prints_the_components_and_a_neuron_to_read_next(run, folder):
    result = run("search", " film", "-k", "2", model=folder)
    assert result.exit_code == 0 and "␣film" in result.stdout.splitlines()[0]
    lens = EmbeddingLens.from_pretrained(folder)
    best = lens.search(" film", weight=["W_in", "W_out"], k=2).sort_values("score", ascending=False).iloc[0]
    assert f"neurons --layer {best['layer']} --neuron {best['neuron']}" in result.stdout


def test_search_takes_the_id_of_a_token(run, folder):
    lens = EmbeddingLens.from_pretrained(folder)
    token = lens.vocabulary.index(" film")
    result = run("search", f"#{token}", "-k", "2", "--layer", "1", "--weight", "W_out", "--format", "csv", model=folder)
    assert result.stdout == as_csv(lens.search(" film", [1], weight="W_out", k=2))


def test_components_list_shapes(run, folder):
    result = run("components", model=folder)
    assert result.exit_code == 0 and re.search(r"^L2 +W_out +128 × 32", result.stdout, re.M)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["neurons", "--layer", "9"], r"layer=9 is out of range: tiny has 3 layers \(0 to 2\)\."),
        (["neurons", "--layer", "0", "--neuron", "999"], r"neuron=999 is out of range: .*"),
        (
            ["neurons", "--weight", "Wout"],
            r"weight='Wout' is not one of 'W_in', 'W_gate', 'W_out'\. Did you mean 'W_out'\?",
        ),
        (
            ["neurons", "-k", "9999"],
            r"k=9999 is not an integer from 1 to \d+, the number of tokens that this lens reads\.",
        ),
        (["heads", "--head", "7"], r"head=7 is out of range: tiny has 4 heads \(0 to 3\)\."),
        (["heads", "--weight", "W_X"], r"weight='W_X' is not one of 'W_OV', 'W_QK', 'W_Q', .*"),
        (
            ["heads", "--weight", "W_OV", "--weight", "W_V"],
            r"W_OV and W_QK are listed as token pairs; .* one kind at a time\.",
        ),
        (["search", "  film"], r'"  film" is \d tokens in this vocabulary .*Did you mean \' film\'\?'),
        (["search", "#99999"], r"token=99999 is out of range: .*"),
    ],
)
def test_selections_outside_the_model_are_refused(run, folder, tmp_path, arguments, message):
    check_refusal(run(*arguments, model=folder), message)
    assert os.listdir(tmp_path) == []


def test_heads_leave_out_equal_tokens(run, folder):
    options = ["--layer", "0", "--weight", "W_QK", "-k", "200", "--format", "csv"]
    pairs = read_csv(run("heads", *options, model=folder))
    assert (pairs["src_token_index"] == pairs["dest_token_index"]).any()
    pairs = read_csv(run("heads", *options, "--exclude-same", "exact", model=folder))
    assert len(pairs) == 4 * 200 and (pairs["src_token_string"] != pairs["dest_token_string"]).all()
    check_refusal(
        run("heads", "--weight", "W_V", "--exclude-same", "exact", model=folder),
        "--exclude-same leaves out pairs of tokens, and W_V has none. Use it with --weight W_OV or W_QK.",
    )


def test_search_takes_several_tokens(run, folder):
    found = read_csv(run("search", " film", "#100", "--weight", "W_OV", "-k", "3", "--format", "csv", model=folder))
    assert found["token_index"].eq(-1).all() and len(found) == 3
