"""Two dispatchers on one state: one leads, the other takes over when it is killed, stopped, or stands still."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

import models
from benchmarks.ports import free_ports
from defer import api, errors
from defer.admin import Admin
from defer.client import Client
from defer.dispatcher.nats_link import NatsLink
from defer.dispatcher.shared_files import read_lists
from defer.dispatcher.state_url import parse_state_url
from defer.local_agents import LocalAgent, local_agents
from tests.defer import test_restart as restart
from tests.defer.nats_fixtures import NatsServer, nats_server, needs_nats
from tests.defer.test_restart import MODEL, loads, same, two_stages, until, write_cluster

agents, expected, model = restart.agents, restart.expected, restart.model

T = TypeVar("T")

pytestmark = [pytest.mark.integration, needs_nats]


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats") as running:
        yield running


class Dispatcher:
    """`defer serve` as a process; what it prints is read by a thread."""

    def __init__(self, command: list[object], folder: Path, port: int) -> None:
        self.address, self.said = f"127.0.0.1:{port}", list[dict[str, Any]]()
        self.log = folder / "serve.log"
        env = os.environ | {"XDG_CACHE_HOME": str(folder), "XDG_STATE_HOME": str(folder)}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command], stdout=subprocess.PIPE, stderr=log, text=True, env=env
            )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(json.loads(line))

    def says(self, key: str, seconds: float = 60) -> dict[str, Any]:
        """The last line with this key, when there is one."""
        until(lambda: any(key in line for line in self.said) or self.process.poll() is not None, seconds)
        found = [line for line in self.said if key in line]
        assert found, self.log.read_text()
        return found[-1]

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(40)
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@contextmanager
def dispatcher(
    number: int,
    folder: Path,
    agents: tuple[LocalAgent, ...],
    url: str,
    *words: object,
) -> Iterator[Dispatcher]:
    home = folder / f"d{number}"
    home.mkdir(exist_ok=True)
    port = free_ports(3)
    cluster = write_cluster(agents, home / "cluster.toml", port)
    # A lease that outlives the pauses of a machine that runs other tests beside.
    state = f"{url}?lease=6s"
    command = [
        sys.executable,
        "-m",
        "defer",
        "serve",
        "--cluster",
        cluster,
        "--json",
        "--state",
        state,
        *(["--standby", "none"] if "--model" in words else []),  # these tests count what agents load
        *words,
    ]
    running = Dispatcher(command, home, port)
    try:
        yield running
    finally:
        running.process.send_signal(signal.SIGCONT)
        running.end(signal.SIGKILL)  # one that has ended still has a thread that reads, and a pipe


def steadily(ask: Callable[[], T]) -> T:
    """What is told by a dispatcher that leads; on a busy machine one may lose its lease, and lead again."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return ask()
        except errors.DeferError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def both(*dispatchers: Dispatcher) -> str:
    return ",".join(each.address for each in dispatchers)


