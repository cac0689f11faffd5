"""Compiled engines on disk: every field of the key counts, nothing is half there, damage heals, size is bounded."""

from __future__ import annotations

import os
import threading
from dataclasses import fields, replace

import pytest

from node_agent.engines.engine_cache import EngineCache, EngineKey, write_whole

KEY = EngineKey(
    partition="ab" * 32,
    shapes={"x": ((1, 6), (2, 6), (8, 6))},
    runtime="11.4.0.106",
    device="Orin",
    capability=(8, 7),
    driver=(13, 2),
)
OTHERS = {
    "partition": "cd" * 32,
    "shapes": {"x": ((1, 6), (2, 6), (9, 6))},
    "runtime": "11.4.1.1",
    "device": "Thor",
    "capability": (8, 9),
    "driver": (13, 1),
    "flags": ("level=5",),
}


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "engines")


def test_nothing_is_there_at_first(cache):
    assert cache.get(KEY) is None


def test_what_was_put_comes_back(cache):
    cache.put(KEY, b"engine")
    assert cache.get(KEY) == b"engine"


def test_every_field_of_the_key_counts(cache):
    assert {field.name for field in fields(EngineKey)} == set(OTHERS)
    cache.put(KEY, b"engine")
    for name, value in OTHERS.items():
        other = replace(KEY, **{name: value})
        assert other.digest() != KEY.digest(), name
        assert cache.get(other) is None, name


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign", "header"])
def test_a_damaged_file_is_removed_and_counts_as_absent(cache, damage):
    path = cache.put(KEY, b"engine" * 100)
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        del data[-7:]
    elif damage == "flipped":
        data[-1] ^= 1
    elif damage == "empty":
        data.clear()
    elif damage == "foreign":
        data = bytearray(cache.put(replace(KEY, device="Thor"), b"other").read_bytes())
    else:
        del data[10:]
    path.write_bytes(data)
    assert cache.get(KEY) is None
    assert not path.exists()
    cache.put(KEY, b"again")
    assert cache.get(KEY) == b"again"


def test_the_least_recently_used_goes_first(tmp_path):
    one = len(EngineCache(tmp_path / "probe").put(KEY, bytes(1000)).read_bytes())
    cache = EngineCache(tmp_path / "engines", limit_bytes=3 * one)
    keys = [replace(KEY, device=f"d{index}") for index in range(4)]
    for age, key in enumerate(keys[:3]):
        path = cache.put(key, bytes(1000))
        os.utime(path, (age, age))
    assert cache.get(keys[0]) is not None  # used again: now the newest
    cache.put(keys[3], bytes(1000))
    held = [cache.get(key) is not None for key in keys]
    assert held == [True, False, True, True]
    assert sum(path.stat().st_size for path in (tmp_path / "engines").iterdir()) <= 3 * one


def test_one_engine_larger_than_the_limit_is_kept_alone(tmp_path):
    cache = EngineCache(tmp_path, limit_bytes=10)
    cache.put(KEY, bytes(1000))
    cache.put(replace(KEY, device="Thor"), bytes(1000))
    assert cache.get(KEY) is None
    assert cache.get(replace(KEY, device="Thor")) is not None


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    target = tmp_path / "file"
    write_whole(target, b"before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fdopen", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(target, b"after")
    monkeypatch.undo()
    assert target.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_readers_see_whole_engines_while_others_write(tmp_path):
    cache = EngineCache(tmp_path)
    engines = [bytes([index]) * 200_000 for index in range(4)]
    cache.put(KEY, engines[0])
    stop = threading.Event()
    wrong = []

    def write():
        while not stop.is_set():
            for engine in engines:
                cache.put(KEY, engine)

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(200):
        found = cache.get(KEY)
        if found is not None and found not in engines:
            wrong.append(found[:10])
    stop.set()
    writer.join()
    assert not wrong
