"""`defer keys`: what lies in the folder afterwards, and what a user reads."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from defer import keys
from defer.cli import group
from defer.errors import DeferError, FileMissing, InvalidKey, OutputExists, UsageError
from node_agent.keys import Keyring


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "keys"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return tmp_path / "other"


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(group, ["keys", *map(str, words)], standalone_mode=False)


def told(*words: str | Path) -> Any:
    result = call(*words, "--json")
    assert result.exception is None, result.exception
    return json.loads(result.stdout)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> set[str]:
    return {each.name for each in Keyring(folder).allowed.by_key.values()}


def test_a_new_key_is_secret_and_let_in_where_it_was_made(folder: Path) -> None:
    made = told("make", "edge1", "--role", "agent", "--keys", folder)
    assert mode(Path(made["secret"])) == 0o600
    assert mode(folder) == mode(folder / "secret") == 0o700
    assert "secret" not in Path(made["certificate"]).read_text()
    assert names(folder) == {"edge1"}
    with pytest.raises(OutputExists, match="already"):
        keys.make(folder, "edge1", "client")
    with pytest.raises(UsageError, match="not a name"):
        keys.make(folder, "../edge1", "client")


def test_a_listing_shows_no_secret(folder: Path, other: Path) -> None:
    for name, role in (("main", "dispatcher"), ("laptop", "client")):
        keys.make(folder, name, role)  # type: ignore[arg-type]
    keys.make(other, "edge1", "agent")
    keys.authorise(folder, other / "allowed" / "edge1.toml")
    keys.revoke(folder, "laptop")
    shown = call("list", "--keys", folder)
    listed = told("list", "--keys", folder)["keys"]
    assert [(each["name"], each["role"], each["state"]) for each in listed] == [
        ("edge1", "agent", "allowed"),
        ("main", "dispatcher", "own"),
        ("laptop", "client", "revoked"),
    ]
    for path in (folder / "secret").iterdir():
        secret = path.read_text().split('secret = "')[1].split('"')[0]
        assert secret not in shown.stdout + json.dumps(listed)
    with pytest.raises(FileMissing, match="no folder"):
        keys.listing(folder / "nowhere")


def test_who_is_authorised_is_let_in_as_the_operator_says(folder: Path, other: Path) -> None:
    keys.make(folder, "main", "dispatcher")
    keys.make(other, "visitor", "dispatcher")
    certificate = other / "allowed" / "visitor.toml"
    made = told("authorise", certificate, "--role", "observer", "--keys", folder)
    assert (made["name"], made["role"]) == ("visitor", "observer")
    allowed = Keyring(folder).allowed.named("visitor")
    assert allowed is not None
    assert allowed.role == "observer"
    with pytest.raises(InvalidKey, match="holds a secret key"):
        keys.authorise(folder, other / "secret" / "visitor.toml")
    with pytest.raises(FileMissing):
        keys.authorise(folder, other / "nothing.toml")
    (other / "broken.toml").write_text("name = 3")
    with pytest.raises(InvalidKey, match="no certificate"):
        keys.authorise(folder, other / "broken.toml")


def test_another_key_of_a_known_name_is_taken_only_when_asked_for(
    folder: Path, other: Path, tmp_path: Path
) -> None:
    keys.make(folder, "main", "dispatcher")
    for home in (other, tmp_path / "third"):
        keys.make(home, "edge1", "agent")
    first, second = other / "allowed" / "edge1.toml", tmp_path / "third" / "allowed" / "edge1.toml"
    keys.authorise(folder, first)
    keys.authorise(folder, first)  # again is no change
    with pytest.raises(UsageError, match="another key here"):
        keys.authorise(folder, second)
    keys.authorise(folder, second, replace=True)
    assert [(each.name, each.state) for each in keys.listing(folder)] == [
        ("edge1", "allowed"),
        ("main", "own"),
        ("edge1", "revoked"),
    ]
    with pytest.raises(UsageError, match="was revoked"):
        keys.authorise(folder, first)
    keys.authorise(folder, first, replace=True)
    now = Keyring(folder).allowed.named("edge1")
    assert now is not None
    assert now.public in first.read_text()


def test_nobody_is_let_in_by_a_folder_that_is_not_there(folder: Path, other: Path, tmp_path: Path) -> None:
    keys.make(other, "edge1", "agent")
    certificate = other / "allowed" / "edge1.toml"
    for wrong, why in (
        (folder / "typo", "there is no folder of keys"),
        (tmp_path, "this is no folder of keys"),
    ):
        with pytest.raises(FileMissing, match=f"{wrong}: {why}") as caught:
            keys.authorise(wrong, certificate)
        assert caught.value.exit_code == 66
        assert f"defer keys make NAME --role ROLE --keys {wrong}" in caught.value.hint
        assert not (wrong / "allowed").exists()
    keys.make(folder, "main", "dispatcher")
    assert f"edge1 is let in as agent by {folder}" in call("authorise", certificate, "--keys", folder).stdout
    assert f"edge1 is let in no more by {folder}" in call("revoke", "edge1", "--keys", folder).stdout


def test_rotating_revokes_the_old_key(folder: Path) -> None:
    keys.make(folder, "main", "dispatcher")
    (before,) = Keyring(folder).allowed.by_key
    told("rotate", "main", "--keys", folder)
    ring = Keyring(folder)
    (after,) = ring.allowed.by_key
    assert after != before
    assert before in ring.allowed.revoked
    (own,) = ring.own()
    assert own.public == after
    assert mode(folder / "secret" / "main.toml") == 0o600
    with pytest.raises(InvalidKey, match="no secret key of 'edge1'"):
        keys.rotate(folder, "edge1")


def test_revoking_outlives_a_copy_that_comes_back(folder: Path, other: Path) -> None:
    keys.make(other, "edge1", "agent")
    certificate = other / "allowed" / "edge1.toml"
    keys.make(folder, "main", "dispatcher")
    keys.authorise(folder, certificate)
    assert told("revoke", "edge1", "--keys", folder)["revoked"][0]["name"] == "edge1"
    assert names(folder) == {"main"}
    (folder / "allowed" / "edge1.toml").write_text(certificate.read_text())
    assert names(folder) == {"main"}
    keys.revoke(folder, "edge1")
    with pytest.raises(UsageError, match="nobody called 'edge1'"):
        keys.revoke(folder, "edge1")


@pytest.mark.parametrize("verb", ["make", "list", "authorise", "rotate", "revoke"])
def test_every_verb_has_help_with_examples(verb: str) -> None:
    shown = call(verb, "--help").output
    assert "Examples:" in shown
    assert f"defer keys {verb}" in shown
    assert "--json" in shown
    assert "--keys" in shown


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeferError, match="cannot be written") as caught:
        keys.make(tmp_path / "file", "main", "dispatcher")
    assert caught.value.exit_code in (74, 78)
