"""Commands that read weights: with a record, they import neither transformers nor TransformerLens."""

import subprocess
import sys

import pytest
from command_line import check_refusal

from embspace_lens import demo

pytestmark = pytest.mark.skipif(
    "reviews-small-0" not in demo.names(), reason="the demo models are not in this checkout"
)
COMMANDS = [
    ["neurons", "--layer", "0", "--neuron", "3"],
    ["heads", "--layer", "0", "--head", "1"],
    ["heads", "--layer", "0", "--head", "1", "--weight", "W_V"],
    ["singular", "--layer", "0", "--head", "0", "--n-directions", "2"],
    ["search", " terrible", "--layer", "0", "--vocabulary", "frequent", "--score", "cosine"],
    ["components", "--no-fold"],
]
CODE = """
import sys
from typer.testing import CliRunner
from embspace_lens.cli import app
for command in {commands}:
    result = CliRunner().invoke(app, command)
    print(result.stdout)
    loaded = sorted({{"transformers", "transformer_lens"}} & sys.modules.keys())
    assert result.exit_code == 0 and not loaded, (command, loaded, result.exception)
"""


def test_commands_with_a_record_import_no_model_library(run):
    expected = [run(*command, "--no-cache").stdout for command in COMMANDS]
    first = [run(*command).stdout for command in COMMANDS]
    assert first == expected
    code = CODE.format(commands=COMMANDS)
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout == "".join(f"{text}\n" for text in expected)


def test_texts_that_are_not_one_token_are_refused_as_without_a_record(run):
    for options in ([], [], ["--no-cache"]):
        result = run("search", "terribly wonderful", *options)
        check_refusal(result, r'"terribly wonderful" is \d tokens .*')
