"""A cluster with keys, as processes: who is in works, who is not hears why, within seconds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zmq

import models
import partitioner
from defer import keys
from defer.admin import Admin
from defer.agent_sockets import AgentSockets
from defer.client import Client
from defer.documents.cluster import Cluster
from defer.errors import DeferError, NotAllowed, Unauthorised
from defer.local_agents import LocalAgent, local_agents, read_line, stop
from defer.planning import make_plan, parse_placement
from node_agent.errors import UnauthorisedError
from node_agent.frames import encode_control
from node_agent.keys import ALLOWED, Role
from node_agent.link import Monitor, dial, new_context, open_socket
from node_agent.messages import Hello, StatusRequest
from node_agent.security import Security, choose

pytestmark = pytest.mark.integration

MODEL = "tiny_residual"
PATIENCE_S = 20.0
SECONDS = 10.0
"""Within this a refusal is on the screen; a handshake takes milliseconds, a process's start seconds."""


@dataclass
class Secured:
    """A running cluster with keys: its dispatcher `main`, agents `a` and `b`, and folders of keys by name."""

    root: Path
    address: str
    agents: tuple[LocalAgent, ...]
    server: subprocess.Popen[str]

    def folder(self, name: str) -> Path:
        return self.root / "keys" / name

    def newcomer(self, name: str, role: Role, *, knows: tuple[str, ...] = ("main",)) -> Path:
        """A folder of keys of somebody who knows others, and whom nobody knows."""
        folder = self.folder(name)
        keys.make(folder, name, role)
        for other in knows:
            keys.authorise(folder, public(self.root, other))
        return folder

    def let_in(self, name: str, *, at: str = "main") -> None:
        keys.authorise(self.folder(at), public(self.root, name))
        time.sleep(0.6)  # the list is looked at four times a second

    def logs(self) -> str:
        return "".join((self.root / f"{name}.log").read_text() for name in ("serve", "a", "b"))


def public(root: Path, name: str) -> Path:
    return root / "keys" / name / ALLOWED / f"{name}.toml"


