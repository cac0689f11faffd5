"""The process that plans for a dispatcher: what it answers, what it tells, and how it ends."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

import models
from defer.dispatcher import planner as planner_module
from defer.dispatcher import questions as q
from defer.dispatcher.bringup import Cuts, Order
from defer.dispatcher.daemon import Daemon
from defer.dispatcher.planner import PATIENT, SPARE_S, Planner
from defer.dispatcher.planner_process import Answers
from defer.documents.cluster import Cluster, loads_cluster
from defer.errors import Cancelled, DeferError, FileMissing, Internal, NoRoute, NotReady
from defer.hops import Part
from defer.local_agents import local_agents
from defer.planning import make_plan, parse_placement
from defer.translating import translate
from node_agent.messages import FileRef
from partitioner import analyze

TEXT = """
[[device]]
name = "a"
address = "127.0.0.1:7700"
memory = "{memory}"
[[device]]
name = "b"
address = "127.0.0.1:7710"
memory = "{memory}"
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save("tiny_residual", tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture
def planner() -> Iterator[Planner]:
    made = Planner()
    yield made
    made.close()


def a_cluster(memory: str = "1 GiB") -> Cluster:
    return loads_cluster(TEXT.format(memory=memory))


def about(model: Path, parts: Path) -> q.Topic:
    return q.Topic(model=str(model), shapes={}, blocks=64, calibration="", parts=str(parts))


def only_process(planner: Planner) -> Any:
    (process,) = planner._running
    return process


@pytest.mark.integration
def test_a_conversation_keeps_what_it_knows_and_errors_cross_whole(
    planner: Planner, model: Path, tmp_path: Path
) -> None:
    topic, absent = about(model, tmp_path), about(tmp_path / "absent.onnx", tmp_path)
    with planner.conversation(lambda: False) as planning:
        analysed = planning.ask(q.Analyse(topic), q.Analysed)
        assert analysed == Answers().answer(q.Analyse(topic))
        pid = only_process(planner)._process.pid

        with pytest.raises(FileMissing) as raised:
            planning.ask(q.Analyse(absent), q.Analysed)
        with pytest.raises(Exception) as here:  # noqa: PT011 - whatever it is
            analyze(tmp_path / "absent.onnx")
        told, meant = raised.value, translate(here.value)
        assert (told.code, str(told), told.hint, told.where) == (
            meant.code,
            str(meant),
            meant.hint,
            meant.where,
        )
        assert any("Traceback" in note for note in told.__notes__)

        # One that failed does not end the conversation.
        chain = analyze(model)
        plan = make_plan(
            chain, a_cluster(), placement=parse_placement("a=0:4,b=4:", a_cluster(), len(chain.blocks))
        )
        made = planning.ask(q.Cut(topic, plan, ("fp32", "fp32")), q.Foreseen)
        assert len(made.parts) == 2
        assert made.signature == analysed.signature
        assert all(path.is_file() for each in made.written(tmp_path) for path in each.files.values())
        assert only_process(planner)._process.pid == pid
    assert not planner._running


@pytest.mark.integration
def test_a_process_that_waited_too_long_ends_also_where_no_other_can_be_started(
    planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner.warm()
    stale: Any = planner._spare
    stale.begun -= SPARE_S

    def none_left() -> Any:
        raise OSError(errno.EAGAIN, "no process left")

    monkeypatch.setattr(type(stale), "start", none_left)
    with pytest.raises(OSError, match="no process left"):
        planner.take()
    assert stale._process.returncode is not None
    assert stale._connection.fileno() == -1
    assert not planner._running


@pytest.mark.integration
def test_no_plan_is_an_error_with_the_planners_own_words(
    planner: Planner, model: Path, tmp_path: Path
) -> None:
    question = q.Foresee(
        topic=about(model, tmp_path),
        cluster=a_cluster("1 KiB"),
        profile=None,
        objective="latency",
        without=((),),
    )
    (found,) = planner.ask(question, tuple[q.Foreseen, ...])
    assert found.code == NoRoute.code
    with pytest.raises(NoRoute) as here:
        make_plan(analyze(model), a_cluster("1 KiB"))
    assert found.problem == str(here.value)


@pytest.mark.integration
def test_a_process_that_dies_is_one_error(planner: Planner, model: Path, tmp_path: Path) -> None:
    with planner.conversation(lambda: False) as planning:
        planning.begin()
        threading.Timer(0.1, only_process(planner)._process.kill).start()
        with pytest.raises(Internal, match=r"the process that plans has ended: .*-9") as raised:
            planning.ask(q.Analyse(about(model, tmp_path)), q.Analysed)
        assert "memory" in raised.value.hint


@pytest.mark.integration
def test_a_process_that_says_nothing_is_given_up(
    planner: Planner, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = q.Analyse(about(model, tmp_path))
    with planner.conversation(lambda: False) as planning:
        with monkeypatch.context() as hasty:
            hasty.setattr(planner_module, "LIMIT_S", 0.05)
            with pytest.raises(Internal, match=r"said nothing for 0\.05 s"):
                planning.ask(question, q.Analysed)
        # The next question has another process, and its own answer.
        assert planning.ask(question, q.Analysed) == Answers().answer(question)


@pytest.mark.integration
def test_whoever_wants_no_more_progress_gets_no_old_answer_afterwards(
    planner: Planner, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def receive(*_: object) -> bytes:
        return msgspec.msgpack.encode(q.Progress("thinking", 0.5))

    def give_up(_what: str, _fraction: float) -> None:
        raise Cancelled("enough")

    question, other = q.Analyse(about(model, tmp_path)), q.Describe(about(model, tmp_path))
    with planner.conversation(lambda: False) as planning:
        with monkeypatch.context() as early:
            early.setattr(planner_module, "receive", receive)
            with pytest.raises(Cancelled):
                planning.ask(question, q.Analysed, give_up)
        assert planning.ask(other, q.Described).chain.model == "m"


@pytest.mark.integration
def test_files_of_the_user_are_not_taken_for_its_modules(
    planner: Planner, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("queue", "router", "partitioner"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the user was imported')")
    monkeypatch.setenv(
        "PYTHONPATH", str(Path(planner_module.__file__).parents[2])
    )  # not one relative to here
    monkeypatch.chdir(tmp_path)
    question = q.Analyse(about(model, tmp_path))
    assert planner.ask(question, q.Analysed) == Answers().answer(question)


@pytest.mark.integration
def test_whoever_waits_is_told_of_the_end_and_no_process_is_left(
    planner: Planner, model: Path, tmp_path: Path
) -> None:
    with planner.conversation(lambda: False) as planning:
        planning.begin()
        process = only_process(planner)._process
        threading.Timer(0.1, planner.close).start()
        with pytest.raises(NotReady, match="shutting down"):
            planning.ask(q.Analyse(about(model, tmp_path)), q.Analysed)
    assert process.returncode is not None
    with pytest.raises(NotReady, match="shutting down"):
        planner.ask(q.Analyse(about(model, tmp_path)), q.Analysed)


@pytest.mark.integration
def test_it_ends_when_nobody_is_at_the_other_end_any_more(planner: Planner) -> None:
    with planner.conversation(lambda: False) as planning:
        planning.begin()
        started = only_process(planner)
        started._connection.close()
        assert started._process.wait(20) == 0


@pytest.mark.integration
def test_one_that_was_started_ahead_is_asked_first_and_yields_like_any_other(
    planner: Planner, model: Path, tmp_path: Path
) -> None:
    planner.warm()
    planner.warm()
    spare: Any = planner._spare
    with planner.conversation(lambda: True) as planning:
        planning.ask(q.Analyse(about(model, tmp_path)), q.Analysed)
        assert only_process(planner) is spare
        pid = spare._process.pid
        wanted = min(19, os.getpriority(os.PRIO_PROCESS, 0) + PATIENT)
        threads = [int(each.name) for each in Path(f"/proc/{pid}/task").iterdir()]
        assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {wanted}
    planner.warm()
    spare = planner._spare
    planner.close()
    assert spare._process.returncode is not None


def test_routes_are_cut_once_while_their_files_are_there(tmp_path: Path) -> None:
    asked: list[q.Cut] = []
    part = Part(FileRef("a" * 64, 3, ".onnx"), (), (), (), ())
    file = tmp_path / f"{'a' * 64}.onnx"

    def ask(question: q.Cut, *_: object) -> q.Foreseen:
        asked.append(question)
        file.write_bytes(b"abc")
        return q.Foreseen(question.plan, (part,))

    cuts, order = Cuts(tmp_path), Order("m", Path("m.onnx"))
    leg: Any = SimpleNamespace(digest="d", cuts=(), order=())
    planning: Any = SimpleNamespace(ask=ask)

    def of(*precisions: str) -> q.Foreseen:
        return cuts.of(order, leg, precisions, planning, lambda _what, _fraction: None)

    assert of("fp32") is of("fp32")
    of("fp16")
    assert [each.precisions for each in asked] == [("fp32",), ("fp16",)]
    file.unlink()
    of("fp32")
    cuts.forget("m")
    of("fp32")
    assert len(asked) == 4


def test_a_route_is_cut_again_for_other_calibration_under_the_same_name(tmp_path: Path) -> None:
    asked: list[q.Cut] = []
    calibration = tmp_path / "calibration.npz"

    def ask(question: q.Cut, *_: object) -> q.Foreseen:
        asked.append(question)
        return q.Foreseen(question.plan)

    cuts, order = Cuts(tmp_path), Order("m", Path("m.onnx"), calibration=calibration)
    leg: Any = SimpleNamespace(digest="d", cuts=(), order=())
    planning: Any = SimpleNamespace(ask=ask)
    for content in (None, b"one", b"one", b"another"):
        if content is not None and (not calibration.exists() or calibration.read_bytes() != content):
            calibration.write_bytes(content)
        cuts.of(order, leg, ("int8",), planning, lambda _what, _fraction: None)
    assert len(asked) == 3


@pytest.mark.integration
def test_a_dispatcher_that_stops_while_it_deploys_leaves_no_process(model: Path, tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def deploy() -> None:
        try:
            daemon.deployments.bring_up(Order("m", model), lambda _what, _fraction: None)
        except DeferError as error:
            failed.append(error)

    with local_agents(["a"], tmp_path) as (agent,):
        text = f'[dispatcher]\nlisten = "127.0.0.1:0"\n[[device]]\nname = "a"\naddress = "{agent.address}"'
        with Daemon(loads_cluster(text), tmp_path / "state") as daemon:
            daemon.connect(20)
            thread = threading.Thread(target=deploy)
            thread.start()
            deadline = time.monotonic() + 20
            while not daemon.deployments.planner._running:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            process = only_process(daemon.deployments.planner)._process
        thread.join(20)
    assert [type(error) for error in failed] == [NotReady]
    assert process.returncode is not None


SERVE = """
import sys
from pathlib import Path
from defer.cli import serve
from defer.dispatcher.bringup import Order
from defer.dispatcher.daemon import Daemon
from defer.documents.cluster import loads_cluster
from defer.local_agents import local_agents

model, work = map(Path, sys.argv[1:])
with local_agents(["a", "b"], work) as agents:
    lines = ['[dispatcher]\\nlisten = "127.0.0.1:0"']
    lines += [f'[[device]]\\nname = "{agent.name}"\\naddress = "{agent.address}"' for agent in agents]
    with Daemon(loads_cluster("\\n".join(lines)), work / "state") as daemon:
        daemon.connect(20)
        for _ in range(2):
            print("deploying")
            order = Order("m", model, objective="throughput", blocks=4, standby="none")
            daemon.deployments.bring_up(order, lambda what, _: print(what))
heavy = {"onnx", "onnx_ir", "scipy", "networkx", "partitioner", "router", "onnxruntime"}
print("imported:", *sorted(heavy & sys.modules.keys()))
"""


@pytest.mark.integration
def test_a_dispatcher_that_deploys_has_no_planner_and_has_nothing_cut_that_was_measured_before(
    model: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVE, str(model), str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    _, first, again = done.stdout.split("deploying\n")
    assert "imported:\n" in again
    steps = ["analysing the model", "planning", "cutting the model"]
    told = [line for line in first.splitlines() if line in steps]
    assert told == steps
    assert "cutting the model to measure it" in first
    assert "cutting the model" not in again
    assert "measured before" in again