def test_the_leader_is_killed_under_load(
    agents: tuple[LocalAgent, ...],
    model: Path,
    expected: Any,
    tmp_path: Path,
    nats: NatsServer,
) -> None:
    home = tmp_path / "d1"
    home.mkdir()
    plan = two_stages(model, write_cluster(agents, tmp_path / "cluster.toml", 7600), tmp_path / "plan.json")
    words = ["--model", model, "--plan", plan]
    sent: dict[int, tuple[bytes, Future[Any]]] = {}
    plain: list[Any] = []
    stop = threading.Event()

    def durable(addresses: str) -> None:
        with Client(addresses, timeout=60) as client:
            for seed in range(1, 10_000):
                if stop.is_set():
                    break
                name = os.urandom(16)
                inputs = models.example_inputs(MODEL, seed=seed)
                sent[seed] = (name, client.submit(inputs, durable=True, request=name))
            for _, future in sent.values():
                future.result(60)

    def ordinary(addresses: str) -> None:
        with Client(addresses.split(","), timeout=60) as client:
            while not stop.is_set():
                plain.append(client.infer(models.example_inputs(MODEL, seed=0)))

    with dispatcher(1, tmp_path, agents, nats.url, *words) as first:
        assert first.says("ready")["term"] >= 1
        with dispatcher(2, tmp_path, agents, nats.url, *words) as second:
            assert second.says("standby") == {"standby": first.address}
            with pytest.raises(errors.Standby, match=f"{first.address} leads"), Admin(second.address):
                pass
            with Client(first.address) as client:
                before, (info,) = loads(client), client.models()
                assert before == {"a": 1, "b": 1}
            addresses = both(second, first)
            threads = [threading.Thread(target=work, args=(addresses,)) for work in (durable, ordinary)]
            for thread in threads:
                thread.start()
            until(lambda: len(sent) > 20 and len(plain) > 5)
            first.end(signal.SIGKILL)
            ready = second.says("ready")
            assert ready["term"] > 1
            assert ready["restored"] == [MODEL]
            most, some = len(sent), len(plain)
            until(lambda: len(sent) > most + 20 and len(plain) > some + 5)
            stop.set()
            for thread in threads:
                thread.join(90)
                assert not thread.is_alive()
            with Client(addresses) as client:
                assert steadily(lambda: loads(client)) == before, "no agent has loaded anything"
                assert steadily(client.models)[0].epoch > info.epoch
                for seed, (name, future) in sent.items():
                    same(future.result(0), expected(seed))
                    same(client.recall(name), expected(seed))
            for outputs in plain:
                same(outputs, expected(0))


@pytest.mark.slow
def test_a_leader_that_stood_still_stands_by_and_a_stop_in_order_hands_over(
    agents: tuple[LocalAgent, ...],
    model: Path,
    expected: Any,
    tmp_path: Path,
    nats: NatsServer,
) -> None:
    words: list[object] = ["--model", model]
    web = free_ports(3)
    with ExitStack() as stack:
        first = stack.enter_context(dispatcher(1, tmp_path, agents, nats.url, *words))
        first.says("ready")
        words += ["--metrics", f"127.0.0.1:{web}"]
        second = stack.enter_context(dispatcher(2, tmp_path, agents, nats.url, *words))
        second.says("standby")
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"http://127.0.0.1:{web}/readyz", timeout=5)
        with Client(both(first, second), timeout=60) as client:
            same(client.infer(models.example_inputs(MODEL, seed=1)), expected(1))
            first.process.send_signal(signal.SIGSTOP)
            same(client.infer(models.example_inputs(MODEL, seed=5)), expected(5))
            assert second.says("ready")["term"] > 1
            first.process.send_signal(signal.SIGCONT)
            until(lambda: first.says("standby") == {"standby": second.address}, 60)
            assert first.process.poll() is None
            same(client.infer(models.example_inputs(MODEL, seed=2)), expected(2))
            before = steadily(lambda: loads(client))
            said = len(first.said)
            assert second.end() == 0
            until(lambda: any("ready" in line for line in first.said[said:]), 60)
            same(client.infer(models.example_inputs(MODEL, seed=3)), expected(3))
            assert steadily(lambda: loads(client)) == before
        assert first.end() == 0


@pytest.mark.slow
def test_what_was_deployed_at_the_leader_is_there_for_the_next(
    agents: tuple[LocalAgent, ...], model: Path, expected: Any, tmp_path: Path, nats: NatsServer
) -> None:
    def defer(*words: object) -> None:
        command = [sys.executable, "-m", "defer", *words]
        subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=60)

    with ExitStack() as stack:
        first = stack.enter_context(dispatcher(1, tmp_path, agents, nats.url))
        first.says("ready")
        second = stack.enter_context(dispatcher(2, tmp_path, agents, nats.url))
        second.says("standby")
        defer("deploy", model, "--name", "m", "--dispatcher", both(second, first))
        until(lambda: any((tmp_path / "d2").glob(f"defer/*/models/*/{model.name}")))
        first.end(signal.SIGKILL)
        for path in (tmp_path / "d1").glob("defer/*/*/*"):
            if path.is_dir():
                shutil.rmtree(path)
        assert second.says("ready")["restored"] == ["m"]
        with Client(both(first, second), timeout=60) as client:
            same(client.infer(models.example_inputs(MODEL, seed=3)), expected(3))
        (found,) = (tmp_path / "d2").glob(f"defer/*/models/*/{model.name}")
        assert found.read_bytes() == model.read_bytes()
        defer("undeploy", "m", "--dispatcher", both(first, second))
        link = NatsLink(parse_state_url(nats.url))
        link.start()
        try:
            until(lambda: not link.run(read_lists(link), 10))
        finally:
            link.close()


