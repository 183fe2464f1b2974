"""A registry with one quick experiment."""

import pytest
from papers_stub import NAME, counted

from embspace_lens.papers import number_check, runs


@pytest.fixture
def calls(monkeypatch):
    """The settings with which the quick experiment ran; it is the only one in the registry."""
    settings = []
    registry = {NAME: counted(settings)}
    for module in (runs, number_check):
        monkeypatch.setattr(module, "experiments", lambda: registry)
    return settings
