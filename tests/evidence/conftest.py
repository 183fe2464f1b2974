"""Fixtures of the tests of evidence."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked_types(monkeypatch):
    """Annotations are not checked, because the test gives arguments of wrong types."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
