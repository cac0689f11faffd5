"""`defer bench --url`: against our gateway, and against a server of the protocol that shares no code with it."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner

from defer.cli import group


class Server(BaseHTTPRequestHandler):
    """Adds nothing to `x` and says so; as little of the protocol as a server can have."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[dict[str, Any]]] = []
    refuse: ClassVar[int] = 0
    token: ClassVar[str] = ""

    def log_message(self, *args: object) -> None:
        pass

    def say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path != "/base/v2/models/add%20one":
            self.say(404, b'{"error": "no such model"}')
            return
        inputs = [
            {"name": "x", "datatype": "FP32", "shape": [-1, 4]},
            {"name": "s", "datatype": "BYTES", "shape": [1]},
        ]
        outputs = [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}]
        self.say(200, json.dumps({"name": "add one", "inputs": inputs, "outputs": outputs}).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/base/v2/repository/index":
            self.say(200, b'[{"name": "add one", "state": "READY"}, {"name": "old", "state": "UNAVAILABLE"}]')
            return
        if Server.token and self.headers.get("Authorization") != f"Bearer {Server.token}":
            self.say(401, b'{"error": "who are you?"}')
            return
        if Server.refuse:
            self.say(Server.refuse, b"not now")
            return
        length = self.headers.get("Inference-Header-Content-Length")
        asked = json.loads(body[: int(length)] if length else body)
        Server.seen.append(asked)
        x, s = asked["inputs"]
        if length:
            assert x["parameters"]["binary_data_size"] == 16 * x["shape"][0]
            at = int(length) + x["parameters"]["binary_data_size"]
            assert body[at:] == struct.pack("<I", 5) + b"defer"
            output = {
                "name": "y",
                "datatype": "FP32",
                "shape": x["shape"],
                "parameters": {"binary_data_size": 16},
            }
            head = json.dumps({"model_name": "add one", "outputs": [output]}).encode()
            self.say(200, head + bytes(16), {"Inference-Header-Content-Length": str(len(head))})
        else:
            assert len(x["data"]) == 4 * x["shape"][0]
            assert s["data"] == ["defer"]
            output = {"name": "y", "datatype": "FP32", "shape": x["shape"], "data": x["data"]}
            self.say(200, json.dumps({"model_name": "add one", "outputs": [output]}).encode())


@pytest.fixture
def url() -> Iterator[str]:
    Server.seen, Server.refuse, Server.token = [], 0, ""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/base"
    server.shutdown()
    server.server_close()
    thread.join()


def bench(*words: str) -> Any:
    return CliRunner().invoke(group, ["bench", *words])


FEW = ("--requests", "12", "--singles", "3", "--window", "3")


@pytest.mark.parametrize("encoding", ["binary", "json"])
def test_a_server_of_the_protocol_is_measured(url: str, encoding: str) -> None:
    done = bench("--url", url, *FEW, "--warm-up", "2", "--batch", "1", "--encoding", encoding, "--json")
    assert done.exit_code == 0, done.output
    load = json.loads(done.stdout)
    assert (load["model"], load["requests"], load["failed"], load["stages"]) == ("add one", 12, {}, [])
    assert load["url"] == url
    assert 0 < load["p50_s"] <= load["p90_s"] <= load["p99_s"]
    assert 0 < load["loaded"]["p50_s"] <= load["loaded"]["most_s"]
    assert load["rate_per_s"] > 0
    assert load["sent_bytes"] > 16
    assert load["received_bytes"] > 16
    assert len(Server.seen) == 1 + 2 + 3 + 12
    assert all(asked == Server.seen[0] for asked in Server.seen)


def test_what_is_shown_and_a_rate(url: str) -> None:
    done = bench("--url", url, "--model", "add one", *FEW, "--rate", "200", "--batch", "1")
    assert done.exit_code == 0, done.output
    assert "asked for 200/s, at most 3 under way" in done.output
    assert "from when each was due" in done.output
    assert "out and" in done.output


def test_a_token_is_shown(url: str, tmp_path: Path) -> None:
    Server.token = "sesame"
    refused = bench("--url", url, *FEW)
    assert refused.exit_code == 77
    assert "--token-file" in refused.stderr
    file = tmp_path / "token"
    file.write_text("sesame\n")
    assert bench("--url", url, *FEW, "--token-file", str(file)).exit_code == 0


@pytest.mark.parametrize(("status", "code"), [(503, 75), (429, 75), (400, 65), (500, 69)])
def test_a_server_that_refuses_is_told_once(url: str, status: int, code: int) -> None:
    Server.refuse = status
    done = bench("--url", url, *FEW)
    assert done.exit_code == code, done.output
    assert f"answered {status}: not now" in done.stderr


def test_what_is_wrong_with_the_url(url: str) -> None:
    assert "no URL" in bench("--url", "ftp://here").stderr
    for words in (("--model", "m"), ()):
        nobody = bench("--url", "http://127.0.0.1:9", *words)
        assert nobody.exit_code == 69
        assert "check --url; is it started with --http?" in nobody.stderr
        assert "--model" not in nobody.stderr
    unknown = bench("--url", url, "--model", "other")
    assert "404: no such model" in unknown.stderr
    assert bench("--token-file", "x").exit_code != 0


@pytest.mark.parametrize(
    ("status", "code", "hint"),
    [(404, 65, "--model"), (405, 65, "--model"), (401, 77, "--token-file"), (503, 75, "")],
)
def test_which_model_is_asked_only_where_a_server_answers_without_a_list(
    url: str, status: int, code: int, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "do_POST", lambda self: self.say(status, b"no"))
    done = bench("--url", url, *FEW)
    assert done.exit_code == code
    assert hint in done.stderr
    assert ("--model" in done.stderr) == (hint == "--model")


@pytest.mark.integration
def test_our_gateway_is_measured_by_the_same_client() -> None:
    pytest.importorskip("uvicorn")
    from tests.defer.gateway_fixtures import FakeBackend, served

    with served(FakeBackend()) as (gateway, _):
        for encoding in ("binary", "json"):
            done = bench("--url", f"http://{gateway.http}", *FEW, "--encoding", encoding, "--json")
            assert done.exit_code == 0, done.output
            load = json.loads(done.stdout)
            assert (load["model"], load["failed"]) == ("same", {})
