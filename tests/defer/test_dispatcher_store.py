"""The SQLite store against one in memory, which says what must happen; crashes; the thread that writes."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defer import errors
from defer.dispatcher import store as s
from defer.dispatcher import store_sqlite
from defer.dispatcher.epochs import EpochLog
from defer.dispatcher.keeper import Keeper
from defer.dispatcher.rollout import Split
from defer.dispatcher.store_sqlite import SqliteStore
from node_agent.messages import FileRef, HopSpec, Infer, PeerRef, Rejection, Result, TensorHeader, TensorSpec


def request(number: int, data: bytes = b"abc") -> s.KeptRequest:
    header = TensorHeader("x", "uint8", (len(data),), "raw", len(data))
    return s.KeptRequest(Infer(number.to_bytes(16), "m", -1, (header,), durable=True), data, 5.5 + number)


def answer(number: int, data: bytes = b"def") -> s.KeptAnswer:
    if number % 5 == 0:
        return s.KeptAnswer(Rejection(number.to_bytes(16), "agent-lost", "it was lost"), b"", 7.25)
    header = TensorHeader("y", "uint8", (len(data),), "raw", len(data))
    return s.KeptAnswer(Result(number.to_bytes(16), (header,), 0.5), data, 7.25)


def model(name: str, epoch: int) -> s.KeptModel:
    spec = TensorSpec("x", "float32", ("N", 3))
    hop = HopSpec(
        0, PeerRef("@d"), PeerRef("b", "tcp://b:1"), FileRef("ab" * 32, 9, ".onnx"), (), (spec,), (spec,)
    )
    route = s.KeptRoute(epoch, 0.5, {"a": (hop,)})
    return s.KeptModel(name, "deploy", "d", "/m.onnx", "{}", (spec,), (spec,), (spec,), (route, route))


numbers = st.integers(1, 12)
changes = st.one_of(
    st.builds(s.EpochBegun, numbers, st.lists(st.sampled_from("abc"), max_size=2).map(tuple)),
    st.builds(s.EpochEnded, numbers),
    st.builds(lambda name, epoch: s.ModelKept(model(name, epoch)), st.sampled_from("mn"), numbers),
    st.builds(s.ModelDropped, st.sampled_from("mn")),
    st.builds(lambda name, to: s.SplitKept(Split(name, to)), st.sampled_from("mn"), st.sampled_from("ab")),
    st.builds(s.SplitDropped, st.sampled_from("mn")),
    st.builds(lambda number, data: s.RequestKept(request(number, data)), numbers, st.binary(max_size=4)),
    st.builds(lambda number, data: s.AnswerKept(answer(number, data)), numbers, st.binary(max_size=4)),
    st.builds(s.AnswersDropped, st.lists(numbers.map(lambda n: n.to_bytes(16)), max_size=3).map(tuple)),
)


@given(st.lists(st.lists(changes, max_size=4), max_size=6))
def test_a_store_that_is_opened_again_holds_what_it_was_given(batches: list[list[s.Change]]) -> None:
    oracle = s.MemoryStore()
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "dispatcher.db")
        store.open()
        for batch in batches:
            store.apply(batch)
            oracle.apply(batch)
        store.close()
        seen, wanted = store.open(), oracle.open()
        assert (seen.last_epoch, dict(seen.epochs)) == (wanted.last_epoch, dict(wanted.epochs))
        assert (seen.models, seen.splits) == (wanted.models, wanted.splits)
        assert {r.infer.request: r for r in seen.requests} == {r.infer.request: r for r in wanted.requests}
        assert {a.request: a for a in seen.answers} == {a.request: a for a in wanted.answers}
        for number in range(1, 13):
            assert store.answer(number.to_bytes(16)) == oracle.answer(number.to_bytes(16))
        store.close()


def test_frames_come_back_one_by_one() -> None:
    headers = tuple(TensorHeader(name, "uint8", (size,), "raw", size) for name, size in (("a", 2), ("b", 3)))
    kept = s.KeptRequest(Infer(bytes(16), "m", -1, headers), b"aabbb", 0.0)
    assert [bytes(piece) for piece in kept.split()] == [b"aa", b"bbb"]
    assert answer(5).split() == ()


def test_only_its_owner_reads_it_and_a_transaction_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "dispatcher.db"
    store = SqliteStore(path)
    store.open()
    store.apply([s.RequestKept(request(1))])
    modes = {stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()}
    assert modes == {0o600}
    assert len(list(tmp_path.iterdir())) == 3, "the log and its index stand beside the file"
    with pytest.raises(errors.FileProblem):
        store.apply([s.RequestKept(request(2)), s.EpochBegun(2**70, ())])
    store.close()
    assert [each.infer.request for each in store.open().requests] == [request(1).infer.request]
    store.close()


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    noise = tmp_path / "noise.db"
    noise.write_bytes(b"no database at all, but quite long " * 40)
    with pytest.raises(errors.CorruptFile, match=r"noise.db: .* damaged"):
        SqliteStore(noise).open()
    store = SqliteStore(tmp_path / "newer.db")
    store.open()
    store.close()
    with sqlite3.connect(tmp_path / "newer.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(errors.CorruptFile, match="newer version of defer"):
        store.open()
    with pytest.raises(errors.FileMissing):
        SqliteStore(tmp_path / "no" / "such.db").open()
    with pytest.raises(errors.FileProblem, match="not open"):
        store.apply([s.EpochEnded(1)])


def test_a_file_of_an_older_build_is_brought_up_to_date(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "dispatcher.db") as db:
        db.executescript(f"{store_sqlite._STEPS[0]}PRAGMA user_version = 1;")
        db.execute("UPDATE meta SET value = 7")
    db.close()
    store = SqliteStore(tmp_path / "dispatcher.db")
    assert store.open().last_epoch == 7
    store.apply([s.SplitKept(Split("m", "m@1"))])
    store.close()
    assert store.open() == s.Snapshot(last_epoch=7, splits=(Split("m", "m@1"),))
    store.close()


CRASHING = """
import sys
from pathlib import Path
from defer.dispatcher import store as s
from defer.dispatcher.store_sqlite import SqliteStore
store = SqliteStore(Path(sys.argv[1]))
store.open()
for number in range(2, 1 << 30, 2):
    store.apply([s.EpochBegun(number, ("a",)), s.EpochBegun(number + 1, ("b",))])
    print(number, flush=True)
