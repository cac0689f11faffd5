"""One random schedule: a cluster, its deployments, requests, faults, rest, and what must hold then."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from benchmarks.simulation import checks
from benchmarks.simulation.agent import Agent
from benchmarks.simulation.client import Client
from benchmarks.simulation.dispatcher import HOST, Dispatcher, Leg, Order
from benchmarks.simulation.model import LAYERS, Piece, Version, file_of
from benchmarks.simulation.network import GIVE_UP_S, Network
from benchmarks.simulation.seams import Stage
from benchmarks.simulation.world import BEGIN_S, World
from defer.dispatcher import events as e
from defer.hops import Place
from node_agent.flow import Window

BUSY_S = (1.5, 1.5, 1.5, 6.0)
"""Seconds in which requests and faults begin, one of these by the seed, unless a longer schedule is asked for.

Most bugs need few things that happen close together; some need a fault that lasts.
"""

REST_S = 26.0
"""Seconds in which everything that can recover has: TCP gives up, agents dial again, deployments are loaded again.

Most schedules are at rest long before that.
"""

QUIET, LOOK_S = 3, 0.25
"""It is at rest when it was each time that somebody looked, so often, so far apart."""

LONG_S = 600.0
"""Schedules that are busy for longer are looked at less often."""

RECENT = 64
"""Requests of a client that are sent again: older ones the dispatcher may have forgotten, as is promised."""

PROBE_S = 12.0
"""After that a request must be answered within this."""

FAULTS = (
    "kill", "pause", "hang", "slow", "cut", "cut-half", "partition", "slow-link", "garble", "client", "again",
    "replan", "roll-out", "burst",
)  # fmt: skip


@dataclass(slots=True)
class Ended:
    """A schedule that has been played.

    Attributes:
        seed: Plays it again.
        world: Its history and what was broken.
        asked: Requests of clients.
        results: Of those, answered with a result.
        faults: What was done to the cluster.
        codes: Errors of the others, by code.
        gap_s: Longest time in which no result was delivered while requests waited.
    """

    seed: int
    world: World
    asked: int = 0
    results: int = 0
    faults: list[str] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)


class Schedule:
    """Plays one seed.

    Args:
        seed: Decides everything.
        busy_s: Seconds of requests and faults; None for what the seed says.
        requests: How many there are.
        faults: How many things go wrong.
        limits: What the dispatcher holds at most; drawn where they are not given.
    """

    def __init__(
        self,
        seed: int,
        *,
        busy_s: float | None = None,
        requests: int | None = None,
        faults: int | None = None,
        limits: e.Limits | None = None,
    ) -> None:
        self.world = Stage.world = World(seed)
        self.net = Stage.net = Network(self.world)
        self.random = self.world.random
        # Its own, so that schedules in which nothing stands by are what they were.
        self.spare_random = random.Random(-1 - seed)
        self.busy_s = busy_s = self.random.choice(BUSY_S) if busy_s is None else busy_s
        self.ended = Ended(seed, self.world)
        self.versions: list[Version] = []
        self.pieces: dict[str, Piece] = {}
        self.agents: dict[str, Agent] = {}
        self.clients: list[Client] = []
        self.run_s: dict[str, float] = {}
        self._boots = 0
        self._whole = False
        draw = self.random
        names = [f"d{number}" for number in range(draw.choice((1, 2, 3, 3, 4)))]
        self.window = Window(draw.choice((2, 4, 32)), draw.choice((64, 600, 1 << 20)))
        self.places = {
            name: Place(name, f"tcp://{name}:7701", f"tcp://{name}:7702", dials=draw.random() < 0.15)
            for name in names
        }
        drawn = e.Limits(
            requests=draw.choice((4, 16, 1024)),
            nbytes=draw.choice((400, 1 << 20)),
            answers=draw.choice((2, 1024)),
            longest_s=30.0,
        )
        self.dispatcher = Dispatcher(self.places, draw.choice((1 << 10, 2 << 20)), limits or drawn)
        self.ledger = checks.Ledger(self.dispatcher)
        for name in names:
            self._start(name)
        for number in range(draw.choice((1, 1, 2, 3))):
            self.clients.append(Client(f"c{number}"))
        self.world.after(0.05, self.dispatcher.deploy, self._order(self._version()))
        count = draw.randint(3, 16) if requests is None else requests
        for _ in range(count):
            self.world.after(0.2 + draw.random() * busy_s, self._ask)
        for _ in range(draw.randint(0, 5) if faults is None else faults):
            self.world.after(0.3 + draw.random() * busy_s, self._fault)
        self.world.after(0.5, self._look)

    # ------------------------------------------------------------------------------------------------- playing

    def play(self) -> Ended:
        """Let it all happen, and look at what is left."""
        world = self.world
        world.run(BEGIN_S + 0.3 + self.busy_s)
        self._heal()
        self._rest(world.now + REST_S)
        if not world.problems:
            self._probe()
        if not world.problems:
            checks.bounded(self.agents.values(), self.dispatcher)
            checks.credits_whole(self.agents, self.dispatcher)
            self.ledger.at_the_end()
            checks.all_ended(self.clients, self.versions, spoiled="garble" in self.ended.faults)
        for client in self.clients:
            for asked in client.asked:
                self.ended.asked += 1
                self.ended.results += asked.result is not None
                if asked.code:
                    self.ended.codes[asked.code] = self.ended.codes.get(asked.code, 0) + 1
        return self.ended

    def _rest(self, until: float) -> None:
        """Wait until nothing more happens, or `until` where something always does."""
        quiet = 0
        while self.world.now < until and quiet < QUIET and not self.world.problems:
            self.world.run(self.world.now + LOOK_S)
            resting = checks.at_rest(self.agents.values(), self.dispatcher, self.clients)
            quiet = quiet + 1 if resting else 0

    def _probe(self) -> None:
        """Nothing is wrong with the cluster any more, so requests are answered: as many as fill every window."""
        client = Client("last")
        self.clients.append(client)
        asked = [client.ask(self._id(), [n], PROBE_S, patient=True) for n in range(6)]
        until = self.world.now + PROBE_S + 1.0
        while self.world.now < until and not all(each.ended for each in asked):
            self.world.run(self.world.now + LOOK_S)
        for each in asked:
            if each.result is None and not self.world.problems:
                self.world.broken(
                    f"a request after all was whole again ended with {each.code}: {each.message}"
                )
        self.world.run(self.world.now + 2 * LOOK_S)

    # ------------------------------------------------------------------------------------------------ the cast

    def _start(self, name: str) -> None:
        self._boots += 1
        self.agents[name] = Agent(
            name,
            f"boot{self._boots}",
            dials=self.places[name].dials,
            pieces=self.pieces,
            run_s=self._takes,
            window=self.window,
        )

    def _takes(self, name: str) -> float:
        usual = 0.001 + 0.01 * self.random.random()
        return self.run_s.get(name, 1.0) * usual

    def _version(self) -> Version:
        skip = self.versions[0].skip if self.versions else self.random.random() < 0.3
        version = Version(len(self.versions) + 1, skip)
        self.versions.append(version)
        for first in range(LAYERS):
            for last in range(first + 1, LAYERS + 1):
                self.pieces[file_of(version, first, last).sha256] = Piece(version, first, last)
        return version

    def _order(self, version: Version) -> Order:
        if len(self.agents) > 1 and self.random.random() < 0.4:
            legs: tuple[Leg, ...] = (self._leg(0.5), self._leg(0.5))
        else:
            legs = (self._leg(1.0),)
        return Order(version, legs, tuple(self._spares(legs)))

    def _spares(self, legs: Sequence[Leg]) -> Iterator[tuple[Leg, ...]]:
        """What is to stand by, in some schedules: for the loss of one or two devices that serve, a plan each."""
        draw = self.spare_random
        if len(self.places) < 2 or draw.random() < 0.6:
            return
        serving = sorted({device for leg in legs for device in leg.devices})
        for lost in draw.sample(serving, min(len(serving), draw.choice((1, 2)))):
            left = [name for name in self.places if name != lost]
            if draw.random() < 0.2:
                yield self._leg(0.5, left, draw), self._leg(0.5, left, draw)
            else:
                yield (self._leg(1.0, left, draw),)

    def _leg(
        self, fraction: float, places: Sequence[str] | None = None, draw: random.Random | None = None
    ) -> Leg:
        draw, places = draw or self.random, places or list(self.places)
        while True:
            devices = draw.sample(places, draw.randint(1, len(places)))
            cuts = sorted(draw.sample(range(1, LAYERS), len(devices) - 1))
            bounds = [0, *cuts, LAYERS]
            stages = tuple((device, bounds[at], bounds[at + 1]) for at, device in enumerate(devices))
            spare = [name for name in places if name not in devices]
            relays: dict[int, tuple[str, ...]] = {}
            if spare and draw.random() < 0.4:
                relays[draw.randrange(len(stages))] = (spare[0],)
            way = [name for at, stage in enumerate(stages) for name in (*relays.get(at, ()), stage[0])]
            dialling = [self.places[name].dials for name in way]
            # Two that can only dial do not reach each other.
            if not any(a and b for a, b in pairwise(dialling)):
                return Leg(stages, tuple(relays.items()), fraction, draw.choice(("raw", "raw", "raw", "lz4")))

    def _id(self) -> bytes:
        return self.random.randbytes(16)

    def _ask(self) -> None:
        living = [client for client in self.clients if client.process.alive]
        if not living:
            return
        draw = self.random
        values = [draw.randrange(1000) for _ in range(draw.choice((1, 2, 8, 40)))]
        timeout = draw.choice((0.05, 0.5, 2.0, 5.0, 8.0))
        draw.choice(living).ask(self._id(), values, timeout, patient=draw.random() < 0.3)

    def _look(self) -> None:
        checks.bounded(self.agents.values(), self.dispatcher)
        if self.world.now < BEGIN_S + self.busy_s + 4.0:
            self.world.after(0.5 if self.busy_s < LONG_S else 5.0, self._look)

    # ----------------------------------------------------------------------------------------------- the faults

    def _fault(self) -> None:
        kind = self.random.choice(FAULTS)
        self.ended.faults.append(kind)
        if self.random.random() < 0.4:
            # A fault matters to what is under way.
            for _ in range(self.random.choice((3, 8))):
                self._ask()
            self.world.after(0.02 * self.random.random(), self._happen, kind)
            return
        self._happen(kind)

    def _happen(self, kind: str) -> None:
        if not self._whole:  # one that comes a little later than it was due may come too late
            getattr(self, f"_do_{kind.replace('-', '_')}")(kind)

    def _someone(self) -> str:
        return self.random.choice(list(self.agents))

    def _pair(self) -> tuple[str, str]:
        hosts = [*self.agents, HOST, HOST]
        one = self._someone()
        return one, self.random.choice([host for host in hosts if host != one])

    def _do_kill(self, kind: str) -> None:
        name = self._someone()
        agent = self.agents[name]
        if agent.process.alive:
            self.world.note("!", kind, name)
            agent.kill()
            self.world.after(self.random.choice((0.01, 0.5, 3.0)), self._restart, name)

    def _restart(self, name: str) -> None:
        if not self.agents[name].process.alive:
            self.world.note("!", "restart", name)
            self._start(name)

    def _do_pause(self, kind: str) -> None:
        processes = [agent.process for agent in self.agents.values()] + [self.dispatcher.process]
        process = self.random.choice(processes)
        if process.alive and not process.paused:
            self.world.note("!", kind, process.name)
            process.pause()
            self.world.after(self.random.choice((0.3, 1.0, 4.0)), self._resume, process)

    def _resume(self, process: Any) -> None:
        if process.paused:
            self.world.note("!", "resume", process.name)
            process.resume()
            self.ledger.paused_until(self.world.now)

    def _do_hang(self, kind: str) -> None:
        self._run_takes(kind, self.random.choice((300.0, 1000.0)), 2.0)

    def _do_slow(self, kind: str) -> None:
        self._run_takes(kind, self.random.choice((5.0, 30.0)), 3.0)

    def _run_takes(self, kind: str, factor: float, seconds: float) -> None:
        name = self._someone()
        self.world.note("!", kind, name)
        self.run_s[name] = factor
        self.world.after(seconds, self._as_usual, name)

    def _as_usual(self, name: str) -> None:
        self.run_s.pop(name, None)

    def _fast_again(self, pair: frozenset[str]) -> None:
        self.net.slow.pop(pair, None)

    def _do_cut(self, kind: str) -> None:
        if not self.net.connections:
            return
        connection = self.random.choice(list(self.net.connections))
        self.world.note("!", kind, *(end.process.name for end in connection.ends))
        connection.cut((0.0005, 0.0005))

    def _do_cut_half(self, kind: str) -> None:
        """One end learns of it much later."""
        if not self.net.connections:
            return
        connection = self.random.choice(list(self.net.connections))
        self.world.note("!", kind, *(end.process.name for end in connection.ends))
        late = self.random.choice((0.2, 2.0, GIVE_UP_S))
        connection.cut((0.0005, late) if self.random.random() < 0.5 else (late, 0.0005))

    def _do_partition(self, kind: str) -> None:
        pair = self._pair()
        self.world.note("!", kind, *pair)
        self.net.partition(*pair)
        self.world.after(self.random.choice((0.1, 1.0, 5.0, 15.0)), self._mend, pair)

    def _mend(self, pair: tuple[str, str]) -> None:
        self.world.note("!", "mend", *pair)
        self.net.heal(*pair)

    def _do_slow_link(self, kind: str) -> None:
        pair = frozenset(self._pair())
        self.world.note("!", kind, *sorted(pair))
        self.net.slow[pair] = self.random.choice((10.0, 200.0))
        self.world.after(2.0, self._fast_again, pair)

    def _do_garble(self, kind: str) -> None:
        self.world.note("!", kind)
        self.net.to_garble += 1

    def _do_client(self, kind: str) -> None:
        client = self.random.choice(self.clients)
        if client.process.alive:
            self.world.note("!", kind, client.name)
            client.kill()

    def _do_again(self, kind: str) -> None:
        """Somebody sends a request under an id that is known: the answer must be the same, and nothing run twice."""
        known = [asked for client in self.clients for asked in client.asked[-RECENT:]]
        living = [client for client in self.clients if client.process.alive]
        if known and living:
            self.world.note("!", kind)
            asked = self.random.choice(known)
            client = self.random.choice(living)
            if not any(other.request == asked.request and not other.ended for other in client.asked):
                client.ask(asked.request, asked.values, 3.0, patient=False)

    def _do_replan(self, kind: str) -> None:
        self.world.note("!", kind)
        self.dispatcher.deploy(self._order(self.random.choice(self.versions)))

    def _do_roll_out(self, kind: str) -> None:
        self.world.note("!", kind)
        self.dispatcher.deploy(self._order(self._version()))

    def _do_burst(self, kind: str) -> None:
        self.world.note("!", kind)
        for _ in range(self.random.choice((8, 20))):
            self._ask()

    def _heal(self) -> None:
        """Nothing is wrong any more from now on."""
        self.world.note("!", "all is whole")
        self._whole = True
        self.run_s.clear()
        self.net.slow.clear()
        self.net.to_garble = 0
        for pair in list(self.net.cut_links):
            one, *other = pair
            self.net.heal(one, other[0] if other else one)
        for process in [*(agent.process for agent in self.agents.values()), self.dispatcher.process]:
            self._resume(process)
        for name in list(self.agents):
            self._restart(name)
