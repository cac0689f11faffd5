"""The gateway over HTTP, against the protocol: bodies byte by byte, wrong requests, limits, drain, TLS, tokens."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import ssl
import subprocess
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from defer import errors
from defer.api import ModelInfo
from defer.documents.address import Address
from defer.documents.plan import PlanBatching
from defer.gateway.app import create_app
from defer.gateway.bodies import parse_raw
from defer.gateway.datatypes import WIRE, from_json, join_bytes, split_bytes, to_bf16, to_json
from defer.gateway.repository import Repository
from defer.gateway.server import Gateway, Options
from defer.gateway.service import Limits, Service
from node_agent.messages import TensorHeader, TensorSpec
from node_agent.noise import Seldom
from tests.defer.gateway_fixtures import SAME, FakeBackend, exchange, failing, served

pytestmark = pytest.mark.integration

INFER = "/v2/models/same/infer"


def tensor(**more: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [1, 4], "datatype": "FP32"} | more


def body(**more: Any) -> dict[str, Any]:
    return {"inputs": [tensor(data=[1, 2, 3, 4])]} | more


def binary(values: Any, *, outputs: Any = None, after: bytes = b"") -> tuple[bytes, dict[str, str]]:
    """A request with binary data in and out."""
    raw = np.asarray(values, np.float32).tobytes()
    told: dict[str, Any] = {
        "inputs": [tensor(shape=[len(raw) // 16, 4], parameters={"binary_data_size": len(raw)})],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(told | ({"outputs": outputs} if outputs else {})).encode()
    return head + raw + after, {"Inference-Header-Content-Length": str(len(head))}


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


def test_json_in_and_out() -> None:
    with served(FakeBackend()) as (_, ask):
        status, told, headers = ask("POST", INFER, body(id="mine"))
        assert (status, headers["content-type"]) == (200, "application/json")
        assert told == {
            "model_name": "same",
            "model_version": "1",
            "id": "mine",
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, 3.0, 4.0]}],
        }
        nested = body(inputs=[tensor(data=[[5, 6, 7, 8]])])
        assert ask("POST", "/v2/models/same/versions/1/infer", nested)[1]["outputs"][0]["data"] == [
            5,
            6,
            7,
            8,
        ]


def test_binary_in_and_out() -> None:
    values = np.arange(8, dtype=np.float32)
    with served(FakeBackend()) as (_, ask):
        sent, headers = binary(values)
        status, answer, told = ask("POST", INFER, sent, headers)
        assert (status, told["content-type"]) == (200, "application/octet-stream")
        length = int(told["inference-header-content-length"])
        assert json.loads(answer[:length])["outputs"] == [
            {"name": "y", "datatype": "FP32", "shape": [2, 4], "parameters": {"binary_data_size": 32}}
        ]
        assert answer[length:] == values.tobytes()
        # An output may say otherwise than the request.
        sent, headers = binary(values, outputs=[{"name": "y", "parameters": {"binary_data": False}}])
        assert ask("POST", INFER, sent, headers)[1]["outputs"][0]["data"] == list(range(8))


def test_a_large_body_becomes_a_frame_without_a_copy() -> None:
    backend = FakeBackend()
    frames: list[Any] = []
    backend.work = lambda submit: (
        frames.extend(submit.frames),
        (
            (TensorHeader("y", "float32", submit.tensors[0].shape, "raw", submit.tensors[0].nbytes),),
            submit.frames,
        ),
    )[1]
    values = np.random.default_rng(0).standard_normal((50_000, 4)).astype(np.float32)
    with served(backend) as (_, ask):
        sent, headers = binary(values)
        status, answer, told = ask("POST", INFER, sent, headers)
        assert status == 200
        assert answer[int(told["inference-header-content-length"]) :] == values.tobytes()
        (frame,) = frames
        assert isinstance(frame, memoryview)
        assert len(frame.obj) == len(sent)  # a slice of the one buffer that the body was read into


def test_a_raw_binary_request_is_only_the_tensor() -> None:
    values = np.arange(12, dtype=np.float32)
    with served(FakeBackend()) as (_, ask):
        none = {"Inference-Header-Content-Length": "0"}
        status, answer, told = ask("POST", INFER, values.tobytes(), none)
        assert status == 200
        assert answer[int(told["inference-header-content-length"]) :] == values.tobytes()
        status, answer, _ = ask("POST", INFER, values.tobytes()[:-4], none)
        assert status == 400
        assert "44 bytes are not a multiple of 16 bytes, one row, of input 'x'" in answer["error"]
    fixed = ModelInfo("same", "ready", "", 1, (TensorSpec("x", "float32", (1, 4)),))
    with pytest.raises(errors.WrongInput, match="32 bytes are not the 16 bytes of input 'x', FP32"):
        parse_raw(fixed, "", bytes(32))


@pytest.mark.parametrize("datatype", [name for name in WIRE if name != "BYTES"])
def test_every_number_type_travels_in_json_and_binary(datatype: str) -> None:
    dtype = WIRE[datatype]
    backend = FakeBackend(
        ModelInfo("same", "ready", "", 1, (TensorSpec("x", dtype, (3,)),), (TensorSpec("y", dtype, (3,)),))
    )
    values: list[Any] = [True, False, True] if datatype == "BOOL" else [0, 1, 100]
    asked = {"inputs": [{"name": "x", "shape": [3], "datatype": datatype, "data": values}]}
    with served(backend) as (_, ask):
        status, told, _ = ask("POST", INFER, asked)
        assert status == 200, told
        assert told["outputs"] == [{"name": "y", "datatype": datatype, "shape": [3], "data": values}]
        raw = bytes(backend.seen[0].frames[0])  # type: ignore[call-overload]
        given = {
            "name": "x",
            "shape": [3],
            "datatype": datatype,
            "parameters": {"binary_data_size": len(raw)},
        }
        head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
        length = {"Inference-Header-Content-Length": str(len(head))}
        _, answer, told = ask("POST", INFER, head + raw, length)
        assert answer[int(told["inference-header-content-length"]) :] == raw


def test_numbers_out_of_range_are_refused() -> None:
    for datatype, value in (
        ("UINT8", 256),
        ("INT8", -129),
        ("UINT64", -1),
        ("INT32", 1.5),
        ("BOOL", 2),
        ("FP32", "1"),
    ):
        with pytest.raises(errors.WrongInput):
            from_json("x", datatype, (1,), json.dumps([value]).encode())  # type: ignore[arg-type]


def test_bfloat16_is_rounded_to_nearest_even() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -0.0, np.inf, np.nan], np.float32)
    bits = to_bf16(values)
    assert bits[:5].tolist() == [0x3F80, 0x3F80, 0x3F82, 0x8000, 0x7F80]
    assert np.isnan((bits.astype(np.uint32) << 16).view(np.float32)[5])


def test_bytes_elements_keep_their_lengths() -> None:
    raw = join_bytes([b"", b"a\0b", "ü".encode()])
    assert raw == b"\0\0\0\0\3\0\0\0a\0b\2\0\0\0\xc3\xbc"
    assert split_bytes("x", raw, 3) == [b"", b"a\0b", "ü".encode()]
    assert to_json("x", "string", (3,), raw) == ["", "a\0b", "ü"]
    for wrong in (raw[:-1], raw + b"\1", b"\1\0\0"):
        with pytest.raises(errors.WrongInput):
            split_bytes("x", wrong, 3)
    with pytest.raises(errors.WrongInput, match="not UTF-8"):
        to_json("x", "string", (1,), join_bytes([b"\xff"]))


WRONG = [
    (b"", "not an inference request"),
    (b"\xff\xfe", "not an inference request"),
    (b"[" * 5000, "not an inference request"),
    (b"{}", "inputs"),
    ({"inputs": []}, "input 'x' is missing"),
    ({"inputs": [tensor()]}, "neither `data` nor"),
    ({"inputs": [tensor(data=[1, 2, 3])]}, "3 elements"),
    ({"inputs": [tensor(data=[[1, 2], [3, 4]])]}, "neither flat nor nested"),
    ({"inputs": [tensor(data=["a", "b", "c", "d"])]}, "are not numbers"),
    ({"inputs": [tensor(data=["a", "b", "c", "d"], name="z")]}, "no input 'z'"),
    ({"inputs": [tensor(data=[1, 2, 3], name="z")]}, "no input 'z'"),
    ({"inputs": [tensor(data=[[1, 2, 3, None]])]}, "are not numbers"),
    ({"inputs": [tensor(data=[1, 2, 3, 4], shape=[-1, 4])]}, "negative"),
    ({"inputs": [tensor(data=[1, 2, 3, 4], shape=[4])]}, "shape"),
    ({"inputs": [tensor(data=[1, 2, 3, 4], datatype="FP33")]}, "FP33"),
    ({"inputs": [tensor(data=[1, 2, 3, 4], datatype="INT32")]}, "element type int32"),
    ({"inputs": [tensor(data=[1, 2, 3, 4], name="z")]}, "no input 'z'"),
    ({"inputs": [tensor(data=[1, 2, 3, 4])] * 2}, "twice"),
    (body(outputs=[{"name": "q"}]), "no output 'q'"),
    (body(outputs=[{"name": "y", "parameters": {"binary_data": 1}}]), "binary_data"),
    (body(outputs=[{"name": "y", "parameters": {"classification": -1}}]), "classification"),
    (body(parameters={"timeout": "soon"}), "timeout"),
    (body(parameters={"priority": -1}), "priority"),
    (body(parameters={"sequence_id": 3}), "sequence"),
    ({"inputs": [tensor(parameters={"binary_data_size": 16})]}, "0 bytes of binary data are left"),
    ({"inputs": [tensor(parameters={"shared_memory_region": "a"})]}, "shared memory"),
]


def test_wrong_requests_are_told_what_is_wrong() -> None:
    with served(FakeBackend()) as (gateway, ask):
        for sent, text in WRONG:
            status, told, headers = ask("POST", INFER, sent)
            assert (status, headers["content-type"]) == (400, "application/json"), (sent, told)
            assert list(told) == ["error"]
            assert text in told["error"], (sent, told)
        sent, length = binary([1, 2, 3, 4], after=b"more")
        assert "4 bytes follow" in ask("POST", INFER, sent, length)[1]["error"]
        for wrong in ("9999", "-1", "x"):
            assert ask("POST", INFER, sent, {"Inference-Header-Content-Length": wrong})[0] == 400
        assert gateway.service.under_way == 0


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


def test_bodies_may_be_compressed_both_ways() -> None:
    values = np.zeros((20_000, 4), np.float32)
    with served(FakeBackend()) as (_, ask):
        sent, length = binary(values)
        for coding, pack, unpack in (
            ("gzip", gzip.compress, gzip.decompress),
            ("deflate", zlib.compress, zlib.decompress),
        ):
            asked = length | {"Content-Encoding": coding, "Accept-Encoding": coding}
            status, answer, told = ask("POST", INFER, pack(sent), asked)
            assert (status, told["content-encoding"]) == (200, coding)
            assert len(answer) < 5000
            assert unpack(answer)[int(told["inference-header-content-length"]) :] == values.tobytes()
        # Libraries list what they could read with every request: that is no wish for compressed tensors.
        *_, told = ask("POST", INFER, sent, length | {"Accept-Encoding": "gzip, deflate"})
        assert "content-encoding" not in told
        assert ask("POST", INFER, sent, length | {"Content-Encoding": "gzip"})[0] == 400
        assert ask("POST", INFER, sent, length | {"Content-Encoding": "br"})[0] == 415
        assert ask("POST", INFER, gzip.compress(sent)[:-9], length | {"Content-Encoding": "gzip"})[0] == 400


def test_bodies_over_the_limit_are_refused_whatever_they_say() -> None:
    with served(FakeBackend(), limits=Limits(body=1000)) as (gateway, ask):
        sent, length = binary(np.zeros((100, 4)))
        assert ask("POST", INFER, sent, length)[0] == 413
        assert ask("POST", INFER, gzip.compress(sent), length | {"Content-Encoding": "gzip"})[0] == 413
        assert (
            ask("POST", INFER, iter([sent[:800], sent[800:]]), length)[0] == 413
        )  # chunked: no length is stated
        assert ask("POST", INFER, iter([b"x"]), {})[0] == 400
        assert gateway.service._held == 0


def test_more_than_can_be_held_is_refused_before_it_is_read() -> None:
    backend = FakeBackend()
    backend.hold = True
    with served(backend, limits=Limits(held=1500)) as (gateway, ask):
        sent, length = binary(np.zeros((60, 4)))
        first = threading.Thread(target=ask, args=("POST", INFER, sent, length))
        first.start()
        assert backend.arrived.wait(10)
        status, told, headers = ask("POST", INFER, sent, length)
        assert (status, headers["retry-after"]) == (429, "1")
        assert "held already" in told["error"]
        backend.let_go()
        first.join(10)
        assert gateway.service._held == 0


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
