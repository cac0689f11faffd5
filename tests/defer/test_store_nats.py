"""The store on a real nats-server against the one in memory; fencing, large records, servers that are not there."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from defer import errors
from defer.dispatcher import nats_connection
from defer.dispatcher import store as s
from defer.dispatcher.election import Lease
from defer.dispatcher.leadership import Leadership
from defer.dispatcher.nats_link import Fenced, NatsLink
from defer.dispatcher.shared_files import Publisher, fetch
from defer.dispatcher.state_url import parse_state_url
from defer.dispatcher.store_nats import NatsStore
from defer.dispatcher.uploads import Uploads
from node_agent.messages import FileRef
from tests.defer.nats_fixtures import NatsServer, nats_server, needs_nats
from tests.defer.test_dispatcher_store import answer, changes, model, request

pytestmark = [pytest.mark.integration, needs_nats]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with nats_server(tmp_path_factory.mktemp("nats")) as running:
        yield running


@contextmanager
def link(server: NatsServer, name: str) -> Iterator[NatsLink]:
    made = NatsLink(parse_state_url(f"nats://127.0.0.1:{server.port}/{name}"))
    made.start()
    try:
        yield made
    finally:
        made.close()


def lead(link: NatsLink, holder: str = "me") -> None:
    revision, lease = link.run(link.read_lease(), 5)
    link.run(link.write_lease(Lease(lease.term + 1 if lease else 1, holder, "a:1"), revision), 5)


def fresh() -> str:
    return uuid.uuid4().hex


@given(st.lists(st.lists(changes, max_size=4), max_size=6))
@example([[s.AnswerKept(answer(1)), s.AnswersDropped(((1).to_bytes(16),))]])
@example([[s.AnswerKept(answer(1))], [s.AnswersDropped(((2).to_bytes(16), (1).to_bytes(16)))]])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_next_leader_reads_what_the_one_before_wrote(
    server: NatsServer, batches: list[list[s.Change]]
) -> None:
    oracle = s.MemoryStore()
    name = fresh()
    with link(server, name) as first:
        lead(first)
        store = NatsStore(first)
        store.open()
        for batch in batches:
            store.apply(batch)
            oracle.apply(batch)
        store.close()
    with link(server, name) as second:
        lead(second, "you")
        store = NatsStore(second)
        seen, wanted = store.open(), oracle.open()
        assert (seen.last_epoch, dict(seen.epochs)) == (wanted.last_epoch, dict(wanted.epochs))
        assert (seen.models, seen.splits) == (wanted.models, wanted.splits)
        held = {a.request for a in wanted.answers}
        live = {r.infer.request: r for r in wanted.requests if r.infer.request not in held}
        assert {r.infer.request: r for r in seen.requests} == live
        assert {a.request: a for a in seen.answers} == {a.request: a for a in wanted.answers}
        for number in range(1, 13):
            assert store.answer(number.to_bytes(16)) == oracle.answer(number.to_bytes(16))


def test_who_lost_the_lease_writes_nothing_more(server: NatsServer) -> None:
    name = fresh()
    with link(server, name) as old, link(server, name) as new:
        lead(old, "old")
        before = NatsStore(old)
        before.open()
        before.apply([s.ModelKept(model("m", 1)), s.RequestKept(request(1))])
        lead(new, "new")
        after = NatsStore(new)
        assert [each.name for each in after.open().models] == ["m"]
        for change in (
            s.ModelDropped("m"),
            s.AnswerKept(answer(1)),
            s.EpochBegun(99, ("a",)),
            s.ModelKept(model("n", 2)),
        ):
            with pytest.raises(Fenced):
                before.apply([change])
        after.apply([s.EpochBegun(7, ("a",))])
        seen = after.open()
        assert (seen.last_epoch, [each.name for each in seen.models], len(seen.requests)) == (7, ["m"], 1)
        assert seen.answers == ()


def test_renewals_and_writes_do_not_disturb_each_other(server: NatsServer) -> None:
    with link(server, fresh()) as leader:
        lead(leader)
        store = NatsStore(leader)
        store.open()
        for number in range(1, 30):
            store.apply([s.RequestKept(request(number))])
            revision, lease = leader.run(leader.read_lease(), 5)
            assert lease is not None
            leader.run(leader.write_lease(lease, revision), 5)
        leader._last -= 3  # as if answers had been lost on their way
        store.apply([s.RequestKept(request(40))])
        assert len(store.open().requests) == 30


def test_what_is_larger_than_a_message(server: NatsServer) -> None:
    name = fresh()
    large = bytes(range(256)) * 12_000
    with link(server, name) as leader:
        lead(leader)
        store = NatsStore(leader)
        store.open()
        store.apply([s.RequestKept(request(1, large)), s.RequestKept(request(2, large))])
        store.apply([s.AnswerKept(answer(2, large[::-1]))])
        kept = store.answer((2).to_bytes(16))
        assert kept is not None
        assert kept.frames == large[::-1]
        store.close()
        again = NatsStore(leader).open()
        assert [(each.infer.request, each.frames == large) for each in again.requests] == [
            ((1).to_bytes(16), True)
        ]
        store.open()
        store.apply([s.AnswerKept(answer(1)), s.AnswersDropped(((2).to_bytes(16), (1).to_bytes(16)))])
        store.close()
        js = leader.jetstream()
        info = leader.run(js.stream_info(f"DEFER_{name}"), 5)
        assert info.state.bytes < 20_000, "nothing of it is left behind"


def test_a_server_that_restarts(tmp_path: Path) -> None:
    with nats_server(tmp_path) as server, link(server, "t") as leader:
        lead(leader)
        store = NatsStore(leader)
        store.open()
        store.apply([s.RequestKept(request(1))])
        server.stop()
        with pytest.raises(errors.NotReady, match=r"does not answer|cannot be used|takes no record"):
            store.apply([s.RequestKept(request(2))])
        server.start()
        for _ in range(40):
            try:
                store.apply([s.RequestKept(request(2))])
                break
            except errors.NotReady:
                continue
        assert len(store.open().requests) == 2


def test_many_records_are_read_while_the_lease_is_renewed(server: NatsServer) -> None:
    leader = Leadership(parse_state_url(f"nats://127.0.0.1:{server.port}/{fresh()}"), "a:1")
    leader.start()
    try:
        assert leader.wait(20)
        store = NatsStore(leader.link)
        store.open()
        for begin in range(1, 1000, 100):
            store.apply([s.RequestKept(request(number, bytes(600))) for number in range(begin, begin + 100)])
            store.apply([s.AnswerKept(answer(number, bytes(600))) for number in range(begin, begin + 100)])
        for _ in range(3):
            assert len(NatsStore(leader.link).open().answers) == 1000
    finally:
        leader.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl for a certificate")
def test_tls_and_a_user_that_may_do_what_the_documents_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [*command.split(), "-keyout", key, "-out", cert], check=True, capture_output=True, timeout=30
    )
    key.chmod(0o600)
    allowed = 'publish: ["defer.t.>", "$O.DEFER_t_files.>", "$JS.API.>"], subscribe: ["_INBOX.>"]'
    config = f"""
        tls {{ cert_file: "{cert}", key_file: "{key}", ca_file: "{cert}", verify: true }}
        authorization {{ users: [ {{ user: defer, password: pass, permissions: {{ {allowed} }} }} ] }}
    """
    with nats_server(tmp_path / "nats", config) as server:
        here = f"127.0.0.1:{server.port}/t"
        url = f"tls://defer:pass@{here}?ca={cert}&cert={cert}&key={key}"
        made = NatsLink(parse_state_url(url))
        made.start()
        try:
            lead(made)
            store = NatsStore(made)
            store.open()
            store.apply([s.RequestKept(request(1)), s.EpochBegun(3, ("a",)), s.EpochEnded(3)])
            source = tmp_path / "big.bin"
            source.write_bytes(bytes(300_000))
            ref = FileRef(hashlib.sha256(source.read_bytes()).hexdigest(), 300_000)
            publisher = Publisher(made)
            made.run(publisher._put(ref, source), 10)
            uploads = Uploads.open(tmp_path / "state")
            made.run(fetch(made, uploads, ref), 10)
            assert uploads.offsets((ref,)) == (300_000,)
            made.run(publisher._sweep(), 10)
            assert len(store.open().requests) == 1
        finally:
            made.close()
        monkeypatch.setattr(nats_connection, "CONNECT_S", 1.0)
        for wrong, said in (
            (f"nats://defer:pass@{here}", "does not answer"),
            (f"tls://defer:pass@{here}?cert={cert}&key={key}", "(?i)certificate"),
        ):
            with pytest.raises(errors.NotReady, match=said) as told:
                NatsLink(parse_state_url(wrong)).start()
            assert "pass@" not in str(told.value)


def test_credentials_and_servers_that_are_no_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "authorization { user: defer, password: s3cr3t }"
    with nats_server(tmp_path, secret) as server:
        good = NatsLink(parse_state_url(f"nats://defer:s3cr3t@127.0.0.1:{server.port}/t"))
        good.start()
        good.close()
        assert "s3cr3t" not in f"{good.url} {good.url!r}"
        # The server closes the connection; now and then it has been reset before it is looked at.
        for _ in range(20):
            bad = NatsLink(parse_state_url(f"nats://defer:wr0ng@127.0.0.1:{server.port}/t"))
            with pytest.raises(errors.Unauthorised) as told:
                bad.start()
            assert "wr0ng" not in repr(told.value)
    monkeypatch.setattr(nats_connection, "CONNECT_S", 0.5)
    with pytest.raises(errors.NotReady, match="does not answer"):
        NatsLink(parse_state_url(server.url)).start()
