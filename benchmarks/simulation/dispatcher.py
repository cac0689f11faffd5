"""A simulated dispatcher process: its data thread, its view of the agents, and somebody who deploys.

`AgentsCore` and `DataShell` are the product's. What deploys stands in for `defer.dispatcher.deployments` and `daemon`,
whose threads wait for answers: it does the same steps in the same order, as callbacks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import zmq

from benchmarks.simulation import wire
from benchmarks.simulation.model import Version, layout, spec
from benchmarks.simulation.seams import Loop, Stage
from benchmarks.simulation.world import Process
from defer.agents_core import AgentsCore, Notify, Send, Settle, with_id
from defer.dispatcher import events as e
from defer.dispatcher.neighbours import link_of
from defer.dispatcher.shell import DataShell
from defer.hops import DISPATCHER, Layout, Place
from node_agent import messages as m
from node_agent.frames import pack_item

HOST = "disp"
TICK_S = 0.25
ASK_S = 5.0
AGAIN_S = 1.0
CANARY_S = 5.0


@dataclass(frozen=True, slots=True)
class Leg:
    """One route of a deployment.

    Attributes:
        stages: Device, first layer and end of each.
        relays: Devices on the way to stage number so-and-so.
        fraction: Share of the requests.
        codec: Of what travels between stages.
    """

    stages: tuple[tuple[str, int, int], ...]
    relays: tuple[tuple[int, tuple[str, ...]], ...] = ()
    fraction: float = 1.0
    codec: str = "raw"

    @property
    def devices(self) -> tuple[str, ...]:
        """Every device."""
        passed = [name for _, names in self.relays for name in names]
        return tuple(dict.fromkeys([*(device for device, _, _ in self.stages), *passed]))


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be served under the one name that there is.

    Attributes:
        version: Of the model.
        legs: Its routes.
        spares: Routes of each plan that is to stand by, the best first.
    """

    version: Version
    legs: tuple[Leg, ...]
    spares: tuple[tuple[Leg, ...], ...] = ()


@dataclass(slots=True)
class _Bringing:
    """A deployment on its way; `spare` is its place among those of the order that stand by, None for what serves."""

    order: Order
    legs: tuple[Leg, ...]
    spare: int | None = None
    epochs: list[int] = field(default_factory=list)
    waiting: int = 0
    failed: bool = False
    serves: bool = False


