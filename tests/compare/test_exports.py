"""The public names of the sub-package."""

import importlib
import inspect
import pkgutil

import pytest

from embspace_lens import compare


def test_no_module_has_the_name_of_a_public_function():
    modules = {module.name for module in pkgutil.iter_modules(compare.__path__)}
    for name in modules:
        importlib.import_module(f"embspace_lens.compare.{name}")
    assert not modules & set(compare.__all__) and set(compare.__all__) <= set(dir(compare))
    for name in compare.__all__:
        assert inspect.isfunction(getattr(compare, name)) or inspect.isclass(getattr(compare, name))


@pytest.mark.parametrize("name", [name for name in compare.__all__ if name[0].islower()])
def test_public_functions_are_documented(name):
    text = inspect.getdoc(getattr(compare, name)) or ""
    for section in ("Args:", "Returns:", "Raises:", "Example:"):
        assert section in text, section
    assert (
        "DataFrame" not in str(inspect.signature(getattr(compare, name)).return_annotation) or "One row per (" in text
    )


def test_unknown_names_are_an_attribute_error():
    with pytest.raises(AttributeError):
        compare.nothing  # noqa: B018
