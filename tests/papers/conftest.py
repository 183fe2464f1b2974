"""A registry with one quick experiment."""

import pytest
from papers_stub import only_counted


@pytest.fixture
def calls(monkeypatch):
    """The settings with which the quick experiment ran."""
    return only_counted(monkeypatch)