class Dispatcher:
    """The process.

    Args:
        places: Where each device is reached.
        credit_bytes: Assumed bytes of an activation, from which credits follow.
        limits: What is held at most.
    """

    def __init__(self, places: dict[str, Place], credit_bytes: int, limits: e.Limits) -> None:
        self.process = Stage.process = Process(Stage.world, HOST)
        self.context = wire.Context(Stage.net, self.process)
        self.agents = AgentsCore(DISPATCHER)
        self.shell = DataShell(
            DISPATCHER,
            HOST,
            7601,
            7602,
            limits=limits,
            on_drained=self._drained,
            on_took_over=self._took_over,
        )
        self.shell.start()
        self.limits = limits
        self._places = places
        self._credit_bytes = credit_bytes
        self._loop = Loop()
        self._router = wire.open_socket(self.context, zmq.ROUTER)
        wire.bind(self._router, HOST, 7600)
        self._loop.watch(self._router, self._read_router)
        self._dealers: dict[str, wire.Socket] = {}
        self._identities: dict[str, bytes] = {}
        self._asked: dict[int, Callable[[m.ControlMessage | None], None]] = {}
        self._epoch = 0
        self._queue: deque[Order] = deque()
        self._bringing: _Bringing | None = None
        self.order: Order | None = None
        self._stale = True
        self.served: dict[int, tuple[Order, Leg]] = {}
        self.ever: dict[int, Order] = {}
        self._spares: deque[int] = deque()
        self.standing: dict[int, tuple[int, tuple[int, ...]]] = {}
        """By its first epoch, what stands by: its place in the order, and its epochs."""
        self._helping: set[int] = set()
        self._left: dict[int, tuple[str, ...]] = {}
        for name, place in places.items():
            if not place.dials:
                self._dial(name)
        self.process.after(TICK_S, self._tick)

    # -------------------------------------------------------------------------------------- control connections

    def _dial(self, name: str) -> None:
        dealer = wire.open_socket(self.context, zmq.DEALER)
        monitor = wire.Monitor(dealer)
        self._dealers[name] = dealer
        self._loop.watch(dealer, lambda: self._read(name, dealer))
        self._loop.watch(monitor.socket, lambda: self._changed(name, monitor))
        endpoint = f"tcp://{name}:7700"
        dealer.connect(endpoint)
        self._execute(self.agents.dial(name, endpoint, Stage.world.now))

    def _changed(self, name: str, monitor: wire.Monitor) -> None:
        for event in monitor.events():
            act = self.agents.connected if event == "up" else self.agents.disconnected
            self._execute(act(name, Stage.world.now))

    def _read(self, name: str, dealer: wire.Socket) -> None:
        while (message := wire.take(dealer)) is not None:
            self._execute(self.agents.received(name, message[1], Stage.world.now))

    def _read_router(self) -> None:
        while (got := wire.take(self._router)) is not None:
            identity, message, _ = got
            if isinstance(message, m.Hello) and message.role == "agent":
                self._identities[message.name] = identity
                self._execute(self.agents.registered(message, Stage.world.now))
                continue
            name = next((n for n, known in self._identities.items() if known == identity), None)
            if name is not None:
                self._execute(self.agents.received(name, message, Stage.world.now))

    def _tick(self) -> None:
        self._execute(self.agents.tick(Stage.world.now))
        self.process.after(TICK_S, self._tick)

    def _execute(self, instructions: Sequence[Any]) -> None:
        for instruction in instructions:
            match instruction:
                case Send(name, message, _):
                    if name in self._dealers:
                        wire.send(self._dealers[name], message)
                    elif name in self._identities:
                        wire.send(self._router, message, (), self._identities[name])
                case Settle(number, answer, _):
                    done = self._asked.pop(number, None)
                    if done is not None:
                        self.process.soon(done, answer)
                case Notify(kind, name, _):
                    Stage.world.note(HOST, "agent", name, kind)
                    self._noticed(kind, name)
                case _:
                    pass

    def _ask(self, name: str, message: Any, done: Callable[[m.ControlMessage | None], None]) -> None:
        number, todo = self.agents.ask(name, lambda n: with_id(message, n), Stage.world.now + ASK_S)
        self._asked[number] = done
        self._execute(todo)

    # ------------------------------------------------------------------------------- as the daemon does on events

    def _noticed(self, kind: str, name: str) -> None:
        if kind == "lost":
            self.shell.post(e.DeviceLost(name, "its connection closed"))
        elif kind == "back":
            self.shell.post(e.DeviceBack(name))
            self._clean(name)
            self._repair(lessened_only=True, name=name)
        elif kind == "restarted":
            self._clean(name)
            self.shell.post(e.DeviceLost(name, "its agent restarted", restarted=True))
            self._repair(lessened_only=False, name=name)

    def _repair(self, *, lessened_only: bool, name: str) -> None:
        order = self.order
        if order is None:
            return
        idle = {epoch for _, epochs in self.standing.values() for epoch in epochs}
        routes = {epoch: leg for epoch, (of, leg) in self.served.items() if of is order and epoch not in idle}
        hit = any(name in leg.devices for leg in routes.values())
        if len(routes.keys() - self._helping) < len(order.legs) or (hit and not lessened_only):
            self._stale = True
            self.deploy(order)
        if not lessened_only:
            self._stand_anew(name)

    def _stand_anew(self, name: str) -> None:
        """What stood by on an agent whose process is new is not held there any more."""
        for first, (spare, epochs) in list(self.standing.items()):
            if any(name in self.served[epoch][1].devices for epoch in epochs if epoch in self.served):
                del self.standing[first]
                self.shell.post(e.RouteStandsDown(first, epochs[1:], "its agent restarted"))
                self._spares.append(spare)
        self._go_on()

    @property
    def settled(self) -> bool:
        """Whether all agents answer, and what was ordered last is served."""
        waits = self._bringing is not None or self._queue or self._stale or self._left or self._spares
        alive = all(liveness.state == "alive" for liveness in self.agents.agents.values())
        return alive and not waits and len(self.agents.agents) == len(self._places)

    # ----------------------------------------------------------------------------------- as the deployments do

    def deploy(self, order: Order) -> None:
        """Serve something, after what is being deployed now."""
        self._queue.append(order)
        if self._bringing is None:
            self._next()

    def _next(self) -> None:
        if self._queue:
            order = self._queue.popleft()
            Stage.world.note(HOST, "deploy", order.version.number, *order.legs)
            self._bringing = _Bringing(order, order.legs)
            self._load(self._bringing)
        elif self._spares and self.order is not None and not self._stale:
            spare = self._spares.popleft()
            legs = self.order.spares[spare]
            Stage.world.note(HOST, "prepare", *legs)
            self._bringing = _Bringing(self.order, legs, spare)
            self._load(self._bringing)

    def _load(self, bringing: _Bringing) -> None:
        """Load the next leg, or serve all."""
        leg = bringing.legs[len(bringing.epochs)]
        self._epoch += 1
        epoch = self._epoch
        bringing.epochs.append(epoch)
        self.ever[epoch] = bringing.order
        made = layout(
            bringing.order.version,
            leg.stages,
            dict(leg.relays),
            self._places,
            Place(self.shell.name, f"tcp://{HOST}:7601", f"tcp://{HOST}:7602"),
            self._credit_bytes,
            leg.codec,
        )
        bringing.waiting = len(made.hops)
        for device, hops in made.hops.items():
            load = m.Load(0, epoch, hops=hops, model="m")
            self._ask(device, load, partial(self._answered, bringing, epoch, leg, made))

    def _answered(
        self, bringing: _Bringing, epoch: int, leg: Leg, made: Layout, answer: m.ControlMessage | None
    ) -> None:
        bringing.waiting -= 1
        bringing.failed |= not isinstance(answer, m.Loaded)
        if bringing.waiting:
            return
        if bringing.failed:
            self._give_up(bringing, leg)
            return
        self.served[epoch] = (bringing.order, leg)
        self.shell.open_route(self._route(epoch, leg, made), made.first)
        headers, frames = pack_item({"x": np.array([7, 8], np.int64)}, "raw")
        future = self.shell.canary(epoch, headers, frames, CANARY_S)
        whole = len(bringing.epochs) == len(bringing.legs)
        if whole and bringing.spare is None and bringing.order is self.order and self._unserved():
            # Nothing else serves: the switch does not wait for the canary.
            bringing.serves = True
            self._switch(bringing)
        future.add_done_callback(lambda done: self.process.soon(self._canary, bringing, leg, done))

    def _canary(self, bringing: _Bringing, leg: Leg, done: Any) -> None:
        if done.exception() is not None and bringing.serves:
            for epoch in bringing.epochs:
                self.shell.post(e.RouteVoid(epoch, "the canary failed"))
            self._bringing, self._stale = None, True
            self.process.after(AGAIN_S, self._retry, bringing.order)
            self._next()
            return
        if done.exception() is not None:
            self._give_up(bringing, leg)
            return
        _, frames, _ = done.result()
        if np.frombuffer(frames[0], np.int64).tolist() != bringing.order.version.whole([7, 8]):
            Stage.world.broken("a canary came back with a result that is not the whole model's")
        if len(bringing.epochs) < len(bringing.legs):
            self._load(bringing)
            return
        first, *beside = bringing.epochs
        self._bringing = None
        if bringing.spare is not None:
            self._stands(bringing.order, bringing.spare, first, tuple(beside))
            self._next()
            return
        if not bringing.serves:
            self._switch(bringing)
        self._stale = False
        self._next()

    def _unserved(self) -> bool:
        return not self.shell._core.routes.ready_for("m")

    def _switch(self, bringing: _Bringing) -> None:
        first, *beside = bringing.epochs
        the_same = bringing.order is self.order
        self.shell.post(e.RouteReady(first, tuple(beside), the_same))
        if not the_same:
            self.standing.clear()
            self._spares = deque(range(len(bringing.order.spares)))
        self._helping.clear()
        self.order = bringing.order
        Stage.world.note(HOST, "ready", *bringing.epochs)

    def _stands(self, order: Order, spare: int, first: int, beside: tuple[int, ...]) -> None:
        if order is not self.order:
            for epoch in (first, *beside):
                self.shell.post(e.RouteDropped(epoch, "it is not needed any more"))
            return
        self.standing[first] = (spare, (first, *beside))
        self.shell.post(e.RouteStands(first, beside, float(spare)))
        Stage.world.note(HOST, "stands by", first, *beside)

    def _took_over(self, _: str, first: int) -> None:
        """In the data thread."""
        Stage.world.note(HOST, "took over", first)
        spare, epochs = self.standing.pop(first, (None, (first,)))
        self._helping.update(epochs)
        if spare is not None:
            self._spares.append(spare)
            self.process.soon(self._go_on)

    def _go_on(self) -> None:
        if self._bringing is None:
            self._next()

    def _give_up(self, bringing: _Bringing, leg: Leg) -> None:
        for epoch in bringing.epochs:
            if epoch in self.served:
                self.shell.post(e.RouteDropped(epoch, "the deployment failed"))
            else:
                self._unload(epoch, leg.devices)
        Stage.world.note(HOST, "deploy failed", *bringing.epochs)
        self._bringing = None
        # What was served is loaded again until that works; nobody repeats a new one but its operator.
        if self._stale and bringing.spare is None:
            self.process.after(AGAIN_S, self._retry, self.order or bringing.order)
        self._next()

    def _retry(self, order: Order) -> None:
        if self._stale and not self._queue and (self._bringing is None or self._bringing.spare is not None):
            self.deploy(order)

    def _route(self, epoch: int, leg: Leg, made: Layout) -> e.Route:
        return e.Route(
            model="m",
            epoch=epoch,
            inputs=(spec("x"),),
            outputs=(spec("y"),),
            link=link_of(made.first),
            hops=made.count,
            devices=leg.devices,
            last=made.last.name,
            fraction=leg.fraction,
        )

    def _drained(self, epoch: int) -> None:
        """In the data thread."""
        Stage.world.note(HOST, "drained", epoch)
        _, leg = self.served.pop(epoch)
        self._helping.discard(epoch)
        self.process.soon(self._unload, epoch, leg.devices)

    def _unload(self, epoch: int, devices: tuple[str, ...]) -> None:
        self._left[epoch] = devices
        for device in devices:
            self._ask(device, m.Unload(0, epoch), partial(self._unloaded, epoch, device))

    def _unloaded(self, epoch: int, device: str, answer: m.ControlMessage | None) -> None:
        if answer is not None and epoch in self._left:
            self._left[epoch] = tuple(name for name in self._left[epoch] if name != device)
            if not self._left[epoch]:
                del self._left[epoch]

    def _clean(self, name: str) -> None:
        for epoch, devices in list(self._left.items()):
            if name in devices:
                self._ask(name, m.Unload(0, epoch), partial(self._unloaded, epoch, name))
