"""Large bodies on a connection: in pieces, one after the other, given up, refused, encrypted."""

from __future__ import annotations

import gc
import gzip
import json
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gateway_load import request_of
from defer.documents.address import Address
from defer.gateway.protocol import LARGE, WholeBody
from defer.gateway.server import Gateway, Options
from defer.gateway.service import Limits, Service
from tests.defer.gateway_fixtures import FakeBackend, served

pytestmark = pytest.mark.integration

PATH = "/v2/models/same/infer"
ROWS = LARGE // 16 + 1000


def big(rows: int = ROWS, path: str = PATH) -> tuple[bytes, bytes]:
    """A request as it goes over the wire, and its tensor's bytes."""
    request, array = request_of(path, "x", (rows, 4), "x")
    return request, array.tobytes()


class Answers:
    """What comes back on a connection, answer by answer."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._left = b""

    def next(self) -> tuple[int, bytes]:
        """Status and tensor bytes, or what is said instead of them."""
        told = self._left
        while b"\r\n\r\n" not in told:
            told += self._more()
        head, _, rest = told.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(fields[b"content-length"])
        while len(rest) < length:
            rest += self._more()
        self._left = rest[length:]
        json_length = int(fields.get(b"inference-header-content-length", 0))
        return int(head.split()[1]), rest[json_length:length]

    def _more(self) -> bytes:
        more = self._connection.recv(65536)
        assert more, "the connection was closed"
        return more


def connected(gateway: Gateway) -> socket.socket:
    assert gateway.http is not None
    return socket.create_connection((gateway.http.host, gateway.http.port), 10)


def test_bodies_in_pieces_one_after_the_other_on_one_connection() -> None:
    request, raw = big()
    head = request.index(b"\r\n\r\n") + 4
    with served(FakeBackend()) as (gateway, _), connected(gateway) as connection:
        answers = Answers(connection)
        for cuts in ([], [10], [head], [head - 2, head + 5], [head + 70_000], [len(request) - 1]):
            at = 0
            for cut in [*cuts, len(request)]:
                connection.sendall(request[at:cut])
                time.sleep(0.02)
                at = cut
            assert answers.next() == (200, raw)
        small, tensor = big(2)
        connection.sendall(small)  # the parser is a fresh one: requests of all sizes follow
        assert answers.next() == (200, tensor)


def test_requests_that_follow_before_the_answer_wait_for_it() -> None:
    large, raw = big()
    small, tensor = big(2)
    with served(FakeBackend()) as (gateway, _), connected(gateway) as connection:
        answers = Answers(connection)
        connection.sendall(large + small + large + large + small)
        for expected in (raw, tensor, raw, raw, tensor):
            assert answers.next() == (200, expected)


def test_a_client_that_goes_within_its_body_leaves_nothing() -> None:
    request, raw = big()
    backend = FakeBackend()
    with served(backend) as (gateway, _):
        with connected(gateway) as connection:
            answers = Answers(connection)
            connection.sendall(request[: LARGE // 2 + 70_000])
            time.sleep(0.05)
        deadline = time.monotonic() + 10
        while gateway.service._held and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (gateway.service._held, backend.seen) == (0, [])
        with connected(gateway) as connection:
            answers = Answers(connection)
            connection.sendall(request)
            assert answers.next() == (200, raw)


@pytest.mark.parametrize("path", ["/v2/models/same/infer", "/v2/repository/models/m/load", "/v2/nothing"])
def test_a_refused_body_is_passed_over(path: str) -> None:
    request, _ = big(path=path)
    with served(FakeBackend(), limits=Limits(body=1000)) as (gateway, _), connected(gateway) as connection:
        answers = Answers(connection)
        small, tensor = big(2)
        connection.sendall(request)
        assert answers.next()[0] in (413, 404, 400)
        connection.sendall(small)
        assert answers.next() == (200, tensor)


def test_compressed_and_announced_bodies() -> None:
    request, raw = big()
    head, _, body = request.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
    packed = gzip.compress(body, 1)
    assert len(packed) > LARGE
    with served(FakeBackend()) as (gateway, _), connected(gateway) as connection:
        answers = Answers(connection)
        more = [b"Content-Encoding: gzip", b"Content-Length: %d" % len(packed)]
        connection.sendall(b"\r\n".join([*lines, *more]) + b"\r\n\r\n" + packed)
        assert answers.next() == (200, raw)
        connection.sendall(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert answers.next() == (200, raw)
        pieces = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:90_000], body[90_000:], b""))
        connection.sendall(b"\r\n".join([*lines, b"Transfer-Encoding: chunked"]) + b"\r\n\r\n" + pieces)
        assert answers.next() == (200, raw)


def test_over_tls(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    options: Any = Options(Address("127.0.0.1", 0), certificate=certificate, key=key)
    request, raw = big()
    with Gateway(Service(FakeBackend()), options) as gateway, connected(gateway) as plain:
        context = ssl.create_default_context(cafile=str(certificate))
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
            answers = Answers(connection)
            for _ in range(2):
                connection.sendall(request)
                assert answers.next() == (200, raw)


def test_a_large_body_of_json() -> None:
    values = np.arange(ROWS * 4).tolist()
    asked = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [ROWS, 4], "data": values}]}
    with served(FakeBackend()) as (_, ask):
        status, told, _ = ask("POST", PATH, json.dumps(asked))
    assert status == 200
    assert told["outputs"][0]["data"] == values


def test_large_bodies_do_not_wait_for_the_collector() -> None:
    request, raw = big()
    gc.collect()
    gc.disable()  # uvicorn's requests are cycles, and nothing else ends them
    try:
        with served(FakeBackend()) as (gateway, _), connected(gateway) as connection:
            answers = Answers(connection)
            for cut in (len(request), 70_000):
                connection.sendall(request[:cut])
                time.sleep(0.02)
                connection.sendall(request[cut:])
                assert answers.next() == (200, raw)
        held = [whole for whole in gc.get_objects() if isinstance(whole, WholeBody)]
        assert held
        assert not any(
            isinstance(each, memoryview | bytearray) and len(each) >= LARGE
            for whole in held
            for each in (whole._view, whole._cycle.body)
        )
    finally:
        gc.enable()
