"""Keys that change while a cluster runs, and agents behind NAT: a dispatcher of this process, agents as others."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

import models
import partitioner
from benchmarks.ports import free_ports
from defer import keys
from defer.agents import AgentPool
from defer.client import Client
from defer.dispatcher.bringup import Order
from defer.dispatcher.daemon import Daemon
from defer.documents.cluster import Cluster, loads_cluster
from defer.documents.plan import Plan
from defer.errors import DeferError, Unauthorised
from defer.hops import DISPATCHER
from defer.link_probe import probe_responder
from defer.local_agents import local_agents
from defer.planning import make_plan, parse_placement
from defer.profiling import _measure_links
from node_agent.keys import Role
from node_agent.security import choose

pytestmark = pytest.mark.integration

MODEL = "tiny_residual"
PATIENCE_S = 30.0
PEOPLE: list[tuple[str, Role]] = [
    ("main", "dispatcher"),
    ("a", "agent"),
    ("n", "agent"),
    ("laptop", "client"),
]


def public(root: Path, name: str) -> Path:
    return root / name / "allowed" / f"{name}.toml"


def until(wanted: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not wanted():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Folders of keys of everybody, who all know each other; but nobody knows agent `n`."""
    for name, role in PEOPLE:
        keys.make(tmp_path / name, name, role)
    for name, _ in PEOPLE:
        for other, _ in PEOPLE:
            if other not in (name, "n"):
                keys.authorise(tmp_path / name, public(tmp_path, other))
    return tmp_path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.save(MODEL, tmp_path / f"{MODEL}.onnx")


def halves(model: Path, cluster: Cluster) -> Plan:
    chain = partitioner.analyze(model)
    half, whole = len(chain.blocks) // 2, len(chain.blocks)
    return make_plan(chain, cluster, placement=parse_placement(f"a=0:{half},n={half}:", cluster, whole))


def infer(daemon: Daemon, root: Path) -> bool:
    with Client(str(daemon.address), keys=root / "laptop", timeout=PATIENCE_S) as client:
        return bool(client.infer(models.example_inputs(MODEL, seed=1)))


def test_an_agent_behind_nat_is_let_in_when_it_is_authorised(root: Path, model: Path) -> None:
    port = free_ports(3)
    cluster = loads_cluster(
        f"""
        [dispatcher]
        listen = "127.0.0.1:{port}"
        [[device]]
        name = "a"
        address = "127.0.0.1:{(other := free_ports(3))}"
        [[device]]
        name = "n"
        dials = true
        """
    )
    security = choose(root / "main", roles=("dispatcher",), hosts=[])
    arguments = {
        "a": ["--keys", str(root / "a"), "--listen", f"127.0.0.1:{other}"],
        "n": ["--keys", str(root / "n"), "--dial", f"tcp://127.0.0.1:{port}"],
    }
    with Daemon(cluster, root / "state", security=security) as daemon, ExitStack() as stack:
        stack.enter_context(local_agents(("a", "n"), root / "agents", arguments=arguments))
        until(lambda: "refused the key of 'n'" in (root / "agents" / "n.log").read_text())
        for name in ("main", "a"):
            keys.authorise(root / name, public(root, "n"))
        daemon.connect(PATIENCE_S)
        daemon.deployments.bring_up(
            Order(MODEL, model, halves(model, cluster)), lambda _what, _fraction: None
        )
        assert infer(daemon, root)


def test_agents_that_are_revoked_or_rotated_while_they_run(root: Path, model: Path) -> None:
    for name in ("main", "a"):
        keys.authorise(root / name, public(root, "n"))
    ports = {"a": free_ports(3), "n": free_ports(3)}
    listens = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    text = '[dispatcher]\nlisten = "127.0.0.1:0"\n'
    text += "".join(f'[[device]]\nname = "{name}"\naddress = "{at}"\n' for name, at in listens.items())
    cluster = loads_cluster(text)
    arguments = {name: ["--keys", str(root / name), "--listen", at] for name, at in listens.items()}
    security = choose(root / "main", roles=("dispatcher",), hosts=[])

    def state(daemon: Daemon, name: str) -> str:
        known = daemon.pool.liveness(name)
        return known.state if known is not None else ""

    with Daemon(cluster, root / "state", security=security) as daemon, ExitStack() as others:
        others.enter_context(local_agents(("a",), root / "agents", arguments=arguments))
        first = others.enter_context(ExitStack())
        first.enter_context(local_agents(("n",), root / "agents", arguments=arguments))
        daemon.connect(PATIENCE_S)
        with probe_responder("127.0.0.1", security) as here:
            assert (
                len(_measure_links(daemon.pool, cluster, here, None)) == 6
            )  # also between agents, with keys
        daemon.deployments.bring_up(
            Order(MODEL, model, halves(model, cluster)), lambda _what, _fraction: None
        )
        assert infer(daemon, root)
        keys.revoke(root / "main", "n")
        until(lambda: state(daemon, "n") == "lost")
        until(lambda: any("its key was revoked" in each.text for each in daemon.log.since(0)))
        stranger = pytest.raises(Unauthorised, match="No key of agent 'n'")
        with AgentPool(DISPATCHER, security=security) as pool, stranger:
            pool.connect("n", f"tcp://{listens['n']}")
        keys.authorise(root / "main", public(root, "n"), replace=True)
        until(lambda: state(daemon, "n") == "alive")
        until(lambda: infer_or_not(daemon, root))
        # A new pair: the agent has it when it is started again, and whoever dials it follows.
        keys.rotate(root / "n", "n")
        for name in ("main", "a"):
            keys.authorise(root / name, public(root, "n"), replace=True)
        until(lambda: state(daemon, "n") == "lost")
        first.close()
        others.enter_context(local_agents(("n",), root / "agents", arguments=arguments))
        until(lambda: state(daemon, "n") == "alive")
        until(lambda: infer_or_not(daemon, root))


def infer_or_not(daemon: Daemon, root: Path) -> bool:
    try:
        return infer(daemon, root)
    except DeferError:
        return False
