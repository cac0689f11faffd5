"""The file store: resumes, verifies, never shows half a file, and stays within its bounds."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent import store as store_module
from node_agent.content import SCRATCH
from node_agent.errors import (
    CorruptFileError,
    DiskFullError,
    InvalidFileError,
    MissingFileError,
    StoreError,
    StoreFullError,
    StoreUnusableError,
    WrongOffsetError,
)
from node_agent.messages import FileRef
from node_agent.store import MARKER, FileStore
from tests.node_agent.harness import ref

DATA = bytes(range(256)) * 40
REF = ref(DATA, ".bin")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()} - {MARKER}


def fill(store: FileStore, data: bytes, suffix: str = ".bin") -> FileRef:
    file = ref(data, suffix)
    assert store.write(file, 0, data) == len(data)
    return file


def restarted(store: FileStore) -> FileStore:
    """The store as the next process finds it."""
    store.close()
    return FileStore.open(store.root, store.limit_bytes)


@given(cuts=st.lists(st.integers(0, len(DATA) - 1), max_size=6), restarts=st.sets(st.integers(0, 6)))
def test_any_pieces_with_restarts_between_make_the_file(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], restarts: set[int]
) -> None:
    root = tmp_path_factory.mktemp("store") / "s"
    store = FileStore.open(root)
    bounds = [0, *sorted(cuts), len(DATA)]
    for number, (start, stop) in enumerate(pairwise(bounds)):
        if number in restarts:
            store = restarted(store)
        assert store.offset(REF) == start
        if stop < len(DATA):
            assert store.write(REF, start, DATA[start:stop]) == stop
            assert REF.sha256 + ".bin" not in names(root)
    assert store.write(REF, store.offset(REF), DATA[store.offset(REF) :]) == len(DATA)
    assert names(root) == {REF.sha256 + ".bin"}
    assert store.require(REF).read_bytes() == DATA
    assert restarted(store).offset(REF) == len(DATA)


def test_only_its_owner_can_read_it(root: Path) -> None:
    store = FileStore.open(root)
    path = store.require(fill(store, DATA))
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_pieces_that_are_held_already_are_not_written_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore.open(root)
    store.write(REF, 0, DATA[:500])
    assert store.write(REF, 0, DATA[:300]) == 500
    assert store.write(REF, 200, DATA[200:900]) == 900
    store.write(REF, 900, DATA[900:])
    monkeypatch.setattr(store_module, "_pwrite", lambda *_: pytest.fail("written twice"))
    assert store.write(REF, 0, DATA) == len(DATA)


def test_pieces_that_leave_a_gap_or_overrun_are_refused(root: Path) -> None:
    store = FileStore.open(root)
    store.write(REF, 0, DATA[:100])
    for offset, data in ((101, DATA[101:110]), (-1, b"x"), (100, DATA[100:] + b"x")):
        with pytest.raises(WrongOffsetError):
            store.write(REF, offset, data)
    assert store.offset(REF) == 100


def test_a_corrupt_file_is_removed_and_can_be_shipped_again(root: Path) -> None:
    store = FileStore.open(root)
    with pytest.raises(CorruptFileError, match="arrived damaged"):
        store.write(REF, 0, b"x" + DATA[1:])
    assert names(root) == set()
    assert store.offset(REF) == 0
    assert store.write(REF, 0, DATA) == len(DATA)


@pytest.mark.parametrize("damage", ["flip", "truncate", "grow"])
def test_damage_on_disk_is_found_after_a_restart(root: Path, damage: str) -> None:
    store = FileStore.open(root)
    path = store.path(REF)
    fill(store, DATA)
    changed = {"flip": b"x" + DATA[1:], "truncate": DATA[:-1], "grow": DATA + b"x"}[damage]
    path.write_bytes(changed)
    store = restarted(store)
    with pytest.raises(MissingFileError):
        store.require(REF)
    assert not path.exists()


def test_a_damaged_part_is_found_when_the_file_is_complete(root: Path) -> None:
    store = FileStore.open(root)
    store.write(REF, 0, DATA[:500])
    part = root / (REF.sha256 + ".bin.part")
    part.write_bytes(b"x" * 500)
    store = restarted(store)
    assert store.offset(REF) == 500
    with pytest.raises(CorruptFileError):
        store.write(REF, 500, DATA[500:])
    part.write_bytes(b"x" * (len(DATA) + 1))
    assert restarted(store).offset(REF) == 0


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_leaves_no_half_file(root: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    store = FileStore.open(root)
    store.write(REF, 0, DATA[:100])
    real = os.pwrite

    def full(descriptor: int, data: Any, offset: int) -> int:
        if offset >= 150:
            raise OSError(code, os.strerror(code))
        return real(descriptor, data[:50], offset)

    monkeypatch.setattr(store_module, "_pwrite", full)
    with pytest.raises(DiskFullError, match="is full"):
        store.write(REF, 100, DATA[100:])
    assert names(root) == set()
    monkeypatch.undo()
    assert store.offset(REF) == 0
    assert store.write(REF, 0, DATA) == len(DATA)


def test_other_failures_of_the_disk_are_one_clear_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore.open(root)

    def broken(*_: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(store_module, "_pwrite", broken)
    with pytest.raises(StoreError, match="Input/output error") as caught:
        store.write(REF, 0, DATA)
    assert "--store" in caught.value.hint


def test_the_limit_drops_what_was_used_longest_ago_but_nothing_in_use(root: Path) -> None:
    store = FileStore.open(root, limit_bytes=1000)
    old, used, new = (
        fill(store, bytes([n]) * 400) if n < 2 else ref(bytes([n]) * 400, ".bin") for n in range(3)
    )
    os.utime(store.path(old), (2, 2))
    os.utime(store.path(used), (1, 1))
    store.pin([used])
    store.write(new, 0, bytes([2]) * 400)
    assert names(root) == {used.sha256 + ".bin", new.sha256 + ".bin"}
    assert store.nbytes() == 800
    store.pin([new])
    with pytest.raises(StoreFullError, match="may hold 1000 B"):
        store.write(old, 0, bytes([0]) * 400)
    store.unpin([used])
    assert store.write(old, 0, bytes([0]) * 400) == 400
    assert names(root) == {old.sha256 + ".bin", new.sha256 + ".bin"}


def test_a_pin_holds_until_it_is_taken_back_as_often(root: Path) -> None:
    store = FileStore.open(root, limit_bytes=len(DATA))
    file = fill(store, DATA)
    store.pin([file])
    store.pin([file])
    store.unpin([file])
    with pytest.raises(StoreFullError):
        fill(store, b"y")
    store.unpin([file])
    fill(store, b"y")


@pytest.mark.parametrize("bad", ["../x", "A" * 64, "a" * 63, "a" * 65, "a" * 63 + "/", ""])
def test_only_content_addresses_become_file_names(root: Path, bad: str) -> None:
    store = FileStore.open(root)
    for file in (FileRef(bad, 1), FileRef("a" * 64, 1, "/../x"), FileRef("a" * 64, 1, ".part")):
        for use in (store.path, store.offset, store.require, lambda f: store.write(f, 0, b"x")):
            with pytest.raises(InvalidFileError):
                use(file)


def test_somebody_elses_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreUnusableError, match="not a store's"):
        FileStore.open(tmp_path)
    assert (tmp_path / "thesis.txt").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreUnusableError, match="cannot be used"):
        FileStore.open(tmp_path / "file")


def test_an_empty_file_is_a_file(root: Path) -> None:
    store = FileStore.open(root)
    file = FileRef(hashlib.sha256(b"").hexdigest(), 0)
    assert store.write(file, 0, b"") == 0
    assert store.require(file).read_bytes() == b""


def test_a_store_belongs_to_one_process_at_a_time(root: Path) -> None:
    """Two writers of one part would each verify what they received, not what lies on the disk."""
    store = FileStore.open(root)
    with pytest.raises(StoreUnusableError, match="in use by another agent") as caught:
        FileStore.open(root)
    assert "--store" in caught.value.hint
    assert "--name" in caught.value.hint
    fill(store, DATA)
    store.close()
    again = FileStore.open(root)
    assert again.offset(REF) == len(DATA)
    del again  # a store that is dropped without `close` does not block its directory either
    FileStore.open(root).close()


def test_an_interrupted_upload_gives_way_once_nobody_goes_on_with_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore.open(root, limit_bytes=1000)
    a, b = bytes([1]) * 700, bytes([2]) * 700
    first, second = ref(a, ".bin"), ref(b, ".bin")
    assert store.write(first, 0, a[:600]) == 600
    with pytest.raises(StoreFullError):
        store.write(second, 0, b)
    monkeypatch.setattr(store_module, "ARRIVING_S", 0.0)
    assert store.write(second, 0, b) == 700
    assert names(root) == {second.sha256 + ".bin"}
    monkeypatch.undo()
    assert store.offset(first) == 0
    with pytest.raises(WrongOffsetError, match="starts at byte 600"):
        store.write(first, 600, a[600:])


def test_room_is_made_for_all_that_is_still_to_come(root: Path) -> None:
    """Two files that arrive at once, and one that goes on after a restart, stay within the limit together."""
    store = FileStore.open(root, limit_bytes=1000)
    a, b, c = (bytes([n]) * size for n, size in ((1, 600), (2, 500), (3, 400)))
    assert store.write(ref(a), 0, a[:100]) == 100
    with pytest.raises(StoreFullError):
        store.write(ref(b), 0, b[:100])
    store = restarted(store)
    fill(store, b)
    fill(store, c, ".onnx")
    assert store.offset(ref(a)) == 100
    assert store.write(ref(a), 100, a[100:]) == 600
    assert store.nbytes() <= 1000
    assert ref(c).sha256 + ".onnx" in names(root)


def test_what_a_deployment_counts_on_is_not_dropped_for_the_rest_of_it(root: Path) -> None:
    store = FileStore.open(root, limit_bytes=1000)
    held, other = (fill(store, bytes([n]) * size) for n, size in ((1, 400), (2, 300)))
    os.utime(store.path(held), (1, 1))
    os.utime(store.path(other), (2, 2))
    new = bytes([3]) * 500
    assert [store.offset(file) for file in (held, ref(new, ".bin"))] == [400, 0]
    fill(store, new)
    assert store.require(held).exists()
    assert not store.path(other).exists()


def test_questions_about_files_that_are_not_here_leave_nothing(root: Path) -> None:
    store = FileStore.open(root)
    for number in range(100):
        assert store.offset(FileRef(f"{number:064x}", 10)) == 0
    assert not store._arriving


def test_what_an_agent_left_that_died_while_it_loaded_is_removed(root: Path) -> None:
    store = FileStore.open(root)
    kept = fill(store, DATA)
    (root / f"{SCRATCH}a").mkdir()
    (root / f"{SCRATCH}a" / "optimised.onnx.data").write_bytes(DATA)
    (root / f"{SCRATCH}a.onnx").write_bytes(DATA)
    assert names(restarted(store).root) == {kept.sha256 + kept.suffix}
