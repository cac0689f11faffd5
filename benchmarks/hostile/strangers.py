"""Peers that must not get in, at every port of an agent and a dispatcher with keys: each is refused and logged once."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import zmq

from benchmarks.ports import free_ports
from benchmarks.processes import serving
from defer import keys
from defer.local_agents import local_agents
from node_agent.keys import ALLOWED, Role
from node_agent.link import Monitor, dial, new_context, open_socket
from node_agent.security import DISPATCHER as THE_DISPATCHER
from node_agent.security import Security, choose

PATIENCE_S = 20.0
TIMES = 5
"""Each comes so often: it is told of once."""

AGENT, DISPATCHER = "edge", "main"

_OPEN = b"\xff\0\0\0\0\0\0\0\1\x7f\3\0NULL" + bytes(48)
"""ZMTP's greeting of a peer that has no keys."""

_SHORTEST = 64 + 200 + 257
"""Bytes of a greeting, a HELLO and the least INITIATE of CURVE."""


class AdmittedError(Exception):
    """Somebody got in, or was not told that he may not."""


@dataclass(frozen=True, slots=True)
class Refused:
    """What became of one kind of stranger at one port.

    Attributes:
        stranger: Who came.
        port: Where.
        slowest_s: Longest until it was refused.
        lines: Lines in the log for all of its times.
    """

    stranger: str
    port: str
    slowest_s: float
    lines: int


@dataclass(slots=True)
class Guarded:
    """An agent and a dispatcher with keys.

    Attributes:
        work: Their directory.
        ports: By name, as `tcp://host:port`.
    """

    work: Path
    ports: dict[str, str]

    def folder(self, name: str) -> Path:
        """Somebody's keys."""
        return self.work / "keys" / name

    def security(self, name: str, role: Role) -> Security:
        """How somebody protects what he sends."""
        return choose(self.folder(name), roles=(role,), hosts=[])

    def log(self, port: str) -> Path:
        """Where the process with a port tells what it refused."""
        return self.work / f"{AGENT if port.startswith('agent') else DISPATCHER}.log"


@contextmanager
def guarded(work: Path) -> Iterator[Guarded]:
    """Start both; they are gone when the block ends."""
    found = Guarded(work, {})
    parties: tuple[tuple[str, Role], ...] = (
        (AGENT, "agent"),
        (DISPATCHER, "dispatcher"),
        ("thief", "client"),
        ("stranger", "client"),
        ("deceived", "client"),
    )
    made = {name: keys.make(found.folder(name), name, role) for name, role in parties}
    for one, other in ((AGENT, DISPATCHER), (DISPATCHER, AGENT)):
        keys.authorise(found.folder(one), made[other])
    for name in ("thief", "stranger"):
        for known in (AGENT, DISPATCHER):
            keys.authorise(found.folder(name), made[known])
    keys.authorise(found.folder(AGENT), made["thief"])
    # The deceived one takes another's keys for theirs.
    for known, role in parties[:2]:
        keys.make(work / "keys" / f"false-{known}", known, role)
        keys.authorise(found.folder("deceived"), work / "keys" / f"false-{known}" / ALLOWED / f"{known}.toml")
    with ExitStack() as stack:
        arguments = {AGENT: ["--keys", str(found.folder(AGENT))]}
        base = free_ports(6)
        arguments[AGENT] += ["--listen", f"127.0.0.1:{base + 3}"]
        stack.enter_context(local_agents([AGENT], work, arguments=arguments))
        file = work / "guarded.toml"
        file.write_text(
            f'[dispatcher]\nlisten = "127.0.0.1:{base}"\n[network]\nbandwidth = "1 Gbit/s"\ndelay = "0.1 ms"\n'
            f'[[device]]\nname = "{AGENT}"\naddress = "127.0.0.1:{base + 3}"\nspeed = "10 GFLOP/s"\n'
        )
        log = stack.enter_context(found.log(DISPATCHER).open("w"))

        def start(command: Sequence[str]) -> subprocess.Popen[str]:
            return subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

        more = ("--keys", str(found.folder(DISPATCHER)), "--state", str(work / "guarded-state"))
        stack.enter_context(serving(file, *more, start=start))
        for offset, port in enumerate(("api", "data", "fetch")):
            found.ports[f"dispatcher {port}"] = f"tcp://127.0.0.1:{base + offset}"
        for offset, port in enumerate(("control", "data", "fetch")):
            found.ports[f"agent {port}"] = f"tcp://127.0.0.1:{base + 3 + offset}"
        yield found


