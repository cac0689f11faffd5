"""What soaks: agents and a dispatcher as processes on loopback, and what is done to them now and then."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import partitioner
from benchmarks.ports import free_ports
from benchmarks.processes import ended
from benchmarks.soak import model
from defer import api
from defer.admin import Admin
from defer.documents.base import encode
from defer.documents.cluster import Cluster
from defer.errors import DeferError
from defer.local_agents import read_line
from defer.model_files import model_files
from defer.planning import make_plan, parse_placement
from defer.upload import upload
from node_agent.messages import Done

AGENTS = ("a", "b", "c", "d")
MORTAL = "d"
"""The agent that is killed now and then; the others live as long as the run."""

APART = ("b", "d")
"""Agents that share no memory with others, as if each had a machine of its own."""

HANGS_S = 1.0
"""So long the one that is to be killed is stopped before."""

START_S = 60.0
STEP_S = 120.0
PARTS = ((("a", 2), ("b", 3), ("d", 3)), (("c", 3), ("d", 2), ("a", 3)), (("b", 4), ("c", 4)))
"""Plans that take turns: devices and how many eighths of the network each runs."""


@dataclass(slots=True)
class Stand:
    """The processes.

    Attributes:
        work: Directory of everything.
        address: The dispatcher's api.
        pids: By process, as they are now.
        folders: What each process keeps on disk.
        restarts: How often the agent that dies has been started again.
        changes: What was done, by kind; `failed` ones have their reason in `problems`.
        problems: What could not be done.
    """

    work: Path
    address: str
    pids: dict[str, int]
    folders: dict[str, Path]
    plans: list[str]
    agents: dict[str, subprocess.Popen[str]]
    ports: dict[str, int]
    restarts: int = 0
    changes: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    _turn: int = 0

    def change(self) -> None:
        """Do the next thing: another plan, a hang, death and restart, a plan again, a version tried for a while."""
        kind = ("replan", "restart", "replan", "version")[self._turn % 4]
        self._turn += 1
        try:
            if kind == "restart":
                self._restart()
            elif kind == "replan":
                self._deploy(model.NAME, self.plans[(self._turn // 2) % len(self.plans)])
            else:
                self._try_version()
        except (DeferError, RuntimeError) as error:
            self.problems.append(f"{kind}: {error}")
        self.changes[kind] = self.changes.get(kind, 0) + 1

    def _restart(self) -> None:
        process = self.agents[MORTAL]
        process.send_signal(signal.SIGSTOP)
        time.sleep(HANGS_S)
        process.kill()
        process.wait()
        _close(process)
        time.sleep(1.0)
        self.agents[MORTAL] = start_agent(MORTAL, self.ports[MORTAL], self.work)
        self.pids[MORTAL] = self.agents[MORTAL].pid
        wait_agent(self.agents[MORTAL])
        self.restarts += 1

    def _try_version(self) -> None:
        self._deploy(f"{model.NAME}@2", self.plans[-1])
        with Admin(self.address) as admin:
            admin.ask(api.Roll(0, model.NAME, "canary", "2", 0.2), api.Rolled, timeout=STEP_S)
            time.sleep(2.0)
            admin.ask(api.Roll(0, model.NAME, "rollback"), api.Rolled, timeout=STEP_S)
            admin.ask(api.Undeploy(0, f"{model.NAME}@2"), Done, timeout=STEP_S)

    def _deploy(self, name: str, plan: str) -> None:
        shapes: dict[str, tuple[int, ...]] = {"a0": (8, model.WIDTH)}
        with Admin(self.address) as admin:
            files = model_files(self.work / f"{model.NAME}.onnx")
            upload(admin, files)
            order = api.Deploy(0, name, tuple(files), plan, shapes=shapes)
            admin.ask(order, api.Deployed, timeout=STEP_S)


def start_agent(name: str, port: int, work: Path) -> subprocess.Popen[str]:
    """Start an agent whose port and store stay its own."""
    command = [sys.executable, "-m", "node_agent", "--name", name, "--listen", f"127.0.0.1:{port}"]
    command += ["--threads", "1", "--store", str(work / name), "--json", "--until-stdin-closes"]
    with (work / f"{name}.log").open("a") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            env={**os.environ, "DEFER_SHARED_MEMORY": "off" if name in APART else "on"},
        )


def wait_agent(process: subprocess.Popen[str]) -> None:
    """Wait until an agent says that it is ready.

    Raises:
        RuntimeError: It does not.
    """
    if not read_line(process, START_S):
        raise RuntimeError("an agent did not start")


def _close(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


@contextlib.contextmanager
def stand(work: Path) -> Iterator[Stand]:
    """Start everything; all is gone when the block ends."""
    with ExitStack() as stack:
        base = free_ports(3 + 3 * len(AGENTS))
        ports = {name: base + 3 + 3 * number for number, name in enumerate(AGENTS)}
        agents: dict[str, subprocess.Popen[str]] = {}

        def end() -> None:
            with ended(list(agents.values())):
                pass

        stack.callback(end)
        for name, port in ports.items():
            agents[name] = start_agent(name, port, work)
        for process in agents.values():
            wait_agent(process)
        file = _cluster(work, base, ports)
        network = model.save(work / f"{model.NAME}.onnx")
        plans = _plans(network, Cluster.load(file), work)
        command = [sys.executable, "-m", "benchmarks.soak.dispatcher", "serve", "--cluster", str(file)]
        command += ["--json", "--model", str(network), "--plan", str(work / "plan-0.json")]
        command += ["--input", f"a0=8,{model.WIDTH}", "--state", str(work / "state"), "--replan", "never"]
        log = stack.enter_context((work / "dispatcher.log").open("w"))
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
        stack.enter_context(ended([server]))
        deadline = time.monotonic() + START_S
        told: dict[str, object] = {}
        while "ready" not in told:
            line = read_line(server, max(0.1, deadline - time.monotonic()))
            if not line:
                told_last = (work / "dispatcher.log").read_text().strip().splitlines()[-3:]
                raise RuntimeError(f"the dispatcher did not become ready: {' '.join(told_last)}")
            told = json.loads(line)
        pids = {"dispatcher": server.pid, "operator": os.getpid()}
        pids |= {name: process.pid for name, process in agents.items()}
        folders = {"dispatcher": work / "state"} | {name: work / name for name in AGENTS}
        yield Stand(work, str(told["ready"]), pids, folders, plans, agents, ports)


def _cluster(work: Path, base: int, ports: dict[str, int]) -> Path:
    lines = ["[dispatcher]", f'listen = "127.0.0.1:{base}"']
    lines += ["[network]", 'bandwidth = "1 Gbit/s"', 'delay = "0.1 ms"']
    for name, port in ports.items():
        lines += ["[[device]]", f'name = "{name}"', f'address = "127.0.0.1:{port}"', 'speed = "10 GFLOP/s"']
    file = work / "cluster.toml"
    file.write_text("\n".join(lines))
    return file


def _plans(network: Path, cluster: Cluster, work: Path) -> list[str]:
    chain = partitioner.analyze(network, input_shapes={"a0": (8, model.WIDTH)})
    count = len(chain.blocks)
    plans = []
    for number, parts in enumerate(PARTS):
        at, words = 0, []
        for name, eighths in parts:
            end = at + eighths
            words.append(f"{name}={at * count // 8}:{end * count // 8}")
            at = end
        plan = make_plan(chain, cluster, placement=parse_placement(",".join(words), cluster, count))
        plan.save(work / f"plan-{number}.json")
        plans.append(encode(plan).decode())
    return plans


class Changes:
    """Changes things by the clock, in a thread of its own, until it is left.

    Args:
        stand: What is changed.
        every_s: Mean seconds between two changes.
        seed: Of the pauses.
    """

    def __init__(self, stand: Stand, every_s: float, seed: int) -> None:
        self._stand, self._every_s = stand, every_s
        self._draw = random.Random(f"{seed} changes")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="soak-changes")

    def __enter__(self) -> Changes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(2 * STEP_S)

    def _run(self) -> None:
        while not self._stop.wait(self._every_s * (0.5 + self._draw.random())):
            self._stand.change()


def bytes_in(folders: Sequence[Path]) -> int:
    """Bytes of all files in some folders."""
    total = 0
    for folder in folders:
        for file in folder.rglob("*"):
            with contextlib.suppress(OSError):
                if not file.is_dir():
                    total += file.stat().st_size
    return total
