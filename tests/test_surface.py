"""The public surface: names, shared arguments, docstrings and their examples, imports without side effects."""

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import embspace_lens
from embspace_lens import EmbeddingLens

PACKAGE = Path(embspace_lens.__file__).parent
WINGS = [path.parent.name for path in sorted(PACKAGE.glob("*/__init__.pyi"))]
READINGS = ["neurons", "subheads", "ov", "qk", "singular", "directions", "search", "read"]
# Its example would take minutes; a tutorial runs it.
WITHOUT_EXAMPLE = {"stitch_sweep"}


def functions_of(wing):
    module = importlib.import_module(f"embspace_lens.{wing}")
    return {name: getattr(module, name) for name in module.__all__ if inspect.isfunction(getattr(module, name))}


def test_names_are_public_and_sorted():
    names = embspace_lens.__all__
    assert dir(embspace_lens) == names == sorted(names)
    assert not [name for name in names if name.startswith("_")]
    assert all(getattr(embspace_lens, name) is not None for name in names)
    with pytest.raises(AttributeError):
        getattr(embspace_lens, "missing_name")  # noqa: B009 (attribute access is what is tested)


def test_shared_arguments_share_defaults():
    defaults = {"layer": None, "head": None, "neuron": None, "k": 10, "largest": True}
    for method in [getattr(EmbeddingLens, name) for name in READINGS]:
        for name, parameter in inspect.signature(method).parameters.items():
            if name in defaults:
                assert parameter.default == defaults[name], (method, name)
            if name in ("weight", "k", "largest", "side", "names", "n_directions"):
                assert parameter.kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("name", [*READINGS, "components"])
def test_docstrings_name_the_grain(name):
    text = getattr(EmbeddingLens, name).__doc__
    assert "Returns:\n            One row per (" in text and "Example:" in text


def test_every_public_name_is_documented():
    for name in embspace_lens.__all__:
        assert len(inspect.getdoc(getattr(embspace_lens, name)) or "") > 20, name


@pytest.mark.parametrize("wing", ["circuits", "compare", "evidence", "factors", "interventions", "site"])
def test_every_public_function_has_an_example(wing):
    for name, function in functions_of(wing).items():
        if name not in WITHOUT_EXAMPLE:
            text = inspect.getdoc(function) or ""
            assert "Example:" in text and "Returns:" in text and "Args:" in text, name


def test_pytest_finds_every_example():
    """An example in a docstring that a decorator hides would not be tested, without any error."""
    for path in PACKAGE.rglob("*.py"):
        written = sum(
            ">>>" in (ast.get_docstring(node) or "")
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        )
        if written:
            name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
            doctests = doctest.DocTestFinder().find(importlib.import_module(name), name)
            assert sum(bool(test.examples) for test in doctests) == written, name


def test_importing_reaches_no_network_and_no_optional_package():
    code = (
        "import sys, socket\n"
        "def refuse(*_, **__): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "from embspace_lens import EmbeddingLens, demo\n"
        "demo.load(demo.names()[0])\n"
        "print(sorted(m for m in ('plotly', 'kaleido', 'sklearn.manifold') if m in sys.modules))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