def knock(security: Security, endpoint: str, to: str) -> float:
    """Seconds until a peer heard that it is refused.

    Raises:
        AdmittedError: It got in, or heard nothing.
    """
    context = new_context(security)
    try:
        dealer = open_socket(context, zmq.DEALER, purpose="data")
        monitor = Monitor(dealer)
        try:
            begin = time.monotonic()
            dial(dealer, endpoint, to)
            while time.monotonic() - begin < PATIENCE_S:
                if monitor.socket.poll(50):
                    if "up" in monitor.events():
                        raise AdmittedError(f"a peer that nobody knows got in at {endpoint}")
                    if monitor.refusal is not None:
                        return time.monotonic() - begin
        finally:
            monitor.close()
            dealer.close(0)
    finally:
        context.destroy(0)
    raise AdmittedError(f"a peer heard nothing from {endpoint}")


def recorded(security: Security, endpoint: str, to: str) -> bytes:
    """What an honest peer sends from its first byte until its connection stands, as an eavesdropper has it."""
    heard = bytearray()
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)
        thread = threading.Thread(target=_relay, args=(listener, (host, int(port)), heard, stop))
        thread.start()
        context = new_context(security)
        try:
            dealer = open_socket(context, zmq.DEALER, purpose="data")
            monitor = Monitor(dealer)
            dial(dealer, f"tcp://127.0.0.1:{listener.getsockname()[1]}", to)
            deadline = time.monotonic() + PATIENCE_S
            up = False
            while not up and time.monotonic() < deadline:
                up = bool(monitor.socket.poll(50)) and "up" in monitor.events()
            monitor.close()
            dealer.close(0)
        finally:
            context.destroy(0)
            stop.set()
            thread.join(PATIENCE_S)
    if not up or len(heard) < _SHORTEST:
        raise AdmittedError(f"an honest peer did not get in at {endpoint}")
    return bytes(heard)


def _relay(listener: socket.socket, target: tuple[str, int], heard: bytearray, stop: threading.Event) -> None:
    with contextlib.suppress(OSError):
        near, _ = listener.accept()
        with near, socket.create_connection(target, PATIENCE_S) as far:
            other = {near: far, far: near}
            while not stop.is_set():
                for one in select.select([near, far], [], [], 0.05)[0]:
                    data = one.recv(65536)
                    if not data:
                        return
                    if one is near:
                        heard += data
                    other[one].sendall(data)


def replay(data: bytes, endpoint: str) -> float:
    """Seconds until whoever sends recorded bytes again was hung up on.

    Raises:
        AdmittedError: It was not.
    """
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    begin = time.monotonic()
    with socket.create_connection((host, int(port)), PATIENCE_S) as raw:
        raw.settimeout(PATIENCE_S)
        try:
            raw.sendall(data)
            while raw.recv(65536):
                if time.monotonic() - begin > PATIENCE_S:
                    break
            else:
                return time.monotonic() - begin
        except TimeoutError:
            pass
        except OSError:  # hung up on with bytes of ours unread
            return time.monotonic() - begin
    raise AdmittedError(f"a replayed handshake was not hung up on at {endpoint}")


def refusals(cluster: Guarded, times: int = TIMES) -> list[Refused]:
    """Let every kind of stranger come to every port.

    Raises:
        AdmittedError: One got in.
    """
    found = []
    for port, endpoint in cluster.ports.items():
        agents = port.startswith("agent")
        home = AGENT if agents else THE_DISPATCHER
        visitor: tuple[str, Role] = (DISPATCHER, "dispatcher") if agents else (AGENT, "agent")
        tape = recorded(cluster.security(*visitor), endpoint, home)
        kinds: dict[str, Callable[[], float]] = {
            "a key that nobody knows": lambda e=endpoint, h=home: knock(  # type: ignore[misc]
                cluster.security("stranger", "client"), e, h
            ),
            "another key expected": lambda e=endpoint, h=home: knock(  # type: ignore[misc]
                cluster.security("deceived", "client"), e, h
            ),
            "no keys": lambda e=endpoint: replay(_OPEN, e),  # type: ignore[misc]
            "a replayed handshake": lambda e=endpoint, t=tape: replay(t, e),  # type: ignore[misc]
        }
        if agents:
            kinds["a role that may not"] = lambda e=endpoint, h=home: knock(  # type: ignore[misc]
                cluster.security("thief", "client"), e, h
            )
        for kind, come in kinds.items():
            before = _lines(cluster.log(port))
            slowest = max(come() for _ in range(times))
            time.sleep(0.1)  # the line is written by another process
            found.append(Refused(kind, port, slowest, _lines(cluster.log(port)) - before))
    return found


def _lines(log: Path) -> int:
    return log.read_text().count("\n")
