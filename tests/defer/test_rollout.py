"""Versions of a model: what its name stands for, exact shares, and every way there and back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import models
from defer import api, errors
from defer.admin import Admin
from defer.api import ModelInfo
from defer.cli import group
from defer.cli.infer import choose_model
from defer.cli.values import parse_share
from defer.client import Client
from defer.dispatcher import events as e
from defer.dispatcher import rollout as r
from defer.dispatcher.bringup import Order
from defer.dispatcher.core import DispatcherCore
from defer.dispatcher.daemon import Daemon
from defer.documents.cluster import loads_cluster
from defer.local_agents import local_agents
from node_agent.messages import Done, Infer, TensorHeader, TensorSpec

SERVED = ("m@1", "m@2", "m@3", "n")


# ---------------------------------------------------------------------------------------------------------- values


def test_a_version_is_tried_promoted_and_rolled_back() -> None:
    split = r.Split("m", "m@1")
    tried = r.canary(split, "m@2", 0.25, SERVED)
    assert tried == r.Split("m", "m@1", "m@2", 0.25)
    assert r.rollback(tried, SERVED) == split
    done = r.promote(tried, "", SERVED)
    assert done == r.Split("m", "m@2", before="m@1")
    back = r.rollback(done, SERVED)
    assert back == r.Split("m", "m@1"), "what was rolled back is nothing to go back to"
    with pytest.raises(errors.UsageError, match="no version before m@1") as caught:
        r.rollback(back, SERVED)
    assert "defer rollout promote m VERSION" in caught.value.hint
    assert r.promote(back, "m@2", SERVED) == r.Split("m", "m@2", before="m@1")
    assert r.promote(split, "m@3", SERVED) == r.Split("m", "m@3", before="m@1")


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda: r.canary(r.Split("m", "m@1"), "m@1", 0.1, SERVED), "m@1 is what m stands for already"),
        (lambda: r.canary(r.Split("m", "m@1"), "m@2", 1.5, SERVED), "not between 0 and 1"),
        (lambda: r.promote(r.Split("m", "m@1"), "", SERVED), "no version of m is being tried"),
        (lambda: r.promote(r.Split("m", "m@1"), "m@1", SERVED), "already"),
        (lambda: r.rollback(r.Split("m", "m@1"), SERVED), "no version before m@1"),
        (lambda: r.without(r.Split("m", "m@1", before="m@2"), "m@1"), "requests for m take m@1"),
        (lambda: r.without(r.Split("m", "m@1"), "m@1", SERVED), "requests for m take m@1"),
        (lambda: r.canary(r.Split("m", ""), "m@2", 0.1, SERVED), "requests for m take no version yet"),
        (lambda: r.canary(r.Split("m", "m@1"), "m@2", float("nan"), SERVED), "not between 0 and 1"),
        (lambda: r.rollback(r.Split("m", ""), SERVED), "requests for m take no version yet"),
        (lambda: r.versioned("a@b", "2"), "a model cannot be called 'a@b'"),
        (lambda: r.versioned("a", " 2"), "a version cannot be called ' 2'"),
        (lambda: r.versioned("", "2"), "a model cannot be called ''"),
        (lambda: r.versioned("stats", ""), "a model cannot be called 'stats': GET /v2/models/stats"),
        (lambda: r.check_name("stats@2"), "a model cannot be called 'stats': GET /v2/models/stats"),
        (lambda: r.check_name("m@"), "'m@' names no version"),
        (lambda: r.check_name("m@1@2"), "a version cannot be called '1@2'"),
    ],
)
def test_what_cannot_be_done_is_said(act: Callable[[], object], says: str) -> None:
    with pytest.raises(errors.UsageError, match=says):
        act()


def test_a_version_that_is_not_there() -> None:
    for act in (
        lambda: r.canary(r.Split("m", "m@1"), "m@9", 0.1, SERVED),
        lambda: r.promote(r.Split("m", "m@1"), "m@9", SERVED),
        lambda: r.rollback(r.Split("m", "m@1", before="m@9"), SERVED),
    ):
        with pytest.raises(errors.UnknownModel, match="versions of m: m@1, m@2, m@3"):
            act()


def test_versions_of_one_name_are_one_model() -> None:
    inputs = (TensorSpec("x", "uint8", (2,)),)
    versions = [ModelInfo(f"m@{n}", "ready", inputs=inputs, version_of="m") for n in (1, 2)]
    alone = ModelInfo("m", "ready", inputs=inputs, stable="m@1")
    assert choose_model((alone, *versions), "") == alone
    assert choose_model((alone, *versions), "m@2") == versions[1]
    with pytest.raises(errors.UnknownModel, match="several models are served: m, n"):
        choose_model((alone, ModelInfo("n", "ready", inputs=inputs)), "")


def test_names() -> None:
    assert (r.versioned("m", ""), r.versioned("m", "2")) == ("m", "m@2")
    assert (r.named("m", "2"), r.named("m", "m@2"), r.named("m", "m")) == ("m@2", "m@2", "m")
    assert r.without(r.Split("m", "m@1"), "m@1") is None
    assert r.without(r.Split("m", "m@1"), "m@1", ("m@1", "n@2", "mm")) is None
    assert r.without(r.Split("m", "m@1", "m@2", 0.5, "m@3"), "m@2") == r.Split("m", "m@1", before="m@3")
    assert r.without(r.Split("m", "m@1", "m@2", 0.5, "m@3"), "m@3") == r.Split("m", "m@1", "m@2", 0.5)


ODD_NAMES = ["../x", "a b", "a/b", "x" * 64, ".x", "-x", "\x1b[31mvil\nx", "a\u202eb", "\ud800", "@", "@1"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_models_and_versions_are_called_as_devices_are(name: str) -> None:
    for check in (r.check_name, lambda odd: r.check_name(f"m@{odd}")):
        with pytest.raises(errors.UsageError) as caught:
            check(name)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 120
    for good in ("tiny_chain", "resnet50-v1.5", "7b", "m@2.0-rc1", "x" * 63, "m@stats", "stats2", "Stats"):
        r.check_name(good)


def test_shares_for_people() -> None:
    assert [r.show_share(share) for share in (1.0, 0.1, 1 - 0.1, 0.001, 0.0)] == [
        "all requests",
        "10% of the requests",
        "90% of the requests",
        "0.1% of the requests",
        "0% of the requests",
    ]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("10%", 0.1),
        ("0.1", 0.1),
        (" 7 % ", 0.07),
        ("0.7%", 0.007),
        ("100%", 1.0),
        ("1", 1.0),
        ("0", 0.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("1e-3", 0.001),
    ],
)
def test_a_share_is_a_part_or_a_percentage(text: str, share: float) -> None:
    assert parse_share(text) == share


@pytest.mark.parametrize(
    "text",
    ["nan", "inf", "-inf", "-0.1", "1.1", "10", "101%", "%", "", "0x1", "1_0%", "1e99", "٣", "9" * 5000],
)
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(errors.UsageError, match="is not a share of the requests") as caught:
        parse_share(text)
    assert "10% or 0.1" in caught.value.hint


@given(st.integers(1, 100), st.integers(1, 400))
def test_shares_come_out_exactly(percent: int, count: int) -> None:
    splits = r.Splits()
    splits.put(r.Split("m", "m@1", "m@2", percent / 100))
    taken = [splits.choose("m", lambda _: True) for _ in range(count)]
    assert taken.count("m@2") == count * percent // 100


def test_a_canary_that_cannot_take_a_request_leaves_it_to_the_stable_version_and_gets_the_next() -> None:
    splits = r.Splits()
    splits.put(r.Split("m", "m@1", "m@2", 0.5))
    able = iter([False, False, True, True])
    assert [splits.choose("m", lambda _: next(able)) for _ in range(6)] == ["m@1"] * 3 + ["m@2", "m@1", "m@2"]
    splits.put(r.Split("m", "m@1", "m@2", 0.0))
    assert {splits.choose("m", lambda _: True) for _ in range(50)} == {"m@1"}
    assert splits.choose("m@2", lambda _: True) == "m@2"
    assert (splits.only({"m@1", "m@2"}), splits.only({"m@1", "n"}), splits.only({"n"})) == ("m", "", "")
    splits.drop("m")
    assert splits.choose("m", lambda _: True) == "m"


# ------------------------------------------------------------------------------------------------------ data path


def core_with(*names: str) -> DispatcherCore:
    core = DispatcherCore()
    for epoch, name in enumerate(names, 1):
        inputs = (TensorSpec("x", "uint8", (2 if name != "m@3" else 3,)),)
        route = e.Route(name, epoch, inputs, (TensorSpec("y", "uint8", (2,)),), "L", 1, ("a",))
        core.handle(e.RouteLoaded(route), 0)
        core.handle(e.RouteReady(epoch), 0)
    return core


def took(core: DispatcherCore, count: int, model: str = "m") -> list[str]:
    header = TensorHeader("x", "uint8", (2,), "raw", 2)
    models = []
    for _ in range(count):
        number = len(core.requests).to_bytes(16)
        assert core.handle(e.InferArrived(b"c", Infer(number, model, -1, (header,)), (b"xx",)), 0) == []
        *_, request = core.requests.values()
        models.append(core.routes[request.epoch].route.model)
    return models


def test_requests_without_a_version_are_split() -> None:
    core = core_with("m@1", "m@2")
    core.handle(e.SplitSet(r.Split("m", "m@1", "m@2", 0.25)), 0)
    assert took(core, 8) == ["m@1", "m@1", "m@1", "m@2"] * 2
    assert took(core, 4, model="") == ["m@1", "m@1", "m@1", "m@2"]
    assert took(core, 2, model="m@2") == ["m@2", "m@2"]
    core.handle(e.DeviceLost("a", "gone"), 0)
    core.handle(e.SplitForgotten("m"), 0)
    header = TensorHeader("x", "uint8", (2,), "raw", 2)
    (said,) = core.handle(e.InferArrived(b"c", Infer(b"9" * 16, "m", -1, (header,)), (b"xx",)), 0)
    assert isinstance(said, e.Reject)
    assert said.rejection.code == "unknown-model"


def test_a_name_that_nobody_serves_is_told_escaped_and_short() -> None:
    core = core_with("m@1")
    header = TensorHeader("x", "uint8", (2,), "raw", 2)
    infer = Infer(b"9" * 16, "\x1b[31mvil\n2026 error: x" * 9999, -1, (header,))
    (said,) = core.handle(e.InferArrived(b"c", infer, (b"xx",)), 0)
    assert isinstance(said, e.Reject)
    assert said.rejection.message.isprintable()
    assert len(said.rejection.message) < 200
    assert said.rejection.message.endswith("; deployed: m@1")


def test_a_version_with_another_signature_gets_no_request_that_it_cannot_take() -> None:
    core = core_with("m@1", "m@3")
    core.handle(e.SplitSet(r.Split("m", "m@1", "m@3", 1.0)), 0)
    assert took(core, 3) == ["m@1"] * 3


# -------------------------------------------------------------------------------------------------- a real cluster


def defer(*words: object) -> Any:
    return CliRunner().invoke(group, [str(word) for word in words], standalone_mode=False)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with local_agents(["a"], tmp_path) as (agent,):
        text = f'[dispatcher]\nlisten = "127.0.0.1:0"\n[[device]]\nname = "a"\naddress = "{agent.address}"'
        with Daemon(loads_cluster(text), tmp_path / "state") as running:
            running.connect(20)
            yield running


@pytest.mark.integration
def test_two_versions_on_a_cluster(daemon: Daemon, tmp_path: Path) -> None:
    name, files, sessions = "tiny_chain", {}, {}
    for version in ("1", "2"):
        files[version] = models.save(name, tmp_path / f"v{version}.onnx", seed=int(version))
        sessions[version] = onnxruntime.InferenceSession(
            str(files[version]), providers=["CPUExecutionProvider"]
        )
    inputs = models.example_inputs(name, seed=7)
    wanted = {version: session.run(None, inputs)[0] for version, session in sessions.items()}
    address = str(daemon.address)

    def which(client: Client, model: str = "m") -> str:
        (got,) = client.infer(inputs, model=model).values()
        (found,) = (v for v, array in wanted.items() if np.allclose(got, array, rtol=1e-4, atol=1e-5))
        return found

    first = Order("m@1", files["1"], objective="throughput")
    daemon.deployments.bring_up(first, lambda _what, _fraction: None)
    more = ("--version", "2", "--canary", "0.25", "--json", "--dispatcher", address)
    deploy = defer("deploy", files["2"], "--name", "m", *more)
    assert deploy.exit_code == 0, deploy.exception
    made = json.loads(deploy.stdout)
    assert (made["model"]["version_of"], made["plan"]["objective"]) == ("m", "throughput")
    with Client(address, timeout=60) as client:

        def takes(count: int, versions: list[str]) -> None:
            """On a busy machine a device may be taken for lost, and its version's requests take the other meanwhile.

            After that the order of the versions is the same, but may begin elsewhere.
            """
            deadline = time.monotonic() + 60
            orders = [versions[begin:] + versions[:begin] for begin in range(count)]
            while (seen := [which(client) for _ in range(count)]) not in orders:
                assert time.monotonic() < deadline, seen

        assert [(info.name, info.version_of) for info in client.models()] == [
            ("m", ""),
            ("m@1", "m"),
            ("m@2", "m"),
        ]
        takes(8, ["1", "1", "1", "2"] * 2)
        assert which(client, "") == "1", "versions of one model need no name"
        assert (which(client, "m@1"), which(client, "m@2")) == ("1", "2")
        told = json.loads(defer("rollout", "promote", "m", "--dispatcher", address, "--json").output)
        assert (told["stable"], told["before"], told["versions"]) == ("m@2", "m@1", ["m@1", "m@2"])
        takes(4, ["2"] * 4)
        refused = defer("undeploy", "m@2", "--dispatcher", address)
        assert isinstance(refused.exception, errors.UsageError)
        hidden = defer("deploy", files["1"], "--name", "m", "--dispatcher", address)
        assert isinstance(hidden.exception, errors.UsageError)
        shown = defer("rollout", "rollback", "m", "--dispatcher", address)
        assert "m@1                      all requests" in shown.output
        takes(4, ["1"] * 4)
        again = defer("rollout", "rollback", "m", "--dispatcher", address)
        assert isinstance(again.exception, errors.UsageError), "it does not lead to what was rejected"
        assert defer("rollout", "canary", "m", "2", "--share", "0.5", "--dispatcher", address).exit_code == 0
        takes(4, ["1", "2", "1", "2"])
        for words in (
            ("infer", "--random"),
            ("trace", "--requests", "4"),
            ("bench", "--requests", "4", "--singles", "4", "--warm-up", "0"),
        ):
            unnamed = defer(*words, "--dispatcher", address, "--json")
            assert unnamed.exit_code == 0, unnamed.exception
            assert json.loads(unnamed.stdout)["model"] == "m"
        every = json.loads(defer("rollout", "show", "--dispatcher", address, "--json").stdout)
        assert [each["name"] for each in every["models"]] == ["m"]
        assert "m@2 " in defer("rollout", "show", "--dispatcher", address).stdout
        assert isinstance(
            defer("rollout", "show", "n", "--dispatcher", address).exception, errors.UnknownModel
        )
        assert defer("undeploy", "m", "--dispatcher", address).exit_code == 0
        assert client.models() == ()


@pytest.mark.integration
def test_a_canary_of_nothing_is_refused_before_anything_is_loaded(daemon: Daemon, tmp_path: Path) -> None:
    file, address = models.save("tiny_chain", tmp_path / "m.onnx"), str(daemon.address)
    words = ("deploy", file, "--name", "m", "--version", "1", "--dispatcher", address)
    refused = defer(*words, "--canary", "0.5")
    assert isinstance(refused.exception, errors.UsageError)
    assert "nothing serves m yet" in str(refused.exception)
    assert (daemon.deployments.orders, daemon.deployments.served) == ({}, {})
    assert defer(*words).exit_code == 0
    (before,) = daemon.deployments.served
    again = defer(*words, "--canary", "0.5")
    assert "requests for m take m@1 already" in str(again.exception)
    assert list(daemon.deployments.served) == [before]
    told = defer("deploy", file, "--name", "m", "--version", "2", "--canary", "50%", "--dispatcher", address)
    assert told.exit_code == 0, told.exception
    assert daemon.deployments.rollouts.split("m") == r.Split("m", "m@1", "m@2", 0.5)


@pytest.mark.integration
def test_a_name_alone_takes_every_version_down(daemon: Daemon, tmp_path: Path) -> None:
    """Also where nothing was decided about the versions, and where the one without a version has gone."""
    file, address = models.save("tiny_chain", tmp_path / "m.onnx"), str(daemon.address)

    def ask(*words: object) -> Any:
        told = defer(*words, "--dispatcher", address)
        assert told.exit_code == 0, told.exception
        return told.output

    for gone in ((), ("m@",)):
        ask("deploy", file, "--name", "m", "--standby", "none")
        ask("deploy", file, "--name", "m", "--version", "1", "--standby", "none")
        assert "m                        all requests\nm@1                      loaded" in ask(
            "rollout", "show", "m"
        )
        for name in gone:
            ask("undeploy", name)
            assert ask("rollout", "show") == "m@1                      loaded\n"
        ask("undeploy", "m")
        assert (daemon.deployments.orders, daemon.deployments.served) == ({}, {})
    again = defer("undeploy", "m", "--dispatcher", address)
    assert "no model 'm' is served; served: none" in str(again.exception)


@pytest.mark.integration
def test_names_and_shapes_are_checked_whoever_sends_them(daemon: Daemon) -> None:
    with Admin(str(daemon.address)) as admin:
        for name in ODD_NAMES:
            if name == "\ud800":  # no UTF-8, and so no message
                continue
            for order in (api.Deploy(0, name, ()), api.Deploy(0, f"m@{name}", ())):
                with pytest.raises(errors.UsageError, match=r"cannot be called|names no version"):
                    admin.ask(order, api.Deployed, timeout=20)
            for question in (api.Undeploy(0, name), api.Roll(0, name)):
                with pytest.raises(errors.UnknownModel) as caught:
                    admin.ask(question, api.Rolled, timeout=20)
                assert str(caught.value).isprintable()
        for shape in ((1, 2**63), (2**31 - 1, 2**31 - 1), (0,), (-1,)):
            with pytest.raises(errors.UsageError, match="cannot have the shape"):
                admin.ask(api.Deploy(0, "m", (), shapes={"x": shape}), api.Deployed, timeout=20)
        with pytest.raises(errors.UsageError, match="not between 0 and 1"):
            admin.ask(api.Deploy(0, "m", (), sample=float("nan")), api.Deployed, timeout=20)
        with pytest.raises(errors.UsageError, match="cannot have nan s to end"):
            admin.ask(api.Undeploy(0, "m", float("nan")), Done, timeout=20)
        told = admin.ask(api.GetEvents(0), api.Events, timeout=20).events
    assert all(event.text.isprintable() for event in told)
    assert not {"deploying", "deploy-failed"} & {event.kind for event in told}
