"""The public face: names, shared arguments, docstrings that run, imports that point down."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import embspace_lens
from embspace_lens import EmbeddingLens

PACKAGE = Path(embspace_lens.__file__).parent
FLOORS = [
    {"errors", "columns"},
    {"rows", "raw", "files", "texts"},
    {"pairs", "experts", "screen", "shards"},
    {"topk"},
    {"frames", "vocabulary", "select"},
    {"host"},
    {"rotary"},
    {"weights", "first_mlp"},
    {"space"},
    {"vectors"},
    {"readings"},
    {"lens", "forward", "pooled"},
    {"demo"},
    {"compare", "evidence", "circuits", "factors"},
    {"show"},
    {"cli"},
    {"__main__"},
]
# Imported inside a function: a model's name may be a demo model's, and results draw themselves when asked to.
LATE = {("lens", "demo"), ("lens", "show"), ("compare", "show")}


def floor_of(module):
    return next(i for i, names in enumerate(FLOORS) if module in names)


def test_imports_point_down():
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts == ("__init__",):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or node.level == 0:
                continue
            base = parts[: len(parts) - node.level]
            names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            for name in names:
                target = (*base, name)[0]
                if (
                    target == parts[0]
                    or (parts[0], target) in LATE
                    or (not (PACKAGE / f"{target}.py").exists() and not (PACKAGE / target).is_dir())
                ):
                    continue
                assert floor_of(target) < floor_of(parts[0]), (
                    f"{'/'.join(parts)} imports {target}, which is not below it"
                )


def test_only_the_host_module_knows_the_host():
    knows = {
        path.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("transformer_lens")
        and path.parent == PACKAGE
    }
    assert knows <= {"host.py", "raw.py", "experts.py", "weights.py"}  # weights.py for FactoredMatrix alone


def test_only_frames_makes_frames():
    for path in PACKAGE.rglob("*.py"):
        if path.name != "frames.py":
            assert "DataFrame(" not in path.read_text(), path


def test_all_is_what_is_visible():
    submodules = {p.stem for p in PACKAGE.glob("*.py")} | {p.name for p in PACKAGE.iterdir() if p.is_dir()}
    visible = {name for name in dir(embspace_lens) if not name.startswith("_")} - submodules
    visible -= {"TYPE_CHECKING", "Any", "import_module"}
    assert all(getattr(embspace_lens, name) is not None for name in embspace_lens.__all__)
    with pytest.raises(AttributeError):
        getattr(embspace_lens, "nothing")  # noqa: B009 (what is tested)
    assert visible == set(embspace_lens.__all__)
    assert sorted(embspace_lens.__all__) == embspace_lens.__all__


def test_shared_arguments_share_defaults():
    methods = [
        getattr(EmbeddingLens, n) for n in ("neurons", "subheads", "ov", "qk", "singular", "directions", "search")
    ]
    defaults = {"layer": None, "head": None, "neuron": None, "k": 10, "largest": True}
    for method in methods:
        for name, parameter in inspect.signature(method).parameters.items():
            if name in defaults:
                assert parameter.default == defaults[name], (method, name)
            if name in ("weight", "k", "largest", "side", "names", "n_directions"):
                assert parameter.kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("name", ["neurons", "subheads", "ov", "qk", "singular", "directions", "search", "components"])
def test_docstrings_name_the_grain(name):
    text = getattr(EmbeddingLens, name).__doc__
    assert "Returns:\n            One row per (" in text and "Example:" in text


def test_every_public_name_is_documented():
    for name in embspace_lens.__all__:
        assert len(inspect.getdoc(getattr(embspace_lens, name)) or "") > 20, name


def modules():
    """All modules whose examples need a model and a lens alone; the others' have tests of their own."""
    found = pkgutil.walk_packages(embspace_lens.__path__, "embspace_lens.")
    apart = ("embspace_lens.compare.", "embspace_lens.evidence.", "embspace_lens.circuits.", "embspace_lens.__main__")
    return [module.name for module in found if not module.name.startswith(apart)]


def test_the_examples_in_docstrings_run(tiny, tmp_path):
    model = tiny("gpt2")
    names = {"model": model, "lens": EmbeddingLens(model), "EmbeddingLens": EmbeddingLens, "torch": torch}
    if "reviews-small-0" not in embspace_lens.demo.names():
        pytest.skip("the demo models are not in this checkout")
    ran = set()
    for name in modules():
        module = importlib.import_module(name)
        for test in doctest.DocTestFinder().find(module, globs=vars(module) | names | {"folder": tmp_path / "folder"}):
            result = doctest.DocTestRunner().run(test)
            assert result.failed == 0, test.name
            ran |= {test.name} if result.attempted else set()
    assert len(ran) >= 25, ran


@pytest.mark.parametrize("package", ["compare", "evidence", "circuits", "factors", "show.site"])
def test_every_public_function_has_an_example(package):
    module = importlib.import_module(f"embspace_lens.{package}")
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isfunction(value) and name != "stitch_sweep":  # takes minutes; tutorial 3 runs it
            text = inspect.getdoc(value)
            assert "Example:" in text and "Returns:" in text and "Args:" in text, name


def test_importing_reaches_no_network_and_no_optional_package():
    code = (
        "import sys, socket\n"
        "def no(*_, **__): raise AssertionError('network')\n"
        "socket.socket.connect = no\n"
        "from embspace_lens import EmbeddingLens, demo\n"
        "demo.load(demo.names()[0])\n"
        "print(sorted(m for m in ('plotly', 'kaleido', 'sklearn.manifold') if m in sys.modules))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_no_pickle_and_no_future_annotations():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert "pickle" not in text and "torch.load" not in text, path
        assert "from __future__ import annotations" not in text, path
