"""The Unix socket beside a loopback port: who takes it, and who does not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
import zmq

from node_agent import lending, unix_sockets
from node_agent.link import bind, dial, new_context, open_socket

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not lending.possible(), reason="needs Linux's abstract sockets and /proc"),
]


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with new_context() as made:
        yield made


def connected_to(socket: zmq.Socket[bytes]) -> str:
    return bytes(socket.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()  # type: ignore[arg-type]


def exchange(context: zmq.Context[zmq.Socket[bytes]], host: str = "127.0.0.1", to: str = "127.0.0.1") -> str:
    """A message there and back over what `bind` and `dial` choose; the endpoint that was dialled."""
    router = open_socket(context, zmq.ROUTER, purpose="data")
    dealer = open_socket(context, zmq.DEALER, purpose="data")
    try:
        port = bind(router, host, 0)
        dial(dealer, f"tcp://{to}:{port}", "box")
        dealer.poll(5_000, zmq.POLLOUT)
        dealer.send(b"hello")
        assert router.poll(5_000)
        identity, said = router.recv_multipart()
        router.send_multipart([identity, said.upper()])
        assert dealer.poll(5_000)
        assert dealer.recv() == b"HELLO"
        return connected_to(dealer)
    finally:
        router.close(0)
        dealer.close(0)


@pytest.mark.parametrize("to", ["127.0.0.1", "localhost"])
def test_within_a_machine_the_unix_socket_is_taken(context: zmq.Context[zmq.Socket[bytes]], to: str) -> None:
    assert exchange(context, to=to).startswith("ipc://@defer-")


def test_nothing_is_taken_where_it_is_switched_off(
    context: zmq.Context[zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(lending.SWITCH, "off")
    assert exchange(context).startswith("tcp://")


def test_a_listener_without_one_is_reached_over_tcp(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    plain = context.socket(zmq.ROUTER)
    try:
        port = plain.bind_to_random_port("tcp://127.0.0.1")
        endpoint = f"tcp://127.0.0.1:{port}"
        assert unix_sockets.instead(endpoint, keys=False) == endpoint
        assert unix_sockets.instead(endpoint, keys=True) == endpoint
    finally:
        plain.close(0)


def test_addresses_of_other_machines_are_never_replaced() -> None:
    for endpoint in ("tcp://192.0.2.1:7700", "tcp://box.example:7700", "tcp://[2001:db8::1]:7700"):
        assert unix_sockets.instead(endpoint, keys=False) == endpoint
    assert unix_sockets.beside("192.0.2.1", 7700) is None


def test_a_name_that_is_taken_leaves_tcp(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    first = open_socket(context, zmq.ROUTER, purpose="data")
    second = open_socket(context, zmq.ROUTER, purpose="data")
    try:
        port = bind(first, "127.0.0.1", 0)
        name = unix_sockets.beside("127.0.0.1", port)
        assert name is not None
        with pytest.raises(zmq.ZMQError):
            second.bind(name)
    finally:
        first.close(0)
        second.close(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_listener_of_another_user_is_not_taken() -> None:
    """Anybody may take a name; without keys only a process of the same user is believed."""
    port = 1  # nobody of ours listens there
    endpoint = unix_sockets.beside("127.0.0.1", port)
    assert endpoint is not None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("\0" + endpoint.removeprefix("ipc://@"))
        # The credentials of whoever listens count.
        code = (
            "import os, socket, sys; os.setuid(65534); s = socket.socket(fileno=int(sys.argv[1])); s.listen()"
        )
        code += "; print('listens', flush=True); sys.stdin.read()"
        command = [sys.executable, "-c", code, str(listener.fileno())]
        with subprocess.Popen(
            command, pass_fds=[listener.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"listens\n"
            assert unix_sockets.instead(f"tcp://127.0.0.1:{port}", keys=False) == f"tcp://127.0.0.1:{port}"
            assert unix_sockets.instead(f"tcp://127.0.0.1:{port}", keys=True) == endpoint
            other.communicate(timeout=10)
