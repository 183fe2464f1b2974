"""A tiny model in a folder, and a function that runs a command on it."""

import pytest
from command_line import HOSTILE, save_model
from typer.testing import CliRunner
from unchecked import unchecked_types

from embspace_lens.cli import app


@pytest.fixture(autouse=True)
def unchecked():
    """The command line passes on what the user types; the library checks it, and not the annotations."""
    with unchecked_types():
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny model of three layers, with words and with hostile tokens."""
    return save_model(tmp_path_factory.mktemp("models") / "tiny", n_layers=3, n_tokens=330, extra_tokens=HOSTILE)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)

    def invoke(*arguments, model=None):
        return CliRunner().invoke(app, [*map(str, arguments), *(["--model", model] if model else [])])

    return invoke