def defer(*words: str | Path, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "defer", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    root = tmp_path_factory.mktemp("secured")
    known: list[tuple[str, Role]] = [
        ("main", "dispatcher"),
        ("a", "agent"),
        ("b", "agent"),
        ("laptop", "client"),
        ("screen", "observer"),
    ]
    for name, role in known:
        keys.make(root / "keys" / name, name, role)
    for name, _ in known:
        for other, _ in known:
            if other != name:
                keys.authorise(root / "keys" / name, public(root, other))
    model = models.save(MODEL, root / f"{MODEL}.onnx")
    with ExitStack() as stack:
        arguments = {name: ["--keys", str(root / "keys" / name)] for name in ("a", "b")}
        agents = stack.enter_context(local_agents(("a", "b"), root, arguments=arguments))
        lines = ['[dispatcher]\nlisten = "127.0.0.1:0"\n[network]\nbandwidth = "1 Gbit/s"\ndelay = "0.1 ms"']
        lines += [f'[[device]]\nname = "{agent.name}"\naddress = "{agent.address}"' for agent in agents]
        (root / "cluster.toml").write_text("\n".join(lines))
        described, chain = Cluster.load(root / "cluster.toml"), partitioner.analyze(model)
        half, whole = len(chain.blocks) // 2, len(chain.blocks)
        placement = parse_placement(f"a=0:{half},b={half}:", described, whole)
        make_plan(chain, described, placement=placement).save(root / "plan.json")
        command = [
            sys.executable,
            "-m",
            "defer",
            "serve",
            "--cluster",
            str(root / "cluster.toml"),
            "--model",
            str(model),
        ]
        command += ["--plan", str(root / "plan.json"), "--state", str(root / "state")]
        command += ["--keys", str(root / "keys" / "main"), "--json", "--until-stdin-closes"]
        log = stack.enter_context((root / "serve.log").open("w"))
        server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        stack.callback(stop, [server])
        line = ""
        while '"ready"' not in line:
            line = read_line(server, 120)
            assert line, (root / "serve.log").read_text()
        yield Secured(root, json.loads(line)["ready"], agents, server)


def given() -> dict[str, np.ndarray]:
    return models.example_inputs(MODEL, seed=3)


def quickly(action: Callable[[], object], kind: type[DeferError]) -> DeferError:
    """The error that an action ends with, soon."""
    began = time.monotonic()
    with pytest.raises(kind) as caught:
        action()
    assert time.monotonic() - began < SECONDS
    return caught.value


def test_who_is_authorised_works_from_end_to_end(cluster: Secured) -> None:
    with Client(cluster.address, keys=cluster.folder("laptop")) as client:
        outputs = list(client.map([given()] * 20))
        status = client.status()
    assert len(outputs) == 20
    for each in outputs[1:]:
        for name, array in each.items():
            np.testing.assert_array_equal(array, outputs[0][name])
    assert {device.state for device in status.devices} == {"alive"}
    shown = defer("status", "--dispatcher", cluster.address, "--keys", cluster.folder("laptop"), "--json")
    assert shown.returncode == 0, shown.stderr


def test_an_observer_sees_and_does_nothing(cluster: Secured) -> None:
    observer = cluster.folder("screen")
    with Client(cluster.address, keys=observer) as client:
        assert client.status().models
        error = quickly(lambda: client.infer(given()), NotAllowed)
        assert "role observer, may not send requests" in str(error)
        assert isinstance(quickly(lambda: client.infer(given()), NotAllowed), NotAllowed)  # and again
    done = defer("infer", "--random", "--dispatcher", cluster.address, "--keys", observer)
    assert done.returncode == 77
    assert "may not send requests" in done.stderr
    done = defer("undeploy", MODEL, "--dispatcher", cluster.address, "--keys", observer)
    assert done.returncode == 77
    assert "may not take a model down (`defer undeploy`)" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_key_is_refused_on_both_screens(cluster: Secured) -> None:
    stranger = cluster.newcomer("stranger", "client")
    done = defer("status", "--dispatcher", cluster.address, "--keys", stranger)
    assert done.returncode == 77
    assert "refused the key of 'stranger'" in done.stderr
    assert "defer keys authorise" in done.stderr
    with Client(cluster.address, keys=stranger) as client:
        quickly(client.models, Unauthorised)
        cluster.let_in("stranger")
        assert client.models()  # without a restart of either
        assert client.infer(given())


def test_a_key_that_is_revoked_is_cut_off(cluster: Secured) -> None:
    guest = cluster.newcomer("guest", "client")
    cluster.let_in("guest")
    with Client(cluster.address, keys=guest) as client:
        assert client.infer(given())
        keys.revoke(cluster.folder("main"), "guest")
        time.sleep(0.6)
        error = quickly(lambda: client.infer(given()), (NotAllowed, Unauthorised))  # type: ignore[arg-type]
        assert "authorised" in str(error)
        quickly(client.models, Unauthorised)


def test_a_dispatcher_with_another_key_is_not_believed(cluster: Secured) -> None:
    """The client knows another key as the dispatcher's: this one may be an impostor."""
    deceived = cluster.newcomer("deceived", "client", knows=())
    keys.make(cluster.folder("elsewhere"), "elsewhere", "dispatcher")
    keys.authorise(deceived, public(cluster.root, "elsewhere"))
    cluster.let_in("deceived")
    done = defer("status", "--dispatcher", cluster.address, "--keys", deceived)
    assert done.returncode == 77
    assert "does not have the key that is known here" in done.stderr


def test_without_keys_nobody_talks_to_it(cluster: Secured) -> None:
    done = defer("status", "--dispatcher", cluster.address)
    assert done.returncode == 77
    assert "demands keys" in done.stderr
    assert "--keys DIR" in done.stderr
    error = quickly(lambda: Client(cluster.address).infer(given()), Unauthorised)
    assert "demands keys" in str(error)


def test_an_agent_obeys_its_dispatcher_alone(cluster: Secured) -> None:
    for name, role in (("laptop", "client"), ("b", "agent"), ("screen", "observer")):
        security = choose(cluster.folder(name), roles=(role,), hosts=[])  # type: ignore[arg-type]
        assert order(cluster.agents[0].address, security, "a").startswith("the other side refused"), name
    usurper = cluster.newcomer("usurper", "dispatcher", knows=("a",))
    security = choose(usurper, roles=("dispatcher",), hosts=[])
    assert "not authorised there" in order(cluster.agents[0].address, security, "a")


def order(address: str, security: Security, to: str) -> str:
    """Gives an agent an order; why it did not even listen."""
    context = new_context(security)
    try:
        dealer = open_socket(context, zmq.DEALER, purpose="control")
        monitor = Monitor(dealer)
        try:
            dial(dealer, f"tcp://{address}", to)
            deadline = time.monotonic() + SECONDS
            while time.monotonic() < deadline:
                if monitor.socket.poll(100):
                    monitor.events()
                    if monitor.refusal is not None:
                        return str(monitor.refusal)
                if dealer.poll(0, zmq.POLLOUT):
                    dealer.send(encode_control(Hello(1, 1, 1, "@dispatcher", "dispatcher")))
                    dealer.send(encode_control(StatusRequest(2)))
                if dealer.poll(0):
                    return "it answered"
            return "nothing happened"
        finally:
            monitor.close()
            dealer.close(0)
    finally:
        context.destroy(0)


def test_an_agent_may_not_register_under_anothers_name(cluster: Secured) -> None:
    security = choose(cluster.folder("b"), roles=("agent",), hosts=[])
    with Admin(cluster.address, security=security) as admin:
        hello = Hello(7, 1, 1, "a", "agent")
        error = quickly(lambda: admin.ask(hello, Hello, timeout=SECONDS), NotAllowed)
        assert "may not register as 'a'" in str(error)


def test_a_probe_on_the_device_sees_the_agents_heart(cluster: Secured) -> None:
    address = cluster.agents[0].address
    command = [sys.executable, "-m", "node_agent.probe", address]
    told = subprocess.run(
        [*command, "--keys", str(cluster.folder("a"))], capture_output=True, text=True, timeout=30
    )
    assert told.returncode == 0, told.stderr
    assert subprocess.run(command, capture_output=True, text=True, timeout=30).returncode == 1


def test_a_serve_that_an_agent_does_not_know_says_so(cluster: Secured) -> None:
    other = cluster.newcomer("intruder", "dispatcher", knows=("a", "b"))
    began = time.monotonic()
    done = defer(
        "serve",
        "--cluster",
        cluster.root / "cluster.toml",
        "--keys",
        other,
        "--state",
        cluster.root / "other",
    )
    assert done.returncode == 77, done.stderr
    assert "agent 'a'" in done.stderr
    assert "refused the key of 'intruder'" in done.stderr
    assert time.monotonic() - began < 3 * SECONDS


def test_refusals_are_logged_and_secrets_are_not(cluster: Secured) -> None:
    noisy = cluster.newcomer("noisy", "client")
    for _ in range(3):
        with Client(cluster.address, keys=noisy) as client:
            quickly(client.models, Unauthorised)
    told = cluster.logs()
    assert any(line[:4].isdigit() and "Refused a peer" in line for line in told.splitlines()), "with its time"
    assert told.count(next(each.public for each in keys.listing(noisy) if each.name == "noisy")) == 1, told
    for folder in (cluster.root / "keys").iterdir():
        for path in (folder / "secret").glob("*.toml"):
            secret = path.read_text().split('secret = "')[1].split('"')[0]
            assert secret not in told


def test_a_copied_folder_that_others_can_read_is_refused(cluster: Secured, tmp_path: Path) -> None:
    shutil.copytree(cluster.folder("laptop"), tmp_path / "copy")
    (tmp_path / "copy" / "secret" / "laptop.toml").chmod(0o644)
    done = defer("status", "--dispatcher", cluster.address, "--keys", tmp_path / "copy")
    assert done.returncode == 78
    assert "others may read it" in done.stderr
    assert "chmod 600" in done.stderr


def test_a_hint_is_told_apart_from_what_is_wrong() -> None:
    told: list[str] = []
    sockets = object.__new__(AgentSockets)
    sockets._keys = SimpleNamespace(barred=lambda *_: None)  # type: ignore[assignment]
    sockets._core = SimpleNamespace(barred=lambda _name, why: told.append(why))  # type: ignore[assignment]
    sockets._execute = lambda _todo: None
    sockets._bar("a", UnauthorisedError("It demands keys.", hint="give yours"))
    sockets._bar("a", UnauthorisedError("It demands keys"))
    assert told == ["It demands keys; give yours", "It demands keys"]