"""


@pytest.mark.integration
def test_what_was_acknowledged_survives_a_kill_and_nothing_is_there_by_half(tmp_path: Path) -> None:
    path = tmp_path / "dispatcher.db"
    said: list[int] = []
    with subprocess.Popen(
        [sys.executable, "-c", CRASHING, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while len(said) < 25:
            said.append(int(process.stdout.readline()))
        process.kill()
        said += [int(line) for line in process.stdout]
    store = SqliteStore(path)
    seen = store.open()
    store.close()
    assert seen.last_epoch >= said[-1] + 1
    assert sorted(seen.epochs) == list(range(2, seen.last_epoch + 1))
    assert seen.last_epoch % 2 == 1


# ----------------------------------------------------------------------------------------------------- the thread


class Slow(s.MemoryStore):
    """A store that waits before each transaction until the test lets it, and refuses epoch 13."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Semaphore(0)
        self.batches: list[int] = []
        self.closed = threading.Event()

    def apply(self, changes: Sequence[s.Change]) -> None:
        assert self.go.acquire(timeout=10)
        if s.EpochBegun(13, ()) in changes:
            raise OSError(28, "No space left on device")
        self.batches.append(len(changes))
        super().apply(changes)

    def close(self) -> None:
        self.closed.set()


def begun(epoch: int) -> Callable[[], Sequence[s.Change]]:
    return lambda: (s.EpochBegun(epoch, ()),)


def test_what_comes_while_it_writes_is_one_transaction() -> None:
    store = Slow()
    keeper = Keeper(store)
    assert keeper.open() == s.Snapshot()
    done: list[object] = []
    keeper.write(begun(1), lambda problem: done.append((1, problem)))
    while keeper._queue:  # until it has taken the first
        time.sleep(0.001)
    for epoch in range(2, 9):
        keeper.write(begun(epoch), lambda problem, epoch=epoch: done.append((epoch, problem)))  # type: ignore[misc]
    keeper.read(b"x", lambda found: done.append(found))
    store.go.release(8)
    keeper.close()
    assert store.batches == [1, 7]
    assert done == [*((epoch, None) for epoch in range(1, 9)), None]
    assert store.closed.is_set()
    with pytest.raises(errors.FileProblem, match="shutting down"):
        keeper.commit((s.EpochEnded(1),))


def test_a_change_that_fails_takes_no_other_with_it() -> None:
    store = Slow()
    store.go.release(99)
    keeper = Keeper(store)
    keeper.open()
    said: dict[int, object] = {}
    gate = threading.Event()
    keeper.read(b"x", lambda _: gate.wait(10) or None)  # so that the three stand together
    for epoch in (12, 13, 14):
        keeper.write(begun(epoch), lambda problem, epoch=epoch: said.update({epoch: problem}))  # type: ignore[misc]
    gate.set()
    with pytest.raises(errors.DiskFull):
        keeper.commit((s.EpochBegun(13, ()),))
    keeper.close()
    assert (said[12], said[14]) == (None, None)
    assert isinstance(said[13], errors.DiskFull)
    assert set(store.open().epochs) == {12, 14}


def test_a_store_that_does_not_open_says_so_and_leaves_no_thread(tmp_path: Path) -> None:
    keeper = Keeper(SqliteStore(tmp_path / "no" / "such.db"))
    with pytest.raises(errors.FileMissing):
        keeper.open()
    keeper.close()


def test_epochs_rise_over_restarts_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = Keeper(SqliteStore(tmp_path / "dispatcher.db"))
    log = EpochLog(keeper)
    log.load(keeper.open())
    first, second = log.begin(("a",)), log.begin(("b", "c"))
    assert second > first
    log.end(first)
    keeper.close()
    monkeypatch.setattr("time.time", lambda: 5.0)
    keeper = Keeper(SqliteStore(tmp_path / "dispatcher.db"))
    log = EpochLog(keeper)
    assert log.load(keeper.open()) == {second: ("b", "c")}
    assert log.begin(("a",)) == second + 1
    third, noted = log.begin_soon(("d",))
    noted()
    keeper.close()
    keeper = Keeper(SqliteStore(tmp_path / "dispatcher.db"))
    assert EpochLog(keeper).load(keeper.open())[third] == ("d",)
    keeper.close()
