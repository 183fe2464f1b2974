"""Caches in temporary folders, and requests that are repeated without pauses."""

import pytest

from embspace_lens.checkpoints import range_cache, remote_folder


@pytest.fixture(autouse=True)
def no_user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(range_cache.FOLDER_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(range_cache.SIZE_VARIABLE, raising=False)
    monkeypatch.setattr(remote_folder, "FIRST_PAUSE", 0.001)
