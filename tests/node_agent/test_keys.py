"""Certificates and folders of keys: what is believed, what is refused, what is never shown."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.errors import InsecureListenError, KeyFileError, UnauthorisedError
from node_agent.keys import (
    ALLOWED,
    REVOKED,
    SECRET,
    Certificate,
    Keyring,
    Role,
    new_pair,
    parse_certificate,
    read_certificate,
    write_certificate,
)
from node_agent.security import OPEN, Security, choose, host_of, is_loopback


def pair(name: str, role: Role) -> Certificate:
    return Certificate(name, role, *new_pair(), made="2026-01-02T03:04:05+00:00")


def keep(folder: Path, certificate: Certificate, *, allowed: bool = True, own: bool = False) -> Certificate:
    if own:
        write_certificate(folder / SECRET / f"{certificate.name}.toml", certificate)
    if allowed:
        write_certificate(folder / ALLOWED / f"{certificate.name}.toml", certificate.without_secret())
    return certificate


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "keys"
    made.mkdir()
    return made


def test_a_certificate_reads_back_as_it_was_written(tmp_path: Path) -> None:
    made = pair("edge1", "agent")
    write_certificate(tmp_path / "s" / "edge1.toml", made)
    assert read_certificate(tmp_path / "s" / "edge1.toml", secret=True) == made
    write_certificate(tmp_path / "a" / "edge1.toml", made.without_secret())
    assert read_certificate(tmp_path / "a" / "edge1.toml") == made.without_secret()


def test_a_secret_is_readable_by_its_owner_alone_and_never_shown(tmp_path: Path) -> None:
    made = pair("edge1", "agent")
    before = os.umask(0)
    try:
        write_certificate(tmp_path / "k" / SECRET / "edge1.toml", made)
    finally:
        os.umask(before)
    path = tmp_path / "k" / SECRET / "edge1.toml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert made.secret not in repr(made)
    assert made.secret not in repr(Security(own=made, keys=None))
    assert not list(path.parent.glob(".*"))
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="others may read it") as caught:
        read_certificate(path)
    assert made.secret not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("version = 1", "version = 2"), "version"),
        (('role = "agent"', 'role = "king"'), "role"),
        (('name = "edge1"', 'name = "../edge1"'), "name"),
        (('role = "agent"', 'role = "agent"\ncolour = "red"'), "unknown keys colour"),
        (('public = "', 'public = "!'), "40 characters"),
        (("version = 1", "version 1"), "not TOML"),
        (('role = "agent"', "role = 3"), "string"),
    ],
)
def test_what_is_no_certificate_is_refused_without_showing_it(change: tuple[str, str], words: str) -> None:
    made = pair("edge1", "agent")
    with pytest.raises(KeyFileError, match=words) as caught:
        parse_certificate(made.text().replace(*change), "here.toml")
    assert made.secret not in str(caught.value)
    assert "here.toml" in str(caught.value)


def test_keys_that_do_not_belong_together_are_refused() -> None:
    wrong = replace(pair("edge1", "agent"), public=pair("x", "agent").public)
    with pytest.raises(KeyFileError, match="does not belong"):
        parse_certificate(wrong.text(), "here.toml")


@given(st.text(max_size=300))
def test_any_text_is_a_certificate_or_one_clear_error(text: str) -> None:
    with pytest.raises(KeyFileError, match=r"here\.toml"):
        parse_certificate(text, "here.toml")


@given(st.text(max_size=45))
def test_any_key_is_40_characters_of_z85_or_refused(key: str) -> None:
    text = f"version = 1\nname = 'a'\nrole = 'agent'\npublic = '''{key}'''\n"
    try:
        told = parse_certificate(text, "here.toml")
    except KeyFileError:
        return
    assert len(told.public) == 40


def test_who_is_allowed_follows_the_folder(folder: Path) -> None:
    ring = Keyring(folder)
    assert not ring.allowed.by_key
    edge = keep(folder, pair("edge1", "agent"))
    assert ring.refresh() == ()
    assert ring.allowed.by_key == {edge.public: edge.without_secret()}
    write_certificate(folder / REVOKED / "edge1-x.toml", edge.without_secret())
    ring.refresh()
    assert not ring.allowed.by_key
    (folder / REVOKED / "edge1-x.toml").unlink()
    ring.refresh()
    assert edge.public in ring.allowed.by_key
    (folder / ALLOWED / "edge1.toml").unlink()
    ring.refresh()
    assert not ring.allowed.by_key


def test_a_file_that_cannot_be_read_lets_nobody_in_and_is_told_once(folder: Path) -> None:
    good = keep(folder, pair("good", "client"))
    (folder / ALLOWED / "bad.toml").write_text("version = 1")
    ring = Keyring(folder)
    assert set(ring.allowed.by_key) == {good.public}
    assert len(ring.allowed.problems) == 1
    assert ring.refresh() == ()
    # Where it is not known who was revoked, nobody is let in.
    (folder / REVOKED).mkdir()
    (folder / REVOKED / "bad.toml").write_text("version = 1")
    assert len(ring.refresh()) == 1
    assert not ring.allowed.by_key


def test_a_secret_among_the_allowed_is_not_taken_up(folder: Path) -> None:
    made = pair("edge1", "agent")
    write_certificate(folder / ALLOWED / "edge1.toml", made)
    (folder / ALLOWED / "edge1.toml").chmod(0o644)
    assert not Keyring(folder).allowed.by_key


def test_two_files_of_one_name_count_once(folder: Path) -> None:
    first = keep(folder, pair("edge1", "agent"))
    write_certificate(folder / ALLOWED / "z.toml", pair("edge1", "dispatcher").without_secret())
    ring = Keyring(folder)
    assert set(ring.allowed.by_key) == {first.public}
    assert "twice" in ring.allowed.problems[0]


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("127.9.8.7", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("127.example.org", False),
        ("localhost.example.org", False),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("edge1", False),
    ],
)
def test_what_is_this_machine(host: str, here: bool) -> None:
    assert is_loopback(host) is here


def test_without_keys_only_this_machine_unless_that_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DEFER_KEYS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert choose(None, roles=("agent",), hosts=["127.0.0.1", "localhost"]) == OPEN
    with pytest.raises(InsecureListenError, match=r"10\.0\.0\.5"):
        choose(None, roles=("agent",), hosts=["127.0.0.1", "10.0.0.5"])
    assert choose(None, roles=("agent",), hosts=["10.0.0.5"], insecure=True).insecure
    with pytest.raises(KeyFileError, match="contradict"):
        choose(tmp_path, roles=("agent",), hosts=[], insecure=True)
    assert host_of("tcp://[fe80::1]:7700") == "fe80::1"


def test_the_own_key_is_found_by_role_and_name(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    monkeypatch.delenv("DEFER_KEYS", raising=False)
    edge = keep(folder, pair("edge1", "agent"), own=True)
    with pytest.raises(KeyFileError, match="no secret key of role client"):
        choose(folder, roles=("client",), hosts=[])
    assert choose(folder, roles=("agent",), hosts=[], name="edge1").own == edge
    with pytest.raises(KeyFileError, match="this agent is called 'edge2'"):
        choose(folder, roles=("agent",), hosts=[], name="edge2")
    keep(folder, pair("laptop", "client"), own=True)
    second = keep(folder, pair("tablet", "client"), own=True)
    with pytest.raises(KeyFileError, match="several keys of role client"):
        choose(folder, roles=("client", "observer"), hosts=[])
    chosen = choose(folder / SECRET / "tablet.toml", roles=("client",), hosts=[])
    assert chosen.own == second
    assert chosen.keys is not None
    assert chosen.keys.folder == folder
    with pytest.raises(KeyFileError, match="no folder of keys"):
        choose(tmp_path / "nowhere", roles=("client",), hosts=[])


def test_an_own_key_that_is_revoked_is_not_used(folder: Path) -> None:
    laptop = keep(folder, pair("laptop", "client"), own=True)
    secret = folder / SECRET / "laptop.toml"
    assert choose(folder, roles=("client", "dispatcher"), hosts=[]).own == laptop
    write_certificate(folder / REVOKED / "laptop-1.toml", laptop.without_secret())
    for named in (folder, secret):
        with pytest.raises(KeyFileError, match="'laptop' is revoked in") as told:
            choose(named, roles=("client", "dispatcher"), hosts=[])
        assert "defer keys rotate laptop" in told.value.hint
    cluster = keep(folder, pair("cluster", "dispatcher"), own=True)
    assert choose(folder, roles=("client", "dispatcher"), hosts=[]).own == cluster
    tablet = keep(folder, pair("tablet", "client"), own=True)
    assert choose(folder, roles=("client", "dispatcher"), hosts=[]).own == tablet
    with pytest.raises(KeyFileError, match="no secret key of role agent"):
        choose(folder, roles=("agent",), hosts=[])


def test_the_environment_and_the_default_folder_name_keys(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    laptop = keep(folder, pair("laptop", "client"), own=True)
    monkeypatch.setenv("DEFER_KEYS", str(folder))
    assert choose(None, roles=("client",), hosts=["127.0.0.1"]).own == laptop
    monkeypatch.delenv("DEFER_KEYS")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config" / "defer").mkdir(parents=True)
    folder.rename(tmp_path / "config" / "defer" / "keys")
    assert choose(None, roles=("client",), hosts=["127.0.0.1"]) == OPEN
    assert choose(None, roles=("client",), hosts=["10.0.0.5"]).own == laptop


def test_whom_one_dials_must_be_known(folder: Path) -> None:
    own = keep(folder, pair("laptop", "client"), own=True)
    security = Security(own=own, keys=Keyring(folder))
    assert security.keys is not None
    with pytest.raises(UnauthorisedError, match="No dispatcher's key is known"):
        security.server_key("@dispatcher")
    with pytest.raises(UnauthorisedError, match="No key of agent 'edge1'"):
        security.server_key("edge1")
    edge = keep(folder, pair("edge1", "agent"))
    main = keep(folder, pair("main", "dispatcher"))
    security.keys.refresh()
    assert security.server_key("edge1") == edge.public
    assert security.server_key("@dispatcher 10.0.0.2:7601") == main.public
    keep(folder, pair("other", "dispatcher"))
    security.keys.refresh()
    with pytest.raises(UnauthorisedError, match="Several dispatchers"):
        security.server_key("@dispatcher")
    # A client's key is nobody to dial.
    keep(folder, pair("edge3", "client"))
    security.keys.refresh()
    with pytest.raises(UnauthorisedError, match="No key of agent 'edge3'"):
        security.server_key("edge3")


def test_an_own_key_that_was_revoked_is_a_strangers(folder: Path) -> None:
    own = keep(folder, pair("main", "dispatcher"), own=True)
    security = Security(own=own, keys=Keyring(folder))
    assert security.who(own.public) == own.without_secret()
    write_certificate(folder / REVOKED / "main-x.toml", own.without_secret())
    assert security.keys is not None
    security.keys.refresh()
    assert security.who(own.public) is None
