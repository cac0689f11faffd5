"""Devices with several addresses: the fastest is used, and another when it fails."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

import models
import partitioner
from benchmarks.ports import free_ports
from defer.client import Client
from defer.dispatcher.bringup import Order
from defer.dispatcher.daemon import Daemon
from defer.documents.cluster import Cluster, loads_cluster
from defer.errors import InvalidCluster, NotReady
from defer.local_agents import local_agents
from defer.planning import make_plan, parse_placement
from defer.ways import ALIKE, Way, at, best, with_fastest
from node_agent.security import OPEN

MODEL = "tiny_residual"


class Cable:
    """Passes TCP on from the same three ports of another loopback address, at a limited rate, until it is cut."""

    def __init__(self, host: str, port: int, bytes_per_s: float) -> None:
        self._rate = bytes_per_s
        self._lock = threading.Lock()
        self._cut = False
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        for each in range(port, port + 3):
            listener = socket.create_server((host, each))
            self._sockets.append(listener)
            self._run(self._accept, listener, each)

    def _run(self, action: Callable[..., None], *given: Any) -> None:
        thread = threading.Thread(target=action, args=given, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket, port: int) -> None:
        with contextlib.suppress(OSError):  # nobody listens there, or the cable was cut
            while True:
                near, _ = listener.accept()
                with self._lock:
                    self._sockets.append(near)
                    if self._cut:
                        return
                    far = socket.create_connection(("127.0.0.1", port), 5)
                    self._sockets.append(far)
                    self._run(self._pass_on, near, far)
                    self._run(self._pass_on, far, near)

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(16 * 1024):
                if len(piece) > 1024 and self._rate < math.inf:
                    time.sleep(len(piece) / self._rate)
                target.sendall(piece)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Nobody listens there any more, and what stood breaks."""
        with self._lock:
            self._cut = True
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for each in self._sockets:
            each.close()

    close = cut


@pytest.fixture
def port() -> int:
    return free_ports(3)


@pytest.fixture
def cables(port: int) -> Iterator[dict[str, Cable]]:
    made = {
        "slow": Cable("127.0.0.2", port, 2e5),
        "fast": Cable("127.0.0.3", port, math.inf),
    }
    yield made
    for cable in made.values():
        cable.close()


def file(port: int, *, stated: bool = True) -> Cluster:
    return loads_cluster(
        f"""
[dispatcher]
listen = "127.0.0.1:0"
[network]
{'bandwidth = "1 Gbit/s"' if stated else ""}
delay = "0.1 ms"
[[device]]
name = "box"
address = "127.0.0.2:{port}"
also = ["127.0.0.3:{port}"]
"""
    )


def asked(client: Client, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The answer; while the only device is out of reach, the dispatcher says so at once."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return dict(client.infer(inputs, timeout=30))
        except NotReady:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.integration
def test_the_fastest_is_used_and_the_other_when_it_fails(
    cables: dict[str, Cable], port: int, tmp_path: Path
) -> None:
    model = models.save(MODEL, tmp_path / f"{MODEL}.onnx")
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    inputs = models.example_inputs(MODEL, seed=1)
    expected = session.run(None, inputs)
    described = file(port, stated=False)
    with (
        local_agents(["box"], tmp_path, arguments={"box": ["--listen", f"127.0.0.1:{port}"]}),
        Daemon(described, tmp_path / "state") as daemon,
    ):
        daemon.connect(10.0)
        [chosen] = [event.text for event in daemon.log.since(0) if event.kind == "address-chosen"]
        assert f"127.0.0.3:{port} at" in chosen.partition(";")[0], chosen
        assert daemon.cluster.device("box").address == f"127.0.0.3:{port}"
        chain = partitioner.analyze(model)
        plan = make_plan(
            chain, daemon.cluster, placement=parse_placement("box=0:", daemon.cluster, len(chain.blocks))
        )
        daemon.deployments.bring_up(Order(MODEL, model, plan), lambda _what, _fraction: None)
        with Client(str(daemon.address)) as client:
            for cut in (None, "fast"):
                if cut is not None:
                    cables[cut].cut()
                answer = asked(client, inputs)
                for output, value in zip(session.get_outputs(), expected, strict=True):
                    np.testing.assert_allclose(answer[output.name], value, rtol=1e-3, atol=1e-5)
        assert daemon.cluster.device("box").address == f"127.0.0.2:{port}"
        kinds = [event.kind for event in daemon.log.since(0)]
        assert "address-changed" in kinds
        assert "agent-moved" in kinds


@pytest.mark.integration
def test_what_does_not_answer_is_not_used_and_what_is_stated_is_believed(
    cables: dict[str, Cable], port: int, tmp_path: Path
) -> None:
    with local_agents(["box"], tmp_path, arguments={"box": ["--listen", f"127.0.0.1:{port}"]}):
        stated = file(port)
        assert with_fastest(stated, security=OPEN).device("box").address == f"127.0.0.2:{port}"
        cables["slow"].cut()
        told: list[str] = []
        found = with_fastest(stated, security=OPEN, on_chosen=lambda _, ways: told.extend(map(str, ways)))
        assert found.device("box").address == f"127.0.0.3:{port}"
        assert found.device("box").also == (f"127.0.0.2:{port}",)
        assert told == [f"127.0.0.3:{port}", f"127.0.0.2:{port} does not answer"]


def test_nobody_there_changes_nothing() -> None:
    free = free_ports(3)
    assert with_fastest(file(free), security=OPEN) == file(free)


@given(st.lists(st.tuples(st.booleans(), st.floats(1, 1e10)), min_size=1, max_size=5))
def test_the_best_is_reached_and_none_is_much_faster(ways: list[tuple[bool, float]]) -> None:
    listed = [Way(str(n), reached, rate if reached else None) for n, (reached, rate) in enumerate(ways)]
    found = best(listed)
    rates = [way.bytes_per_s for way in listed if way.bytes_per_s is not None]
    if not rates:
        assert found is listed[0]
    else:
        assert found.bytes_per_s is not None
        # Each step to a later one was worth it; one that was passed over may be faster by that much at most.
        assert max(rates) <= ALIKE * found.bytes_per_s


def test_a_device_moves_among_its_addresses() -> None:
    moved = at(file(7700), "box", "127.0.0.3:7700")
    assert (moved.device("box").address, moved.device("box").also) == ("127.0.0.3:7700", ("127.0.0.2:7700",))
    assert at(moved, "box", "127.0.0.2:7700") == file(7700)
    moved.problems()


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('[[device]]\nname = "a"\nalso = ["127.0.0.1:7700"]\n', "also"),
        ('[[device]]\nname = "a"\naddress = "127.0.0.1:7700"\nalso = ["127.0.0.2:0"]\n', "also"),
        ('[[device]]\nname = "a"\naddress = "127.0.0.1:7700"\nalso = ["0.0.0.0:7700"]\n', "also"),
        ('[[device]]\nname = "a"\naddress = "127.0.0.1:7700"\nalso = ["nonsense"]\n', "also"),
        ('[[device]]\nname = "a"\naddress = "127.0.0.1:7700"\nalso = ["127.0.0.1:7700"]\n', "also"),
        ('[[device]]\nname = "a"\ndials = true\nalso = ["127.0.0.1:7700"]\n', "also"),
    ],
)
def test_addresses_that_cannot_be_are_refused(text: str, where: str) -> None:
    with pytest.raises(InvalidCluster) as told:
        loads_cluster(text)
    assert where in told.value.where
