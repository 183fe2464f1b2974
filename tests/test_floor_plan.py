"""The order of imports between sub-packages, and the operations that only one sub-package may perform; see CONTRIBUTING.md."""

import ast
import importlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import embspace_lens

PACKAGE = Path(embspace_lens.__file__).parent
NAME = PACKAGE.name
# Each wing imports only wings that precede it in this list.
WINGS = [
    "errors",
    "files",
    "tables",
    "checkpoints",
    "search",
    "weights",
    "space",
    "forward",
    "demo",
    "loading",
    "readings",
    "lens",
    "circuits",
    "interventions",
    "compare",
    "evidence",
    "factors",
    "features",
    "display",
    "plots",
    "accessor",
    "report",
    "site",
    "papers",
    "cli",
    "__main__",
]
ROOT = {"__init__", "__main__", "lens", "loading", "errors", "files", "accessor"}
CONFTEST = "conftest"  # names for the examples in docstrings; not in the wheel
MAX_LINES = 350
LONG_MODULES = {
    "errors.py": "contains all messages",
    "tables/columns.py": "the glossary of all columns",
    "lens.py": "the docstrings of its methods are the reference of the readings",
}
IMPORTERS = ("import_module", "__import__")
HOST_ATTRIBUTES = {"host", "cfg", "blocks", "_modules", "hook_dict", "original_model"}


def module_name(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if path.stem != CONFTEST}
STUBS = {module_name(path): path for path in sorted(PACKAGE.rglob("__init__.pyi"))}
PUBLIC = {
    alias.asname or alias.name
    for path in STUBS.values()
    for node in ast.walk(ast.parse(path.read_text("utf-8")))
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text("utf-8"))


def wing_of(module: str) -> str:
    """The wing or root module that a dotted name belongs to; the package itself is `__init__`."""
    return [*module.split("."), "__init__"][1]


def absolute(package: str, level: int, name: str) -> str:
    """The absolute name of a module that is imported with `level` leading dots."""
    if not level:
        return name
    base = package.rsplit(".", level - 1)[0]
    return f"{base}.{name}" if name else base


@cache
def imports(module: str) -> dict[str, int]:
    """The modules of the package that a module imports anywhere, also inside functions, with the line of the import."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    loaded: dict[str, int] = {}
    for node in ast.walk(tree(module)):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = absolute(package, node.level, node.module or "")
            modules = [f"{source}.{alias.name}" for alias in node.names]
            targets = [module if module in MODULES else source for module in modules]
        elif isinstance(node, ast.Call) and called_name(node) in IMPORTERS:
            targets = [
                absolute(package, len(name) - len(name.lstrip(".")), name.lstrip(".")) for name in strings_of(node)
            ]
        for target in targets:
            if target == NAME or target.startswith(f"{NAME}."):
                loaded.setdefault(target, getattr(node, "lineno", 0))
    return loaded


def called_name(call: ast.Call) -> str:
    """The name of a called function without its prefix: `b` of `a.b(...)`."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def strings_of(call: ast.Call) -> list[str]:
    """The strings among the arguments of a call."""
    return [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]


def listed(offences: list[str]) -> str:
    """All offences, one per line, because pytest shows only the first few."""
    return "\n" + "\n".join(offences)


# -- Order of imports


def test_every_wing_is_in_the_import_order():
    assert {wing_of(module) for module in MODULES} == {*WINGS, "__init__"}


def test_wings_import_only_wings_that_precede_them():
    wrong_imports = []
    for module in MODULES:
        for target, line in imports(module).items():
            wing, target_wing = wing_of(module), wing_of(target)
            if wing == "__init__":  # names belong in __init__.pyi; the accessor registers `frame.embspace`
                is_allowed = target_wing == "accessor"
            else:
                is_allowed = wing == target_wing or (
                    target_wing != "__init__" and WINGS.index(target_wing) < WINGS.index(wing)
                )
            if not is_allowed:
                wrong_imports.append(f"{module}:{line} imports {target}")
    assert not wrong_imports, listed(wrong_imports)


def test_imports_name_the_module_that_defines_a_name():
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    indirect = [
        f"{module}:{line} imports from the __init__ of {target}"
        for module in MODULES
        for target, line in imports(module).items()
        if target in packages and not (wing_of(module) == "__main__" and wing_of(target) == "cli")
    ]
    assert not indirect, listed(indirect)


