"""README.md: its Python code runs and prints the output shown, and its links and commands exist."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from unchecked import unchecked_types

from embspace_lens.cli import app

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text("utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[int, str, str]]:
    """The Python blocks: line number, code, and the expected output, empty if no ```text block follows."""
    matches = list(BLOCK.finditer(TEXT))
    python = []
    for block, following in zip(matches, [*matches[1:], None], strict=True):
        if block[1] == "python":
            is_output = following and following[1] == "text" and not TEXT[block.end() : following.start()].strip()
            python.append(
                (TEXT[: block.start()].count("\n") + 1, block[2], following[2] if following and is_output else "")
            )
    return python


@pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")
def test_python_blocks_print_the_output_beside_them():
    namespace: dict[str, Any] = {"__name__": "readme"}
    compared = 0
    for line, code, expected in blocks():
        stdout = io.StringIO()
        source = "\n" * line + code  # so that a traceback shows the line of README.md
        with contextlib.redirect_stdout(stdout):
            exec(compile(source, str(README), "exec"), namespace)  # one namespace: later blocks use earlier names
        printed = "\n".join(row.rstrip() for row in stdout.getvalue().splitlines())
        assert printed.strip("\n") == expected.strip("\n"), f"the output of the block at line {line}"
        compared += bool(expected.strip())
    assert compared, "the first example shows its output"


def test_readme_is_short():
    assert len(TEXT.splitlines()) <= 130


def test_relative_links_lead_to_files():
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", TEXT)
    missing = [link for link in links if "://" not in link and not (README.parent / link).exists()]
    assert links and not missing


def test_commands_exist():
    makefile = (README.parent / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    inline = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL).split("`")[1::2]
    shell = [block[2] for block in BLOCK.finditer(TEXT) if block[1] == "sh"]
    commands = set(re.findall(r"\bmake ([a-z0-9-]+)\b", "\n".join([*inline, *shell])))
    assert {"demo", "test"} <= commands <= targets


@pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")
def test_inline_commands_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    inline = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL).split("`")[1::2]
    commands = [part.split()[1:] for part in inline if part.startswith("embspace-lens ")]
    without_data = [command for command in commands if "DATA" not in command]
    assert len(without_data) >= 3
    for command in without_data:
        with unchecked_types():
            result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, (command, result.output)


def test_names_in_its_tables_are_public():
    import embspace_lens

    names = re.findall(
        r"`(?:(lens|evidence|factors|site)?\.)?([a-z_]+)`", "\n".join(re.findall(r"^\|.*\|$", TEXT, re.M))
    )
    owners: list[Any] = [
        embspace_lens,
        embspace_lens.EmbeddingLens,
        embspace_lens.evidence,
        embspace_lens.factors,
        embspace_lens.site,
    ]
    missing = [name for _, name in names if not any(hasattr(owner, name) for owner in owners)]
    assert names and not missing