@pytest.mark.slow
def test_a_machine_with_the_leader_and_an_agent_is_lost(
    model: Path, expected: Any, tmp_path: Path, nats: NatsServer
) -> None:
    with ExitStack() as stack:
        (a,) = stack.enter_context(local_agents(["a"], tmp_path))
        (b,) = stack.enter_context(local_agents(["b"], tmp_path))
        plan = two_stages(model, write_cluster((a, b), tmp_path / "c.toml", 7600), tmp_path / "plan.json")
        words = ["--model", model, "--plan", plan]
        first = stack.enter_context(dispatcher(1, tmp_path, (a, b), nats.url, *words))
        first.says("ready")
        second = stack.enter_context(dispatcher(2, tmp_path, (a, b), nats.url, *words))
        second.says("standby")
        with Client(both(first, second), timeout=60) as client:
            same(client.infer(models.example_inputs(MODEL, seed=1)), expected(1))
            b.process.kill()
            first.end(signal.SIGKILL)
            same(client.infer(models.example_inputs(MODEL, seed=2)), expected(2))
            assert second.says("ready")["term"] > 1


@pytest.mark.slow
def test_without_the_state_whoever_led_and_whoever_stood_by_say_so(
    agents: tuple[LocalAgent, ...], model: Path, expected: Any, tmp_path: Path, nats: NatsServer
) -> None:
    def told(at: Dispatcher) -> str:
        try:
            with Admin(at.address, connect_s=5) as admin:
                admin.ask(api.GetStatus(0), api.ServerStatus, timeout=5)
        except errors.DeferError as error:
            return f"{error.code}: {error}"
        return "it leads"

    def out_of_reach(at: Dispatcher) -> bool:
        said = told(at)
        return said.startswith("standby: ") and "the shared state is out of its reach" in said

    with ExitStack() as stack:
        first = stack.enter_context(dispatcher(1, tmp_path, agents, nats.url, "--model", model))
        first.says("ready")
        second = stack.enter_context(dispatcher(2, tmp_path, agents, nats.url, "--model", model))
        second.says("standby")
        nats.stop()
        until(lambda: out_of_reach(first) and out_of_reach(second), 60)
        nats.start()
        with Client(both(first, second), timeout=60) as client:

            def answered() -> bool:
                try:
                    same(client.infer(models.example_inputs(MODEL, seed=1)), expected(1))
                except errors.NotReady:  # whoever leads now still asks the agents what they hold
                    return False
                return True

            until(lambda: "it leads" in (told(first), told(second)), 60)
            until(answered, 60)


def test_a_shared_state_that_cannot_be_used(
    agents: tuple[LocalAgent, ...],
    tmp_path: Path,
    nats: NatsServer,
) -> None:
    def told(url: str, *words: str) -> tuple[int, str]:
        cluster = write_cluster(agents, tmp_path / "cluster.toml", free_ports(3))
        command = [sys.executable, "-m", "defer", "serve", "--cluster", str(cluster), "--state", url, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr

    code, text = told("nats://user:s3cret@10.1.2.3/t")
    assert code == 77
    assert "nothing protects" in text
    assert "s3cret" not in text
    code, text = told(nats.url, "--listen", "127.0.0.1:0")
    assert code == 2
    assert "clients know" in text
    nats.stop()
    begin = time.monotonic()
    code, text = told(nats.url)
    assert (code, "does not answer" in text) == (75, True)
    assert time.monotonic() - begin < 40
