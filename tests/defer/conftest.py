"""Stand-ins for what a dispatcher talks to, made with raw sockets so that they share no code with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq
from zmq.utils import garbage

from defer import api
from defer.agents import AgentPool
from defer.dispatcher import events as e
from defer.dispatcher.api_server import ApiServer, OnProgress
from defer.dispatcher.neighbours import link_of
from defer.dispatcher.shell import DataShell
from defer.dispatcher.withdrawal import Withdrawal
from defer.errors import NotReady
from node_agent.messages import Chunk, Have, PeerRef, Taken, TensorSpec, Want

pack = msgspec.msgpack.encode
parse = msgspec.msgpack.decode

INPUTS = (TensorSpec("x", "float32", ("N", "M")),)
OUTPUTS = (TensorSpec("y", "float32", ("N", "M")),)

Work = Callable[[list, list], list[tuple[list, list]]]
"""From an item's header and frames to the messages that go to the dispatcher."""


def double(header: list, frames: list) -> list[tuple[list, list]]:
    """The one stage of a model y = 2 x."""
    _, epoch, request, hop, left, tensors, *_ = header
    name, dtype, shape, codec, _ = tensors[0]
    assert name == "x"
    y = np.frombuffer(frames[0], dtype) * np.float32(2)
    return [
        (["item", epoch, request, hop + 1, left, [["y", dtype, shape, codec, y.nbytes]], ""], [y.tobytes()])
    ]


class FakeStage:
    """An agent that is first and last stage at once: takes items with credit, and sends what `work` makes of them."""

    def __init__(
        self, dispatcher_port: int, *, fetch_port: int = 0, items: int = 8, work: Work = double
    ) -> None:
        self.dispatcher_port, self.fetch_port, self.items, self.work = (
            dispatcher_port,
            fetch_port,
            items,
            work,
        )
        self.seen: list[int] = []
        self.epochs: list[int] = []
        self.greetings = 0
        self.refuse_first = False
        self.hold = False
        self.break_connection = threading.Event()
        self.port = 0
        self._stop = threading.Event()
        self._bound = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> FakeStage:
        self._thread.start()
        assert self._bound.wait(5)
        return self

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(5)
        assert not self._thread.is_alive()

    @property
    def first(self) -> PeerRef:
        return PeerRef("a", "" if self.fetch_port else f"tcp://127.0.0.1:{self.port}")

    def _run(self) -> None:
        context = zmq.Context()
        items = context.socket(zmq.DEALER if self.fetch_port else zmq.ROUTER)
        if self.fetch_port:
            items.connect(f"tcp://127.0.0.1:{self.fetch_port}")
            items.send(pack(["greet", 1, 1, "a"]))
        else:
            self.port = items.bind_to_random_port("tcp://127.0.0.1")
        results = context.socket(zmq.DEALER)
        results.connect(f"tcp://127.0.0.1:{self.dispatcher_port}")
        results.send(pack(["greet", 1, 1, "a"]))
        self._bound.set()
        held: list[tuple[list, list]] = []
        try:
            while not self._stop.is_set():
                if self.break_connection.is_set():
                    items.close(linger=0)
                    items = context.socket(zmq.ROUTER)
                    while True:
                        try:
                            items.bind(f"tcp://127.0.0.1:{self.port}")
                            break
                        except zmq.ZMQError:
                            time.sleep(0.01)
                    held.clear()
                    self.break_connection.clear()
                if items.poll(5):
                    parts = items.recv_multipart()
                    route = parts[:0] if self.fetch_port else parts[:1]
                    header, frames = parse(parts[len(route)]), parts[len(route) + 1 :]
                    if header[0] == "greet" and self.refuse_first:
                        self.refuse_first = False
                        items.send_multipart([*route, pack(["refuse", "too-many-peers", "full"])])
                    elif header[0] == "greet":
                        self.greetings += 1
                        if not self.fetch_port:
                            items.send_multipart([*route, pack(["greet", 1, 1, "a"])])
                        items.send_multipart([*route, pack(["credit", self.items, 1 << 24])])
                    elif header[0] == "item":
                        self.epochs.append(header[1])
                        self.seen.append(header[2])
                        held.append((header, frames))
                        items.send_multipart([*route, pack(["credit", 1, sum(map(len, frames))])])
                if held and not self.hold:
                    for header, frames in held:
                        for out, body in self.work(header, frames):
                            results.send_multipart([pack(out), *body])
                    held.clear()
                while results.poll(0):
                    results.recv_multipart()
        finally:
            context.destroy(linger=0)


