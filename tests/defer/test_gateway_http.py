"""The gateway over HTTP: what it tells of its models, wrong calls, deadlines, drain, versions, TLS, tokens."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from defer import errors
from defer.api import ModelInfo
from defer.documents.address import Address
from defer.documents.plan import PlanBatching
from defer.gateway.app import create_app
from defer.gateway.repository import Repository
from defer.gateway.server import Gateway, Options
from defer.gateway.service import Limits, Service
from node_agent.messages import TensorSpec
from node_agent.noise import Seldom
from tests.defer.gateway_fixtures import (
    INFER,
    SAME,
    FakeBackend,
    body,
    exchange,
    failing,
    served,
    tensor,
)

pytestmark = pytest.mark.integration


def test_the_server_and_its_models_are_described() -> None:
    with served(FakeBackend()) as (_, ask):
        status, told, _ = ask("GET", "/v2")
        assert (status, told["name"]) == (200, "defer")
        assert {"binary_tensor_data", "model_repository", "statistics"} <= set(told["extensions"])
        assert ask("GET", "/v2/health/live")[:2] == (200, {"live": True})
        assert ask("GET", "/v2/health/ready")[:2] == (200, {"ready": True})
        for path in ("/v2/models/same", "/v2/models/same/versions/1"):
            assert ask("GET", path)[1] == {
                "name": "same",
                "versions": ["1"],
                "platform": "defer_onnx",
                "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
                "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
            }
            assert ask("GET", f"{path}/ready")[0] == 200
        assert ask("GET", "/v2/models/same/config")[1]["input"] == [
            {"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 4]}
        ]


def test_what_does_not_exist_is_said_in_the_protocols_shape() -> None:
    with served(FakeBackend()) as (_, ask):
        for method, path, status in (
            ("GET", "/v2/models/other", 404),
            ("GET", "/v2/models/other/ready", 404),
            ("GET", "/v2/models/same/versions/7", 404),
            ("GET", "/v2/models/other/stats", 404),
            ("POST", "/v2/models/other/infer", 404),
            ("POST", "/v2/models/same/versions/2/infer", 404),
            ("GET", "/v2/nothing", 404),
            ("GET", "/", 404),
            ("GET", INFER, 405),
            ("POST", "/v2/health/live", 405),
            ("POST", "/v2/repository/models/other/load", 404),
        ):
            found, told, _ = ask(method, path, body() if path.endswith("infer") else None)
            assert (found, list(told)) == (status, ["error"]), path
        assert "/v2/models/NAME/infer" in ask("GET", "/v2/nothing")[1]["error"]
        status, told, headers = ask("GET", INFER)
        assert headers["allow"] == "POST"
        assert told["error"].startswith(f"{INFER} takes POST, not GET; ")


def test_what_is_no_http_is_logged_with_its_peer_and_seldom(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("defer.gateway.protocol._seldom", Seldom())
    with served(FakeBackend()) as (gateway, _):
        for _again in range(3):
            with socket.create_connection((gateway.http.host, gateway.http.port), 10) as peer:  # type: ignore[union-attr]
                last = peer.getsockname()[1]
                peer.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
                assert peer.recv(100).startswith(b"HTTP/1.1 400")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1, lines
    assert lines[0].startswith("What 127.0.0.1:")
    assert str(last) not in lines[0]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.NotReady("loading"), 503),
        (errors.Overloaded("full"), 429),
        (errors.DeadlineExceeded("late"), 504),
        (errors.AgentLost("gone"), 503),
        (errors.RequestFailed("broken"), 502),
        (errors.Internal("a fault"), 500),
    ],
)
def test_errors_have_the_status_of_the_table(error: errors.DeferError, status: int) -> None:
    with served(FakeBackend(work=failing(error))) as (gateway, ask):
        found, told, headers = ask("POST", INFER, body())
        assert (found, told) == (status, {"error": error.message})
        assert ("retry-after" in headers) == (status in (429, 503))
        assert gateway.service.tallies["same"].failed == 1


def test_timeout_priority_and_outputs_reach_the_client_path() -> None:
    backend = FakeBackend()
    with served(backend, limits=Limits(timeout_s=50)) as (_, ask):
        ask("POST", INFER, body(parameters={"timeout": 2_000_000, "priority": 1}, outputs=[{"name": "y"}]))
        ask("POST", INFER, body())
    first, second = backend.seen
    assert 0 < first.deadline - time.monotonic() < 2
    assert 2 < second.deadline - time.monotonic() < 50
    assert (first.outputs, second.outputs) == (("y",), ())
    assert (first.priority, second.priority) == (1, 0)


def test_a_client_that_goes_gives_its_request_up() -> None:
    backend = FakeBackend()
    backend.hold = True
    with served(backend) as (gateway, ask):
        connection = http.client.HTTPConnection(gateway.http.host, gateway.http.port, timeout=10)
        connection.request("POST", INFER, json.dumps(body()))
        assert backend.arrived.wait(10)
        connection.close()
        assert backend.cancelled.wait(10)
        # Half a request, and gone: nothing is left of it either.
        with socket.create_connection((gateway.http.host, gateway.http.port), 10) as raw:
            raw.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
        backend.hold = False
        assert ask("POST", INFER, body())[0] == 200
        deadline = time.monotonic() + 10
        while (gateway.service.under_way or gateway.service._held) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (gateway.service.under_way, gateway.service._held) == (0, 0)


def test_a_drain_ends_what_is_under_way_and_lets_nothing_in() -> None:
    backend = FakeBackend()
    backend.hold = True
    answers: list[Any] = []
    with served(backend) as (gateway, ask):
        under_way = threading.Thread(target=lambda: answers.append(ask("POST", INFER, body())))
        under_way.start()
        assert backend.arrived.wait(10)
        drained = threading.Thread(target=gateway.drain, args=(20,))
        drained.start()
        while not gateway.service.draining:
            time.sleep(0.001)
        assert ask("GET", "/v2/health/live")[0] == 200
        assert ask("GET", "/v2/health/ready")[:2] == (400, {"ready": False})
        assert ask("GET", "/v2/models/same/ready")[0] == 400
        assert ask("POST", INFER, body())[0] == 503
        assert drained.is_alive()
        backend.let_go()
        drained.join(10)
        under_way.join(10)
    assert [answer[0] for answer in answers] == [200]


def test_the_server_is_ready_when_all_its_models_are() -> None:
    backend = FakeBackend()
    with served(backend) as (gateway, ask):
        backend.infos = [SAME, ModelInfo("other", "announced", "planning")]
        assert ask("GET", "/v2/health/ready")[0] == 400
        assert ask("GET", "/v2/models/other/ready")[0] == 400
        assert ask("GET", "/v2/models/same/ready")[0] == 200
        assert ask("GET", "/v2/models/other")[0] == 503
        status, told, _ = ask("POST", "/v2/models/other/infer", body())
        assert (status, told["error"]) == (503, "model 'other' is not ready: planning")
        index = ask("POST", "/v2/repository/index", {})[1]
        assert [(one["name"], one["state"], one["reason"]) for one in index] == [
            ("other", "LOADING", "planning"),
            ("same", "READY", ""),
        ]
        assert [one["name"] for one in ask("POST", "/v2/repository/index", {"ready": True})[1]] == ["same"]
        backend.infos = [SAME]
        gateway.service.starting = True
        assert ask("GET", "/v2/health/ready")[0] == 400


def test_a_replaced_signature_is_learnt_from_the_first_request_that_fits_it() -> None:
    backend = FakeBackend()
    with served(backend) as (_, ask):
        assert ask("POST", INFER, body())[0] == 200
        wider = ModelInfo(
            "same",
            "ready",
            "",
            2,
            (TensorSpec("x", "float32", ("N", 2)),),
            (TensorSpec("y", "float32", ("N", 2)),),
        )
        backend.infos = [wider]
        assert ask("POST", INFER, {"inputs": [tensor(shape=[2, 2], data=[1, 2, 3, 4])]})[0] == 200
        assert ask("POST", INFER, body())[0] == 400


def test_versions_are_deployments_of_their_own() -> None:
    def version(name: str, **more: Any) -> ModelInfo:
        return msgspec.structs.replace(SAME, name=name, **more)

    alone = version("same", stable="same@2", canary="same@10", share=0.5)
    backend = FakeBackend(
        alone,
        version("same@10", version_of="same"),
        version("same@2", version_of="same"),
        version("old"),
        version("old@3", version_of="old"),
    )
    with served(backend) as (_, ask):
        assert ask("GET", "/v2/models/same")[1]["versions"] == ["2", "10"]
        assert ask("GET", "/v2/models/old")[1]["versions"] == ["1", "3"]
        assert ask("GET", "/v2/models/same/versions/10/ready")[0] == 200
        index = ask("POST", "/v2/repository/index")[1]
        assert [(one["name"], one["version"]) for one in index] == [
            ("old", "1"),
            ("old", "3"),
            ("same", "2"),
            ("same", "10"),
        ]
        for path, deployment, told in (
            ("same/versions/10", "same@10", ("same", "10")),
            ("same/versions/2", "same@2", ("same", "2")),
            ("same", "same", ("same", "2")),  # the dispatcher chooses
            ("old/versions/1", "old", ("old", "1")),
        ):
            answer = ask("POST", f"/v2/models/{path}/infer", body())[1]
            assert (answer["model_name"], answer["model_version"]) == told
            assert backend.seen[-1].model == deployment
        status, refusal, _ = ask("POST", "/v2/models/same/versions/1/infer", body())
        assert (status, refusal["error"]) == (404, "model 'same' has no version '1'; it has 2, 10")
        rows = ask("GET", "/v2/models/same/stats")[1]["model_stats"]
        assert [(row["version"], row["execution_count"]) for row in rows] == [("2", 2), ("10", 1)]
        assert len(ask("GET", "/v2/models/stats")[1]["model_stats"]) == 4


def test_classes_are_the_highest_values_of_each_example() -> None:
    with served(FakeBackend()) as (_, ask):
        asked = {
            "inputs": [tensor(shape=[2, 4], data=[1, 5, 10, 4, 3, 3, 0, -1])],
            "outputs": [{"name": "y", "parameters": {"classification": 2}}],
        }
        assert ask("POST", INFER, asked)[1]["outputs"] == [
            {
                "name": "y",
                "datatype": "BYTES",
                "shape": [2, 2],
                "data": ["10.000000:2", "5.000000:1", "3.000000:0", "3.000000:1"],
            }
        ]


def test_the_repository_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "flat.onnx").write_bytes(b"")
    for version in ("2", "10", "old"):
        (tmp_path / "deep" / version).mkdir(parents=True)
        (tmp_path / "deep" / version / "model.onnx").write_bytes(b"")
    repository = Repository(tmp_path)
    assert repository.models() == {
        "flat": tmp_path / "flat.onnx",
        "deep": tmp_path / "deep" / "10" / "model.onnx",
    }
    backend = FakeBackend()
    with served(backend, repository=repository) as (_, ask):
        index = ask("POST", "/v2/repository/index")[1]
        assert [(one["name"], one["state"]) for one in index] == [
            ("deep", "UNAVAILABLE"),
            ("flat", "UNAVAILABLE"),
            ("same", "READY"),
        ]
        assert ask("POST", "/v2/repository/models/deep/load")[:2] == (200, {})
        assert backend.loads == ["deep"]
        status, told, _ = ask("POST", "/v2/repository/models/none/load", {})
        assert (status, told["error"].startswith("no model 'none' can be loaded")) == (404, True)
        load = "/v2/repository/models/deep/load"
        batching = {"preferred_batch_size": [4, 8], "max_queue_delay_microseconds": 2000}
        sent = {"parameters": {"config": json.dumps({"dynamic_batching": batching})}}
        assert ask("POST", load, sent)[:2] == (200, {})
        assert backend.batching == PlanBatching(sizes=(4, 8), delay_s=0.002)
        for config in (
            {},
            {"dynamic_batching": {}},
            {"dynamic_batching": batching | {"preferred_batch_size": [8, 4]}},
            {"dynamic_batching": batching | {"max_queue_delay_microseconds": -1}},
            {"dynamic_batching": batching, "max_batch_size": 8},
        ):
            status, told, _ = ask("POST", load, {"parameters": {"config": json.dumps(config)}})
            assert (status, "`config`" in told["error"]) == (400, True)
        assert ask("POST", load, {"parameters": {"file:1/model.onnx": "AA=="}})[0] == 400
        assert (
            ask("POST", "/v2/repository/models/same/unload", {"parameters": {"unload_dependents": True}})[0]
            == 200
        )
        assert ask("GET", "/v2/models/same")[0] == 404
    with pytest.raises(errors.FileMissing):
        Repository(tmp_path / "none")


def test_statistics_count_what_came_through_the_gateway() -> None:
    with served(FakeBackend()) as (_, ask):
        ask("POST", INFER, body(inputs=[tensor(shape=[2, 4], data=list(range(8)))]))
        ask("POST", INFER, {"inputs": []})
        for path in ("/v2/models/stats", "/v2/models/same/stats", "/v2/models/same/versions/1/stats"):
            (told,) = ask("GET", path)[1]["model_stats"]
            assert (told["name"], told["inference_count"], told["execution_count"]) == ("same", 2, 1)
            assert told["inference_stats"]["success"]["count"] == 1
            assert told["inference_stats"]["fail"]["count"] == 1
            assert told["last_inference"] > 1_600_000_000_000


def test_a_token_opens_everything_but_the_probes(tmp_path: Path) -> None:
    token = "a-token-of-some-length"
    more = [Route("/page", lambda _: PlainTextResponse("hello"))]
    service = Service(FakeBackend())
    with Gateway(service, Options(Address("127.0.0.1", 0), token=token), more=more) as gateway:
        for path, needs in (
            ("/v2/health/live", 200),
            ("/v2/health/ready", 200),
            ("/v2", 401),
            ("/page", 401),
        ):
            assert exchange(gateway.http, "GET", path)[0] == needs
            shown = {"Authorization": f"Bearer {token}"}
            assert exchange(gateway.http, "GET", path, None, shown)[0] == 200
        assert "wants a bearer token" in exchange(gateway.http, "GET", "/v2")[1]["error"]
        for wrong, why in (
            ("Bearer x", "is wrong"),
            (f"Basic {token}", "must be `Bearer TOKEN`"),
            (token, "must be `Bearer TOKEN`"),
            ("Bearer", "is wrong"),
            (f"Bearer {token}x", "is wrong"),
        ):
            status, told, headers = exchange(gateway.http, "GET", "/v2", None, {"Authorization": wrong})
            assert (status, list(told), headers["www-authenticate"]) == (401, ["error"], "Bearer")
            assert why in told["error"]
    assert create_app(service, more=more)  # without a token there is nothing in front


def test_tls(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    options = Options(Address("127.0.0.1", 0), certificate=certificate, key=key)
    with Gateway(Service(FakeBackend()), options) as gateway:
        context = ssl.create_default_context(cafile=str(certificate))
        connection = http.client.HTTPSConnection("127.0.0.1", gateway.http.port, context=context, timeout=10)
        connection.request("POST", INFER, json.dumps(body()))
        assert connection.getresponse().status == 200
        connection.close()
    with pytest.raises(errors.UsageError, match="cannot be used"):
        Gateway(Service(FakeBackend()), Options(Address("127.0.0.1", 0), certificate=key, key=key)).start()
    with pytest.raises(errors.FileMissing):
        Gateway(
            Service(FakeBackend()), Options(Address("127.0.0.1", 0), certificate=tmp_path / "none")
        ).start()


def test_a_port_in_use_is_said() -> None:
    with (
        served(FakeBackend()) as (gateway, _),
        pytest.raises(errors.PortInUse),
    ):
        Gateway(Service(FakeBackend()), Options(gateway.http)).start()
