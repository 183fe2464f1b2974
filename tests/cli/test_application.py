"""The command line as a whole: help, errors, and the program in a shell."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from command_line import check_refusal

from embspace_lens import demo
from embspace_lens.cli import app, main

COMMANDS = [
    "demo", "models", "neurons", "heads", "singular", "directions", "search", "components", "align", "stitch", "difference", "relations", "operations", "paper",
    "evidence", "evidence related-pairs", "evidence recall", "evidence keep-k",
    "factors", "factors fit", "factors contexts", "factors importance", "factors saliency", "factors senses", "factors explore",
    "features", "features explore",
]  # fmt: skip
needs_demo = pytest.mark.skipif(
    "reviews-small-0" not in demo.names(), reason="the demo models are not in this checkout"
)


# -- help


def test_help_lists_every_command_with_a_whole_sentence(run):
    for group in ("", "evidence", "factors", "features"):
        result = run(*group.split(), "--help")
        assert result.exit_code == 0
        listed = re.findall(r"^  ([a-z-]+) +([A-Z].*)$", result.stdout.split("Commands:")[1], re.M)
        prefix = f"{group} " if group else ""
        assert [f"{prefix}{name}" for name, _ in listed] == [
            name for name in COMMANDS if name.startswith(prefix) and name.count(" ") == prefix.count(" ")
        ]
        assert all(summary.endswith(".") and not summary.endswith("...") for _, summary in listed), listed


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_terminal(run, command):
    lines = run(*command.split(), "--help").stdout.splitlines()
    assert max(map(len, lines)) <= 100


def examples(run):
    """The examples in the help of all commands."""
    pages = "\n".join(run(*command.split(), "--help").stdout for command in COMMANDS)
    return re.findall(r"For example:\n\n +embspace-lens (.*)\n\n", pages)


@needs_demo
@pytest.mark.full
def test_examples_in_help_run(run):
    example_commands = examples(run)
    assert len(example_commands) >= 8
    for example in example_commands:
        result = run(*shlex.split(example))
        assert result.exit_code == 0 and result.stdout, (example, result.output)


def test_examples_on_demo_models_read_frequent_words(run):
    for example in examples(run):
        if example.split()[0] in ("neurons", "heads", "singular", "search", "operations"):
            assert example.endswith("--vocabulary frequent --score cosine")


def test_help_imports_no_model_library():
    code = """
import sys
from embspace_lens.cli import main
sys.argv = ["embspace-lens", "--help"]
try:
    main()
except SystemExit:
    print([name for name in ("torch", "transformers", "pandas", "plotly") if name in sys.modules])
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == "[]"


# -- invalid arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["neuron"], r"No such command 'neuron'\..*\nSee .* --help"),
        (["evidence", "pairs"], r"No such command 'pairs'\..*\nSee .* evidence --help"),
        (["neurons", "--layr", "0"], r"No such option: --layr .*--layer.*\nSee .* neurons --help"),
        (["search"], r"Missing argument 'TOKEN\.\.\.'\.\nSee .* search --help"),
        (["evidence", "recall"], r"Missing option '--texts'\.\nSee .* evidence recall --help"),
        (["models", "gpt2"], r"Got unexpected extra argument.*\(gpt2\)\.?\nSee .* models --help"),
        (["--layer"], r"No such option: --layer.*\nSee .* --help"),
    ],
)
def test_wrong_arguments_are_refused_in_two_lines(run, arguments, message):
    check_refusal(run(*arguments), message)


def test_missing_command_prints_help(run):
    assert "Commands:" in run().output
    assert "Commands:" in run("evidence").output


# -- errors


def test_any_other_exception_is_one_line(run, monkeypatch):
    def fail():
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(demo.catalog, "names", fail)
    message = "The command failed (RuntimeError: first line second line). Add --debug to print the traceback.\n"
    result = run("models")
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", message)
    for arguments in (["--debug", "models"], ["models", "--debug"]):
        result = run(*arguments)
        assert result.exit_code == 2 and result.stderr.startswith("Traceback ") and result.stderr.endswith(message)


def test_debug_prints_the_traceback_of_an_error_of_the_package(run, folder):
    result = run("neurons", "--layer", "9", "--debug", model=folder)
    assert result.exit_code == 2 and result.stderr.startswith("Traceback ")
    assert result.stderr.splitlines()[-1] == "layer=9 is out of range: tiny has 3 layers (0 to 2)."


def test_interrupts_are_not_errors(run, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(demo.catalog, "names", interrupt)
    result = run("models")
    assert result.exit_code != 0 and "The command failed" not in result.stderr


def test_version_is_printed(run):
    result = run("--version")
    assert result.exit_code == 0 and re.fullmatch(r"embspace-lens \d+\.\d+\.\d+\S*\n", result.stdout)


# -- as a program


@needs_demo
@pytest.mark.parametrize(
    ("redirection", "message"),
    [
        (">&-", r"Standard output is closed\. Name a file for the table: --out table\.csv\.\n"),
        pytest.param(
            "> /dev/full",
            r"The command failed \(OSError: .*No space left on device\)\. .*\n",
            marks=pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system"),
        ),
    ],
)
def test_output_that_cannot_be_written_is_one_line(redirection, message):
    command = f"{sys.executable} -m embspace_lens models {redirection}"
    process = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert process.returncode == 2 and re.fullmatch(message, process.stderr), process.stderr


def test_closed_pipe_ends_the_program_without_a_traceback(folder):
    command = (
        f"{sys.executable} -W error::ResourceWarning -m embspace_lens neurons --model {folder} --format csv | head -n 1"
    )
    process = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert process.stdout == '"layer","neuron","weight","rank","token_index","token_string","score"\n'
    assert "Traceback" not in process.stderr and "BrokenPipe" not in process.stderr


@pytest.mark.full
def test_errors_are_printed_without_a_traceback(folder):
    process = subprocess.run(
        [sys.executable, "-m", "embspace_lens", "neurons", "--model", folder, "--layer", "7"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert process.returncode == 2 and process.stdout == ""
    assert process.stderr == "layer=7 is out of range: tiny has 3 layers (0 to 2).\n"


def test_the_entry_point_runs_the_application(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["embspace-lens", "--help"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0 and capsys.readouterr().out.startswith("Usage: embspace-lens ")
    assert app.info.help.startswith("Read a transformer's weights")


@pytest.mark.full
@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals on this system")
def test_terminal_shows_only_the_first_rows_of_long_tables(folder):
    parent, child = os.openpty()
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm"}
    command = [sys.executable, "-m", "embspace_lens", "neurons", "--model", folder, "--vocabulary", "words", "-k", "2"]
    with subprocess.Popen(command, stdout=child, stderr=subprocess.PIPE, env=environment) as program:
        os.close(child)
        output = b""
        try:
            while output_chunk := os.read(parent, 4096):
                output += output_chunk
        except OSError:  # raised on Linux after the other end was closed
            pass
        program.communicate()
    os.close(parent)
    text = output.decode("utf-8")
    assert f"… {3 * 128 * 2 - 40} more of {3 * 128 * 2}" in text
    assert "\x1b[2m␣\x1b[0m" in text
