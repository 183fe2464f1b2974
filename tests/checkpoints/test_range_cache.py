"""The cache of ranges holds complete ranges only, and no more bytes than its bound."""

import os
import time

import pytest

from embspace_lens import EmbspaceError
from embspace_lens.checkpoints.range_cache import RangeCache


def add(cache: RangeCache, start: int, stop: int, key: str = "key") -> None:
    with cache.new(key, start, stop) as new:
        new.path.write_bytes(bytes(position % 251 for position in range(start, stop)))


def stored(cache: RangeCache) -> set[str]:
    return {path.name for path in cache.folder.glob("*/*")}


def content(cache: RangeCache, start: int, stop: int, key: str = "key") -> bytes | None:
    cached = cache.find(key, start, stop)
    return None if cached is None else cached.path.read_bytes()[start - cached.start : stop - cached.start]


def test_range_is_found_in_itself_and_in_a_larger_one(tmp_path):
    cache = RangeCache(tmp_path, 10**6)
    add(cache, 10, 50)
    assert content(cache, 10, 50) == bytes(range(10, 50))
    assert content(cache, 20, 30) == bytes(range(20, 30))
    assert content(cache, 5, 30) is None
    assert content(cache, 10, 50, "other") is None


def test_cached_parts_are_copied_and_the_others_are_missing(tmp_path):
    cache = RangeCache(tmp_path, 10**6)
    for start, stop in ((0, 12), (20, 40), (22, 30), (35, 42), (60, 90)):
        add(cache, start, stop)
    with cache.new("key", 10, 70) as new:
        new.path.write_bytes(bytes(60))
        assert cache.copy_parts("key", 10, 70, new.path) == [(12, 20), (42, 60)]
        copied = new.path.read_bytes()
    expected = [p if not (12 <= p < 20 or 42 <= p < 60) else 0 for p in range(10, 70)]
    assert copied == bytes(expected)


def test_larger_range_replaces_the_ranges_that_it_contains(tmp_path):
    cache = RangeCache(tmp_path, 10**6)
    for start, stop in ((0, 12), (20, 30), (60, 90), (10, 70)):
        add(cache, start, stop)
    assert stored(cache) == {"0-12", "60-90", "10-70"}


def test_cache_never_exceeds_its_bound_and_keeps_what_was_used_last(tmp_path):
    cache = RangeCache(tmp_path, 1000)
    for i in range(10):
        add(cache, 100 * i, 100 * (i + 1))
        os.utime(cache.path("key", 100 * i, 100 * (i + 1)), (i, i))
    assert cache.find("key", 0, 100)  # from now on the most recently used one
    add(cache, 1000, 1200)
    assert sum(path.stat().st_size for path in cache.folder.glob("*/*")) <= 1000
    assert stored(cache) == {"0-100", *(f"{100 * i}-{100 * i + 100}" for i in range(3, 10)), "1000-1200"}


def test_bound_holds_for_ranges_of_an_earlier_process(tmp_path):
    for start in range(0, 1000, 100):
        add(RangeCache(tmp_path, 1000), start, start + 100)
    later = RangeCache(tmp_path, 500)
    add(later, 2000, 2010)
    assert sum(path.stat().st_size for path in later.folder.glob("*/*")) <= 500


def test_only_ranges_are_removed(tmp_path):
    (tmp_path / "ranges" / "key").mkdir(parents=True)
    others = [tmp_path / "letter.txt", tmp_path / "ranges" / "letter.txt", tmp_path / "ranges" / "key" / "letter.txt"]
    for path in others:
        path.write_bytes(bytes(5000))
    cache = RangeCache(tmp_path, 100)
    for start in range(0, 1000, 100):
        add(cache, start, start + 100)
    assert all(path.is_file() for path in others)
    assert stored(cache) == {"900-1000", "letter.txt"}


def test_interrupted_range_leaves_no_file(tmp_path):
    cache = RangeCache(tmp_path, 10**6)
    with pytest.raises(KeyboardInterrupt), cache.new("key", 0, 8) as new:
        new.path.write_bytes(b"1234")
        raise KeyboardInterrupt
    assert stored(cache) == set() and cache.find("key", 0, 8) is None


def test_file_of_another_size_is_no_range(tmp_path):
    cache = RangeCache(tmp_path, 10**6)
    add(cache, 0, 8)
    cache.path("key", 0, 8).write_bytes(b"1234")  # a crash of the system may truncate it
    assert cache.find("key", 0, 8) is None


def test_range_that_cannot_be_touched_is_found(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(path)

    cache = RangeCache(tmp_path, 10**6)
    add(cache, 0, 8)
    monkeypatch.setattr(os, "utime", denied)  # a cache of another user
    assert content(cache, 0, 8) == bytes(range(8))


def test_temporary_files_of_killed_processes_are_removed_after_a_day(tmp_path):
    cache = RangeCache(tmp_path, 100)
    add(cache, 0, 50)
    old, new = (cache.folder / "key" / f".50-150.{name}.partial" for name in ("0ld0", "0e30"))
    for path in (old, new):
        path.write_bytes(bytes(10))
    old = old.rename(old.with_name(".50-150.01d0.partial"))
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    add(cache, 200, 300)
    assert not old.exists() and new.exists()


def test_temporary_cache_is_removed_with_its_last_reference():
    cache = RangeCache.temporary()
    add(cache, 0, 50)
    folder = cache.folder.parent
    assert folder.is_dir()
    del cache
    assert not folder.exists()


@pytest.mark.parametrize("text", ["many", "0", "-1", "nan", "inf"])
def test_bound_must_be_a_positive_number(text, monkeypatch):
    monkeypatch.setenv("EMBSPACE_LENS_CACHE_GB", text)
    with pytest.raises(EmbspaceError) as raised:
        RangeCache.of_user()
    assert str(raised.value) == f"EMBSPACE_LENS_CACHE_GB={text!r} is not a number of gigabytes above 0."


def test_user_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("EMBSPACE_LENS_CACHE_GB", "0.5")
    cache = RangeCache.of_user()
    assert (cache.folder, cache.max_bytes) == (tmp_path / "cache" / "ranges", 500_000_000)
    monkeypatch.delenv("EMBSPACE_LENS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert RangeCache.of_user().folder == tmp_path / "xdg" / "embspace_lens" / "ranges"