def test_no_import_cycle_between_modules():
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " imports ".join([*path[path.index(module) :], module])
        if module not in finished:
            for target in imports(module):
                if target in MODULES and target != NAME:
                    visit(target, (*path, module))
            finished.add(module)

    for module in MODULES:
        if module != NAME:
            visit(module, ())


# -- Files and names


def test_root_holds_only_its_modules():
    assert {path.stem for path in PACKAGE.glob("*.py")} - {CONFTEST} == ROOT


def test_modules_are_short():
    counts = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text("utf-8").splitlines()) for path in MODULES.values()
    }
    long = {name: count for name, count in counts.items() if count > MAX_LINES and name not in LONG_MODULES}
    assert not long, f"more than {MAX_LINES} lines"


def test_no_module_has_the_name_of_a_public_function():
    functions = {name for name in PUBLIC if name not in {module.rsplit(".")[-1] for module in STUBS}}
    conflicts = {module for module in MODULES if module.rsplit(".")[-1] in functions}
    assert not conflicts, "the name of a module is a noun, and the name of a function is a verb"


@pytest.mark.parametrize("package", STUBS)
def test_dir_shows_the_names_of_the_stub(package):
    names = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(STUBS[package].read_text("utf-8")))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    module = importlib.import_module(package)
    assert set(dir(module)) == set(module.__all__) == names
    for name in names:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError):
        getattr(module, "missing_name")  # noqa: B009 (attribute access is what is tested)


def test_top_level_has_every_public_name_of_its_wings():
    wings = {name for name in dir(embspace_lens) if f"{NAME}.{name}" in STUBS}
    assert wings == {package.rpartition(".")[2] for package in STUBS} - {NAME}


# -- Operations that only one wing may perform


def outside(wing: str, kinds: Any, condition: Callable[[Any], bool]) -> list[str]:
    """`module:line` of the nodes for which a condition holds, in all wings but one."""
    return [
        f"{module}:{node.lineno}"
        for module in MODULES
        if wing_of(module) != wing
        for node in ast.walk(tree(module))
        if isinstance(node, kinds) and condition(node)
    ]


def test_only_weights_imports_the_host():
    def imports_host(node: ast.Import | ast.ImportFrom | ast.Call) -> bool:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [] if node.level else [node.module or ""]
        else:
            names = strings_of(node) if called_name(node) in IMPORTERS else []
        return any(name.split(".")[0] == "transformer_lens" for name in names)

    offences = outside("weights", (ast.Import, ast.ImportFrom, ast.Call), imports_host)
    assert not offences, listed(offences)


def test_only_weights_uses_attributes_of_the_host():
    def uses_host(node: ast.Attribute | ast.Call) -> bool:
        if isinstance(node, ast.Attribute):
            return node.attr in HOST_ATTRIBUTES
        return called_name(node) in ("getattr", "hasattr") and not HOST_ATTRIBUTES.isdisjoint(strings_of(node))

    offences = outside("weights", (ast.Attribute, ast.Call), uses_host)
    # The configuration of a sparse autoencoder is called cfg too.
    offences = [offence for offence in offences if not offence.startswith(f"{NAME}.readings.vectors:")]
    assert not offences, listed(offences)


def test_only_forward_runs_a_model():
    offences = outside("forward", ast.Call, lambda call: called_name(call) in ("run_with_hooks", "run_with_cache"))
    assert not offences, listed(offences)


def test_only_frames_makes_dataframes():
    makers = ("DataFrame", "from_dict", "from_records")
    calls = outside("", ast.Call, lambda call: called_name(call) in makers)
    offences = [offence for offence in calls if not offence.startswith(f"{NAME}.tables.frames:")]
    assert not offences, listed(offences)


def test_all_messages_are_in_errors():
    offences = outside("errors", ast.Call, lambda call: called_name(call) == "EmbspaceError")
    assert not offences, listed(offences)


def test_no_pickle_and_no_future_annotations():
    for path in MODULES.values():
        text = path.read_text("utf-8")
        assert "pickle" not in text and "torch.load(" not in text, path
        assert "from __future__ import annotations" not in text, (
            f"{path}: jaxtyping would skip the fields of dataclasses"
        )
