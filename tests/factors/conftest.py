"""Fixtures for the tests of factors."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked_types():
    """No type checks, for tests that pass arguments of a wrong type and expect the package's own message."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
