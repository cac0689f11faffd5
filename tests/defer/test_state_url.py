"""URLs of shared states: what they say, what is refused, and that no secret is ever shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defer import errors
from defer.dispatcher.state_url import is_state_url, parse_state_url


def test_what_a_url_says(tmp_path: Path) -> None:
    creds, ca = tmp_path / "a.creds", tmp_path / "ca.pem"
    for path in (creds, ca):
        path.write_text("x")
        path.chmod(0o600)
    url = parse_state_url(f"tls://n1,n2:4223,[::1]/edge-1?creds={creds}&ca={ca}&lease=3s&files=1GiB")
    assert [str(each) for each in url.servers] == ["n1:4222", "n2:4223", "[::1]:4222"]
    assert (url.name, url.encrypted, url.replicas, url.lease_s, url.files_bytes) == (
        "edge-1",
        True,
        3,
        3.0,
        1 << 30,
    )
    assert (url.creds, url.ca) == (creds, ca)
    assert url.urls() == ["tls://n1:4222", "tls://n2:4223", "tls://[::1]:4222"]
    plain = parse_state_url("nats://user:p%40ss@localhost/x")
    assert (plain.user, plain.password, plain.replicas) == ("user", "p@ss", 1)
    assert is_state_url("nats://a/b")
    assert not is_state_url("/var/lib/defer")


@given(st.text("abcdefgh123", min_size=8))
def test_a_password_is_never_shown(password: str) -> None:
    url = parse_state_url(f"nats://user:{password}@localhost:4222/name")
    assert password not in str(url) + repr(url)
    for broken in ("", "/a b", "/name?lease=1h", "/name?oops=1", "/name?replicas=2"):
        with pytest.raises(errors.DeferError) as told:
            parse_state_url(f"nats://user:{password}@localhost:4222{broken}")
        assert password not in f"{told.value} {told.value.hint} {told.value.where}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("redis://a/b", "unknown"),
        ("nats://a:4222", "ends with its name"),
        ("nats://a:b:c/x", "port"),
        ("nats://a/x?cert=/no/such", "no file"),
        ("nats://a/x?lease=1", "unit"),
        ("nats://[/x", "no URL"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(errors.DeferError, match=said):
        parse_state_url(text)


def test_secrets_that_others_may_read_are_refused(tmp_path: Path) -> None:
    creds = tmp_path / "a.creds"
    creds.write_text("x")
    creds.chmod(0o644)
    with pytest.raises(errors.PermissionDenied, match="others may read"):
        parse_state_url(f"nats://a/x?creds={creds}")
    with pytest.raises(errors.UsageError, match="needs its key"):
        parse_state_url(f"nats://a/x?cert={creds}")
    with pytest.raises(errors.InvalidKey, match="cannot be used"):
        parse_state_url(f"tls://a/x?ca={creds}").tls()


def test_beyond_this_machine_it_is_encrypted_or_said_not_to_be() -> None:
    parse_state_url("nats://127.0.0.1/x").check_exposure(insecure=False)
    parse_state_url("tls://n1/x").check_exposure(insecure=False)
    far = parse_state_url("nats://n1/x")
    far.check_exposure(insecure=True)
    with pytest.raises(errors.PermissionDenied, match="n1:4222"):
        far.check_exposure(insecure=False)