class FixedVerbs:
    """An api without a cluster: what it serves is set by the test."""

    def __init__(self) -> None:
        self.infos: tuple[api.ModelInfo, ...] = ()
        self.data_port = 0
        self.asked = 0

    def models(self) -> api.Models:
        self.asked += 1
        return api.Models(0, self.data_port, self.infos)

    def status(self) -> api.ServerStatus:
        return api.ServerStatus(0, "test", "0", 1.0, models=self.infos)

    def events(self, ask: api.GetEvents) -> api.Events:
        return api.Events(0, (), 0, "boot")

    def want(self, want: Want) -> Have:
        return Have(0, tuple(0 for _ in want.files))

    def chunk(self, chunk: Chunk, piece: bytes) -> Taken:
        return Taken(0, chunk.offset + len(piece))

    def deploy(self, order: api.Deploy, on_progress: OnProgress, withdrawal: Withdrawal) -> api.Deployed:
        on_progress("planning", 0.5)
        raise NotReady(f"cannot deploy {order.name}")

    def undeploy(self, order: api.Undeploy) -> None:
        self.infos = ()


class Server:
    """A dispatcher with real sockets and threads, but without agents: stages are `FakeStage`s."""

    def __init__(
        self, limits: e.Limits | None = None, port: int = 0, data_port: int = 0, *, serving: bool = False
    ) -> None:
        self.shell = DataShell("test", data_port=data_port, limits=limits, on_drained=self._drained)
        self.verbs = FixedVerbs()
        self.drained: list[int] = []
        self.pool = AgentPool(
            "test", listen=f"tcp://127.0.0.1:{port}", on_api=self._heard, on_gone=self._gone
        )
        self.stages: list[FakeStage] = []
        self.serving = serving

    def start(self) -> Server:
        # Clients know a port that was given: what they ask as soon as it is open must find the route.
        before = self.serving and self.shell.data_port
        if before:
            self._open(self.stage())
        self.shell.start()
        if self.serving and not before:
            self.serve(self.stage())
        self.pool.start()
        self.api = ApiServer("test", "boot", self.verbs, self.pool.reply)
        self.verbs.data_port = self.shell.data_port
        return self

    def stop(self) -> None:
        for stage in self.stages:
            stage.stop()
        self.api.close()
        self.pool.close()
        self.shell.close()

    @property
    def address(self) -> str:
        return self.pool.endpoint.removeprefix("tcp://")

    def _heard(self, identity: bytes, frames: list[bytes]) -> None:
        self.api.heard(identity, frames)

    def _gone(self, identity: bytes) -> None:
        self.api.gone(identity)

    def _drained(self, epoch: int) -> None:
        self.drained.append(epoch)

    def stage(self, *, fetch: bool = False, **more: object) -> FakeStage:
        port = self.shell.fetch_port if fetch else 0
        stage = FakeStage(self.shell.data_port, fetch_port=port, **more).start()  # type: ignore[arg-type]
        self.stages.append(stage)
        return stage

    def serve(
        self,
        stage: FakeStage,
        *,
        epoch: int = 1,
        model: str = "twice",
        inputs: tuple[TensorSpec, ...] = INPUTS,
        outputs: tuple[TensorSpec, ...] = OUTPUTS,
    ) -> None:
        self._open(stage, epoch=epoch, model=model, inputs=inputs, outputs=outputs)
        self.core(lambda core: core.routes[epoch])  # raw sockets must not be faster than the commands above

    def _open(
        self,
        stage: FakeStage,
        *,
        epoch: int = 1,
        model: str = "twice",
        inputs: tuple[TensorSpec, ...] = INPUTS,
        outputs: tuple[TensorSpec, ...] = OUTPUTS,
    ) -> None:
        route = e.Route(model, epoch, inputs, outputs, link_of(stage.first), 1, ("a",))
        self.shell.open_route(route, stage.first)
        self.shell.post(e.RouteReady(epoch))
        info = api.ModelInfo(model, "ready", "", epoch, inputs, outputs)
        self.verbs.infos = (*(i for i in self.verbs.infos if i.name != model), info)

    def core(self, look: Callable[[object], object]) -> object:
        return self.shell.call(lambda core, _: look(core)).result(5)


@pytest.fixture(scope="session", autouse=True)
def pyzmq_collector() -> None:
    """pyzmq frees buffers that were sent without copying in a thread that lives as long as the process."""
    if not garbage.gc.is_alive():  # tests of another room may have started it
        garbage.gc.start()


@pytest.fixture
def make_server() -> Iterator[Callable[..., Server]]:
    """Starts servers that are gone, threads and all, when the test ends."""
    before = set(threading.enumerate())
    servers: list[Server] = []

    def make(*args: object, **more: object) -> Server:
        servers.append(Server(*args, **more).start())  # type: ignore[arg-type]
        return servers[-1]

    yield make
    for server in servers:
        server.stop()
    deadline = time.monotonic() + 5
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left, f"threads left behind: {left}"


@pytest.fixture
def server(make_server: Callable[..., Server]) -> Server:
    """A server with one stage that serves y = 2 x."""
    made = make_server()
    made.serve(made.stage())
    return made


@pytest.fixture
def open_sockets() -> Callable[[], int]:
    """Counts the file descriptors of this process that are sockets."""
    return _open_sockets


def _open_sockets() -> int:
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            count += str(link.readlink()).startswith("socket:")
        except OSError:
            continue
    return count
