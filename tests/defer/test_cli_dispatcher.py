"""Whom the verbs ask: one rule for all of them, and errors that say which dispatcher was asked and why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from defer.cli import VERBS, group
from defer.cli.dispatcher import DEFAULT_ADDRESS, Asked, explained, whom_to_ask
from defer.errors import (
    DeferError,
    DispatcherUnreachable,
    FileMissing,
    InvalidCluster,
    UnknownModel,
    UsageError,
)
from tests.defer.cli_fixtures import failed, run

ASKING = ("deploy", "undeploy", "rollout", "status", "top", "events", "infer", "bench", "trace", "gateway")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("DEFER_DISPATCHER", "DEFER_CLUSTER", "DEFER_KEYS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def a_cluster(path: Path, dispatcher: str) -> Path:
    path.write_text(f'[dispatcher]\n{dispatcher}\n[[device]]\nname = "a"\naddress = "127.0.0.1:7700"\n')
    return path


def test_without_anything_it_is_the_usual_address(here: Path) -> None:
    asked = whom_to_ask()
    assert asked.address == DEFAULT_ADDRESS
    assert "no cluster.toml in this folder" in asked.why


def test_each_place_goes_before_the_next(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_cluster(here / "cluster.toml", 'listen = "127.0.0.1:7640"')
    assert whom_to_ask() == Asked("127.0.0.1:7640", "is that of cluster.toml in this folder")
    other = a_cluster(here / "other.toml", 'listen = "127.0.0.1:7650"')
    monkeypatch.setenv("DEFER_CLUSTER", str(other))
    assert whom_to_ask() == Asked("127.0.0.1:7650", f"is that of {other}, which DEFER_CLUSTER names")
    assert whom_to_ask("a:1", typed=False) == Asked("a:1", "is from DEFER_DISPATCHER")
    third = a_cluster(here / "third.toml", 'listen = "127.0.0.1:7660"')
    assert whom_to_ask("a:1", str(third), typed=False) == Asked("127.0.0.1:7660", f"is that of {third}")
    assert whom_to_ask("a:1,b:2") == Asked("a:1,b:2")


@pytest.mark.parametrize(
    ("dispatcher", "address"),
    [
        ("", DEFAULT_ADDRESS),
        ('listen = "0.0.0.0:7000"', "127.0.0.1:7000"),
        ('listen = "0.0.0.0:7000"\nadvertise = "192.168.1.2"', "192.168.1.2:7000"),
        ('listen = "[::1]:7000"', "[::1]:7000"),
    ],
)
def test_a_cluster_files_dispatcher_is_asked_where_its_agents_reach_it(
    here: Path, dispatcher: str, address: str
) -> None:
    assert whom_to_ask(cluster=str(a_cluster(here / "c.toml", dispatcher))).address == address


def test_what_cannot_be_asked_says_what_to_do(here: Path) -> None:
    (here / "cluster.toml").write_text("listen = ")
    with pytest.raises(InvalidCluster, match=r"cluster\.toml: not TOML") as broken:
        whom_to_ask()
    assert "--dispatcher HOST:PORT" in broken.value.hint
    a_cluster(here / "cluster.toml", 'listen = "127.0.0.1:0"')
    with pytest.raises(UsageError, match="any port"):
        whom_to_ask()
    with pytest.raises(FileMissing, match=r"gone\.toml"):
        whom_to_ask(cluster="gone.toml")
    with pytest.raises(InvalidCluster, match="--dispatcher: 'here' has no port"):
        whom_to_ask("here")
    with pytest.raises(InvalidCluster, match="DEFER_DISPATCHER: 'here' has no port"):
        whom_to_ask("here", typed=False)


@pytest.mark.parametrize("error", [UnknownModel("no 'm'", hint="served: n"), DispatcherUnreachable("nobody")])
def test_errors_that_may_come_from_asking_another_say_who_was_asked(error: DeferError) -> None:
    with pytest.raises(type(error)) as caught, explained(Asked("a:1", "is from DEFER_DISPATCHER")):
        raise error
    assert caught.value.hint.endswith("a:1 is from DEFER_DISPATCHER")


def test_what_was_typed_and_other_errors_need_no_explanation() -> None:
    with pytest.raises(UnknownModel) as typed, explained(Asked("a:1")):
        raise UnknownModel("no 'm'")
    assert typed.value.hint == ""
    with pytest.raises(FileMissing) as other, explained(Asked("a:1", "is from DEFER_DISPATCHER")):
        raise FileMissing("no such file", hint="check the path")
    assert other.value.hint == "check the path"


def _leaves(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from _leaves(inner, (*path, name))
    else:
        yield path, command


def test_every_verb_that_asks_a_dispatcher_follows_the_rule() -> None:
    found = set()
    for verb in VERBS:
        command = group.get_command(click.Context(group), verb)
        assert command is not None
        for path, leaf in _leaves(command, (verb,)):
            options = {option for param in leaf.params for option in param.opts}
            assert ("--dispatcher" in options) == (path[0] in ASKING), path
            assert "--dispatcher" not in options or "--cluster" in options, path
            found |= {path[0]} if "--dispatcher" in options else set()
    assert found == set(ASKING)


@pytest.mark.integration
def test_an_unreachable_dispatcher_is_named_with_the_reason_why_it_was_asked(here: Path) -> None:
    a_cluster(here / "cluster.toml", 'listen = "nobody.invalid:1"')
    told = run("events", "--insecure").stderr
    assert "cannot resolve nobody.invalid" in told
    assert "nobody.invalid:1 is that of cluster.toml in this folder" in told
    result = run("undeploy", "m", "--dispatcher", "nobody.invalid:1", "--json", "--insecure")
    assert (result.exit_code, result.stdout) == (69, "")
    assert json.loads(result.stderr)["error"]["hint"] == "correct the address, or write it as a number"


def test_two_answers_to_one_question_are_refused(here: Path) -> None:
    told = failed(run("status", "--dispatcher", "a:1", "--cluster", "c.toml"), 2)
    assert "--dispatcher and --cluster exclude each other" in told
