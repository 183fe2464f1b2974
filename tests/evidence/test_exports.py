"""The public names of the sub-package."""

import importlib
import inspect
import pkgutil

import pytest

from embspace_lens import evidence


def test_no_module_has_the_name_of_a_public_function():
    modules = {module.name for module in pkgutil.iter_modules(evidence.__path__)}
    for name in modules:
        importlib.import_module(f"embspace_lens.evidence.{name}")
    assert not modules & set(evidence.__all__) and set(evidence.__all__) <= set(dir(evidence))
    for name in evidence.__all__:
        assert inspect.isfunction(getattr(evidence, name)) or inspect.isclass(getattr(evidence, name))


@pytest.mark.parametrize("name", [name for name in evidence.__all__ if name[0].islower()])
def test_public_functions_are_documented(name):
    text = inspect.getdoc(getattr(evidence, name)) or ""
    for section in ("Args:", "Returns:", "Raises:", "Example:"):
        assert section in text, section
    assert (
        "DataFrame" not in str(inspect.signature(getattr(evidence, name)).return_annotation) or "One row per (" in text
    )


def test_unknown_names_are_an_attribute_error():
    with pytest.raises(AttributeError):
        evidence.nothing  # noqa: B018
