"""A simulated agent process: the agent's core and its data path; loading takes virtual time, runs return layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import zmq

from benchmarks.simulation import wire
from benchmarks.simulation.model import Piece
from benchmarks.simulation.seams import Loop, Stage
from benchmarks.simulation.world import Process
from defer import agents_core
from node_agent import events as ev
from node_agent.core import AgentCore
from node_agent.flow import Window
from node_agent.link import Sent
from node_agent.messages import EngineInfo, Load, Offer
from node_agent.plane import DataPlane
from node_agent.worker import SHORT_NS, Worker

BEAT_S = agents_core.SILENCE_S / 4
"""Seconds between heartbeats; fewer than in life, where they cost nothing worth simulating."""

OFFER = Offer((EngineInfo("simulated"),), 0, 1.0, 1, "simulated", 7701, 7702)

WINDOW = Window(4, 600)
"""Small, so that byte credits and item credits both run out."""


class Agent:
    """One agent process, from start to kill.

    Args:
        name: Of the device; the host it is reached at, too.
        boot: Differs for each start.
        dials: It dials the dispatcher, and everybody else.
        pieces: The layers behind each partition file, by its sha256.
        run_s: How long a partition takes now on a device.
        window: What an upstream peer may have under way.
    """

    def __init__(
        self,
        name: str,
        boot: str,
        *,
        dials: bool,
        pieces: dict[str, Piece],
        run_s: Callable[[str], float],
        window: Window = WINDOW,
    ) -> None:
        self.process = Stage.process = Process(Stage.world, name)
        self.name = name
        self.boot = boot
        self.window = window
        self.context = wire.Context(Stage.net, self.process)
        dialled = ((_endpoint(dials), b""),) if dials else ()
        self.core = AgentCore(name, boot, OFFER, dialled)
        self._pieces = pieces
        self._run_s = run_s
        self.plane = DataPlane(cast(Any, self.context), name, name, (7701, 7702), window)
        for part in self.plane._loop.parts:
            part.open()
        self._loads: list[Load] = []
        self._threads = {
            id(shell): _Thread(self, shell) for shell in self.plane.shells if shell is not self.plane._loop
        }
        self._loop = Loop()
        self._listen = wire.open_socket(self.context, zmq.ROUTER)
        wire.bind(self._listen, name, 7700)
        self._loop.watch(self._listen, lambda: self._read("listen", self._listen))
        self._sockets = {"listen": self._listen}
        if dials:
            self._register(_endpoint(dials))
        self.process.after(BEAT_S * Stage.world.random.random(), self._beat)

    def _register(self, endpoint: str) -> None:
        dealer = wire.open_socket(self.context, zmq.DEALER)
        monitor = wire.Monitor(dealer)
        self._sockets[endpoint] = dealer
        self._loop.watch(dealer, lambda: self._read(endpoint, dealer))
        self._loop.watch(monitor.socket, lambda: self._changed(endpoint, monitor))
        dealer.connect(endpoint)

    def _changed(self, endpoint: str, monitor: wire.Monitor) -> None:
        for event in monitor.events():
            kind = ev.Dialled if event == "up" else ev.Lost
            self._handle(kind((endpoint, b"")))

    def _read(self, source: str, socket: wire.Socket) -> None:
        while (message := wire.take(socket)) is not None:
            identity, data, _ = message
            self._handle(ev.Received((source, identity), data))

    def _beat(self) -> None:
        self._handle(ev.Tick(self.plane.gauge()))
        self.process.after(BEAT_S, self._beat)

    def _handle(self, event: ev.Event) -> None:
        if not self.process.alive:
            return
        for instruction in self.core.handle(event, Stage.world.now):
            match instruction:
                case ev.Say((source, identity), message):
                    routed = identity if source == "listen" else None
                    if wire.send(self._sockets[source], message, (), routed) is Sent.GONE:
                        self._handle(ev.Lost((source, identity)))
                case ev.LoadPartitions(load):
                    self._loads.append(load)
                    if len(self._loads) == 1:
                        self.process.after(self._load_s(), self._loaded)
                case ev.Install(load):
                    self.plane.install(load, self._sessions(load))
                    if Stage.world.random.random() < 0.3:
                        # Runs that are short are made in the data thread; the virtual clock cannot tell that they are.
                        for hop in load.hops:
                            self.plane._loaded[load.epoch, hop.hop].run_ns = SHORT_NS // 2
                case ev.Retire(epoch):
                    self.plane.retire(epoch, lambda epoch=epoch: self._report(ev.Retired(epoch)))  # type: ignore[misc]
                case _:
                    pass

    def _report(self, event: ev.Event) -> None:
        self.process.soon(self._handle, event)

    @staticmethod
    def _load_s() -> float:
        return 0.02 + 0.2 * Stage.world.random.random()

    def _loaded(self) -> None:
        load = self._loads.pop(0)
        if Stage.world.random.random() < 0.03:
            self._handle(ev.LoadFailed(load.epoch, "load-failed", "The engine did not want to."))
        else:
            self._handle(ev.PartitionsLoaded(load.epoch, 0.1, 1000, "simulated"))
        if self._loads:
            self.process.after(self._load_s(), self._loaded)

    def _sessions(self, load: Load) -> dict[int, Any]:
        # Runs take virtual time in the worker's turn; a piece itself takes none.
        return {
            hop.hop: _Noted(self, load.epoch, hop.hop, self._pieces[hop.graph.sha256])
            for hop in load.hops
            if hop.graph is not None
        }

    def run_s(self) -> float:
        """How long the next partition takes."""
        return self._run_s(self.name)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.alive = False
        Stage.net.process_ended(self.context)


class _Noted:
    """A piece that writes into the history where it runs."""

    def __init__(self, agent: Agent, epoch: int, hop: int, piece: Piece) -> None:
        self._agent, self._epoch, self._hop, self._piece = agent, epoch, hop, piece
        self.engine, self.notes = piece.engine, piece.notes

    def run(self, inputs: Any) -> Any:
        Stage.world.note(self._agent.name, "run", self._epoch, self._hop)
        return self._piece.run(inputs)

    def close(self) -> None:
        """Nothing is held."""


class _Thread:
    """Takes the turns of one of the data path's threads, one after the other, each as long as it takes.

    A thread's turn begins by taking from its queue and would block where that is empty; so turns are only taken for
    what was put there. What a run takes passes before the turn, which itself takes no time.
    """

    def __init__(self, agent: Agent, shell: Any) -> None:
        self._agent = agent
        self._shell = shell
        self._waiting = 0
        self._busy = False
        self._runs = isinstance(shell, Worker)
        self._put = shell.put
        shell.put = self.put

    def put(self, entry: Any) -> None:
        """In place of the thread's own."""
        self._put(entry)
        self._waiting += 1
        if not self._busy:
            self._begin()

    def _begin(self) -> None:
        self._busy = True
        process = self._agent.process
        if not self._runs:
            process.soon(self._end)
            return
        process.soon(self._started)

    def _started(self) -> None:
        takes = self._agent.run_s()
        self._shell.started_ns = int(Stage.world.now * 1e9)
        self._agent.process.after(takes, self._end)

    def _end(self) -> None:
        self._shell.turn()
        if self._runs:
            self._shell.started_ns = 0
        self._waiting -= 1
        self._busy = False
        if self._waiting:
            self._begin()


def _endpoint(_: bool) -> str:
    return "tcp://disp:7600"
