"""How long nobody answers when the dispatcher that leads is killed and another one takes over.

Two dispatchers share a state on a nats-server of this benchmark's own, and two agents. Requests are sent by a clock, at
a fixed rate, half of them durable, by a client that knows both addresses. Again and again the leader is killed
(SIGKILL), or told to stop, and then started anew as the one that stands by. Every answer is compared with the whole
model's, and every durable request is asked for again at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import models
from benchmarks.ports import free_ports
from benchmarks.runner import Options, Outcome, Row, Target, main
from defer.client import Client
from defer.errors import DeferError, MissingExtra
from defer.local_agents import LocalAgent, local_agents

WAIT_S = 60.0
TAKEOVER_S = 3.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own arguments."""
    parser.add_argument(
        "--model", default="tiny_residual", help="one of `defer models` (default tiny_residual)"
    )
    parser.add_argument("--kills", type=int, default=10, help="leaders killed (default 10)")
    parser.add_argument("--stops", type=int, default=3, help="leaders told to stop (default 3)")
    parser.add_argument("--rate", type=float, default=50.0, help="requests per second (default 50)")
    parser.add_argument(
        "--lease", default="1.8s", help="how long a silent leader keeps its lease (default 1.8s)"
    )


class Dispatcher:
    """`defer serve`; the lines that it prints are kept with the time at which they came."""

    def __init__(
        self, number: int, folder: Path, agents: Sequence[LocalAgent], words: Sequence[object]
    ) -> None:
        self.port = free_ports(3)
        self.address = f"127.0.0.1:{self.port}"
        self._home = folder / f"dispatcher-{number}"
        self._home.mkdir()
        cluster = self._home / "cluster.toml"
        lines = [
            f'[dispatcher]\nlisten = "{self.address}"\n[network]\nbandwidth = "1 Gbit/s"\ndelay = "0.1 ms"'
        ]
        lines += [f'[[device]]\nname = "{agent.name}"\naddress = "{agent.address}"' for agent in agents]
        cluster.write_text("\n".join(lines))
        self._command = [sys.executable, "-m", "defer", "serve", "--cluster", cluster, "--json", *words]
        self._command += ["--standby", "none"]  # what agents load is counted
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, or start it again."""
        env = os.environ | {"XDG_CACHE_HOME": str(self._home), "XDG_STATE_HOME": str(self._home)}
        with (self._home / "serve.log").open("a") as log:
            self._process = subprocess.Popen(
                [str(word) for word in self._command], stdout=subprocess.PIPE, stderr=log, text=True, env=env
            )
        self._said: list[tuple[float, dict[str, Any]]] = []
        self._reader = threading.Thread(target=self._read, args=(self._process, self._said), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[str], said: list[tuple[float, dict[str, Any]]]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            said.append((time.monotonic(), json.loads(line)))  # noqa: PERF401 - one by one, as they come

    def says(self, key: str) -> float:
        """When it said this; waits for it."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            found = [at for at, line in list(self._said) if key in line]
            if found:
                return found[-1]
            if self._process is None or self._process.poll() is not None:
                break
            time.sleep(0.005)
        raise RuntimeError((self._home / "serve.log").read_text() or f"{self.address} did not say {key!r}")

    def end(self, number: signal.Signals) -> None:
        """Send a signal and wait for the end."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(WAIT_S)
            self._reader.join(WAIT_S)
            assert process.stdout is not None
            process.stdout.close()


@dataclass(slots=True)
class Sent:
    """A request: its number, its id, when it was sent and answered."""

    number: int
    name: bytes
    durable: bool
    at: float
    future: Future[Any]
    answered: float = 0.0


class Load:
    """Sends by the clock until it is closed."""

    def __init__(self, addresses: str, model: str, rate: float) -> None:
        self.sent: list[Sent] = []
        self._model, self._rate = model, rate
        self._client = Client(addresses, timeout=WAIT_S)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._inputs = [models.example_inputs(model, seed=seed) for seed in range(16)]

    def __enter__(self) -> Load:
        self._client.models()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(WAIT_S)
        for each in self.sent:
            each.future.exception(WAIT_S)
        self._client.close()

    def _run(self) -> None:
        begin = time.monotonic()
        requests = self._client._requests
        while not self._stop.wait(max(0.0, begin + len(self.sent) / self._rate - time.monotonic())):
            number, name = len(self.sent), secrets.token_bytes(16)
            inputs, durable = self._inputs[number % len(self._inputs)], number % 2 == 0
            # Not `submit`: it waits until a durable request is kept, and the clock would stand still meanwhile.
            submit = requests.prepare(inputs, "", (), None, copy=True, durable=durable, request=name)
            each = Sent(number, name, durable, time.monotonic(), requests.launch(submit))
            each.future.add_done_callback(lambda _, each=each: setattr(each, "answered", time.monotonic()))  # type: ignore[misc]
            self.sent.append(each)

    def first_after(self, moment: float) -> float:
        """When the first request that was sent after a moment was answered."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            found = [each.answered for each in list(self.sent) if each.at > moment and each.answered]
            if found:
                return min(found)
            time.sleep(0.005)
        raise RuntimeError("no request was answered any more")


