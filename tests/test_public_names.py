"""The public names of the sub-packages whose functions users call with `embspace_lens.<sub-package>.<function>`."""

import importlib
import inspect
import pkgutil

import pytest

WINGS = [
    importlib.import_module(f"embspace_lens.{name}")
    for name in ("circuits", "compare", "evidence", "factors", "forward", "interventions")
]
FUNCTIONS = [(wing, name) for wing in WINGS for name in wing.__all__ if name[0].islower()]


@pytest.mark.parametrize("wing", WINGS, ids=lambda wing: wing.__name__)
def test_no_module_has_the_name_of_a_public_function(wing):
    modules = {module.name for module in pkgutil.iter_modules(wing.__path__)}
    for name in modules:
        importlib.import_module(f"{wing.__name__}.{name}")
    assert not modules & set(wing.__all__) and set(wing.__all__) <= set(dir(wing))
    for name in wing.__all__:
        assert inspect.isfunction(getattr(wing, name)) or inspect.isclass(getattr(wing, name))


@pytest.mark.parametrize(("wing", "name"), FUNCTIONS, ids=[name for _, name in FUNCTIONS])
def test_public_functions_are_documented(wing, name):
    function = getattr(wing, name)
    text = inspect.getdoc(function) or ""
    for section in ("Args:", "Returns:", "Raises:", "Example:"):
        assert section in text, section
    assert "DataFrame" not in str(inspect.signature(function).return_annotation) or "One row per (" in text


@pytest.mark.parametrize("wing", WINGS, ids=lambda wing: wing.__name__)
def test_unknown_names_are_an_attribute_error(wing):
    with pytest.raises(AttributeError):
        wing.nothing  # noqa: B018
