"""Two agents and a dispatcher as processes on loopback, and an honest client that uses them all the while."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import zmq

from benchmarks import chain_model
from benchmarks.ports import free_ports
from benchmarks.processes import serving
from benchmarks.watch import Taken, taken
from defer.client import Client
from defer.documents.cluster import Cluster
from defer.errors import DeferError
from defer.local_agents import local_agents
from node_agent.frames import decode_control, encode_control
from node_agent.messages import Hello, Welcome

NBYTES = 4096
EVERY_S = 0.05
TIMEOUT_S = 30.0


@dataclass(slots=True)
class Honest:
    """What the honest client saw.

    Attributes:
        right: Results that were right.
        wrong: Results that were not.
        errors: Requests without a result, by code.
        slowest_s: Longest that one took.
    """

    right: int = 0
    wrong: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    slowest_s: float = 0.0


@dataclass(slots=True)
class Running:
    """The processes.

    Attributes:
        endpoints: By port, as in `corpus.PORTS`.
        pids: By process.
        logs: By process.
        honest: What its client saw.
        address: The dispatcher's api.
    """

    endpoints: dict[str, str]
    pids: dict[str, int]
    logs: dict[str, Path]
    honest: Honest
    address: str

    def taken(self) -> dict[str, Taken]:
        """What each process holds."""
        return {name: taken(pid) for name, pid in self.pids.items()}

    def lines(self, name: str) -> int:
        """Lines in a process's log."""
        return self.logs[name].read_text().count("\n")


@contextmanager
def running(work: Path) -> Iterator[Running]:
    """Start everything; all is gone when the block ends."""
    import partitioner
    from defer.planning import make_plan, parse_placement

    with ExitStack() as stack:
        agents = stack.enter_context(local_agents(["first", "second"], work))
        base = free_ports(3)
        lines = [
            "[dispatcher]",
            f'listen = "127.0.0.1:{base}"',
            "[network]",
            'bandwidth = "1 Gbit/s"',
            'delay = "0.1 ms"',
        ]
        for agent in agents:
            lines += [
                "[[device]]",
                f'name = "{agent.name}"',
                f'address = "{agent.address}"',
                'speed = "10 GFLOP/s"',
            ]
        file = work / "cluster.toml"
        file.write_text("\n".join(lines))
        model = chain_model.save(work / "nothing.onnx", 2, NBYTES)
        cluster = Cluster.load(file)
        placement = parse_placement("first=0:1,second=1:2", cluster, 2)
        make_plan(partitioner.analyze(model), cluster, placement=placement).save(work / "plan.json")
        log = stack.enter_context((work / "dispatcher.log").open("w"))

        def start(command: Sequence[str]) -> subprocess.Popen[str]:
            return subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )

        more = ("--model", str(model), "--plan", str(work / "plan.json"), "--state", str(work / "state"))
        ready = stack.enter_context(serving(file, *more, start=start))
        found = Honest()
        endpoints = {
            **_agent_ports(agents[0].address),
            "dispatcher api": f"tcp://127.0.0.1:{base}",
            "dispatcher data": f"tcp://127.0.0.1:{base + 1}",
            "dispatcher fetch": f"tcp://127.0.0.1:{base + 2}",
        }
        pids = {"first": agents[0].process.pid, "second": agents[1].process.pid, "dispatcher": ready["pid"]}
        logs = {name: work / f"{name}.log" for name in pids}
        stop = threading.Event()
        thread = threading.Thread(target=_ask, args=(ready["ready"], found, stop), name="honest")
        thread.start()
        try:
            yield Running(endpoints, pids, logs, found, ready["ready"])
        finally:
            stop.set()
            thread.join(2 * TIMEOUT_S)


def _agent_ports(address: str) -> dict[str, str]:
    """An agent's ports by name; it tells the other two where it is asked at one."""
    host = address.rpartition(":")[0]
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.connect(f"tcp://{address}")
        dealer.send(encode_control(Hello(1, 1, 1, "hostile", "dispatcher")))
        while dealer.poll(10_000):
            message = decode_control(dealer.recv())
            if isinstance(message, Welcome) and message.offer is not None:
                return {
                    "agent control": f"tcp://{address}",
                    "agent data": f"tcp://{host}:{message.offer.data_port}",
                    "agent fetch": f"tcp://{host}:{message.offer.fetch_port}",
                }
    raise SystemExit(f"the agent at {address} does not answer")


def _ask(address: str, found: Honest, stop: threading.Event) -> None:
    draw = np.random.default_rng(0)
    with Client(address, timeout=TIMEOUT_S) as client:
        while not stop.wait(EVERY_S):
            array = draw.standard_normal((1, NBYTES // 4)).astype(np.float32)
            begin = time.monotonic()
            try:
                (result,) = client.infer(array).values()
            except DeferError as error:
                found.errors[error.code] = found.errors.get(error.code, 0) + 1
                continue
            found.slowest_s = max(found.slowest_s, time.monotonic() - begin)
            if np.array_equal(result, array):
                found.right += 1
            else:
                found.wrong += 1