def measure(options: Options) -> Outcome:
    """A row per kill and stop."""
    if shutil.which("nats-server") is None:
        raise MissingExtra("this needs nats-server", hint="apt-get install nats-server")
    arguments = options.arguments
    kills, stops = (2, 1) if options.quick else (arguments.kills, arguments.stops)
    rows: list[Row] = []
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="takeover-", ignore_cleanup_errors=True))
        )
        url = f"{stack.enter_context(_nats(folder))}?lease={arguments.lease}"
        agents = stack.enter_context(local_agents(["a", "b"], folder))
        model = models.save(arguments.model, folder / f"{arguments.model}.onnx")
        words = ["--model", model, "--state", url]
        pair = [Dispatcher(number, folder, agents, words) for number in (1, 2)]
        for each in pair:
            stack.callback(each.end, signal.SIGKILL)
        leader, standby = pair
        leader.start()
        leader.says("ready")
        standby.start()
        standby.says("standby")
        addresses = f"{leader.address},{standby.address}"
        with Client(addresses) as client:
            before = _loads(client)
        load = stack.enter_context(Load(addresses, arguments.model, arguments.rate))
        load.first_after(0.0)
        for turn in range(kills + stops):
            time.sleep(1.0)
            how = signal.SIGKILL if turn < kills else signal.SIGTERM
            with options.console.status(f"{how.name} {turn + 1} of {kills + stops}"):
                moment = time.monotonic()
                leader.end(how)
                leads, answers = standby.says("ready"), load.first_after(moment)
            time.sleep(0.5)
            waits = [
                each.answered - each.at for each in load.sent if each.at > moment - 0.5 and each.answered
            ]
            rows.append(
                {
                    "leader": how.name,
                    "leads after s": round(leads - moment, 3),
                    "answers after s": round(answers - moment, 3),
                    "longest wait s": round(max(waits), 3),
                }
            )
            leader, standby = standby, leader
            standby.start()
            standby.says("standby")
        load.__exit__()
        with Client(addresses, timeout=WAIT_S) as client:
            judged = _judge(load.sent, client, model, arguments.model)
            loaded = {name: count - before[name] for name, count in _loads(client).items()}
    killed = [float(str(row["answers after s"])) for row in rows if row["leader"] == "SIGKILL"]
    return Outcome(
        rows,
        [
            Target("longest until a new request is answered, s", max(killed), TAKEOVER_S, "most"),
            Target("requests without an answer", judged["errors"], 0, "most"),
            Target("answers that differ from the whole model's", judged["wrong"], 0, "most"),
            Target("durable answers that are not there for recall", judged["gone"], 0, "most"),
            Target("partitions that agents loaded again", sum(loaded.values()), 0, "most"),
        ],
        [f"{len(load.sent)} requests at {arguments.rate:g}/s; median {median(killed):.2f} s after SIGKILL"],
    )


def _judge(sent: Sequence[Sent], client: Client, path: Path, model: str) -> dict[str, int]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    wanted = [
        dict(zip(names, session.run(None, models.example_inputs(model, seed=seed)), strict=True))
        for seed in range(16)
    ]
    counts = {"errors": 0, "wrong": 0, "gone": 0}
    for each in sent:
        if each.future.exception() is not None:
            counts["errors"] += 1
            continue
        right = wanted[each.number % 16]
        counts["wrong"] += not _same(each.future.result(), right)
        if each.durable:
            try:
                counts["wrong"] += not _same(client.recall(each.name), right)
            except DeferError:
                counts["gone"] += 1
    return counts


def _same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(np.allclose(found[name], array, rtol=1e-3, atol=1e-4) for name, array in wanted.items())


def _loads(client: Client) -> dict[str, int]:
    return {device.name: device.loads for device in client.status().devices}


@contextmanager
def _nats(folder: Path) -> Iterator[str]:
    port = free_ports(1)
    with (folder / "nats.log").open("wb") as log:
        command = ["nats-server", "-js", "-a", "127.0.0.1", "-p", str(port), "-sd", str(folder / "nats")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        yield f"nats://127.0.0.1:{port}/takeover"
    finally:
        process.terminate()
        process.wait(WAIT_S)


if __name__ == "__main__":
    main("takeover", measure, __doc__, add_arguments=add_arguments)
