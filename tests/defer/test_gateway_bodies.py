"""The gateway's bodies over HTTP, byte by byte: JSON and binary, number types, compression, limits, what is wrong."""

from __future__ import annotations

import gzip
import json
import threading
import zlib
from typing import Any

import numpy as np
import pytest

from defer import errors
from defer.api import ModelInfo
from defer.gateway.bodies import parse_raw
from defer.gateway.datatypes import WIRE, from_json, join_bytes, split_bytes, to_bf16, to_json
from defer.gateway.service import Limits
from node_agent.messages import TensorHeader, TensorSpec
from tests.defer.gateway_fixtures import (
    INFER,
    FakeBackend,
    binary,
    body,
    served,
    tensor,
)

pytestmark = pytest.mark.integration


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
