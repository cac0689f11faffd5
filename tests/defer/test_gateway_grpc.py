"""The gateway over gRPC: messages against another implementation's, wrong requests, streams, tokens, TLS, cancelling."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2, service_pb2_grpc

from defer import errors
from defer.api import ModelInfo
from defer.documents.address import Address
from defer.gateway.protobuf import DATA_TYPES, MESSAGES, METHODS, SERVICE, message
from defer.gateway.rpc_bodies import RAW_INPUTS, parse, taken_out
from defer.gateway.server import Gateway, Options
from defer.gateway.service import Limits, Service
from node_agent.messages import TensorSpec
from tests.defer.gateway_fixtures import SAME, FakeBackend, failing, grpc_at_work

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module", autouse=True)
def grpc_stays() -> Iterator[None]:
    """No test must be blamed for its thread."""
    with grpc_at_work():
        yield


@contextmanager
def served(backend: FakeBackend, *, limits: Limits | None = None, **options: Any) -> Iterator[Gateway]:
    with Gateway(Service(backend, limits), Options(grpc=Address("127.0.0.1", 0), **options)) as gateway:
        yield gateway


@contextmanager
def client(gateway: Gateway, **more: Any) -> Iterator[Any]:
    made = triton.InferenceServerClient(str(gateway.grpc), **more)
    try:
        yield made
    finally:
        made.close()


def tensor(values: np.ndarray, name: str = "x", datatype: str = "FP32") -> Any:
    made = triton.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made


X = np.arange(4, dtype=np.float32).reshape(1, 4)


# --------------------------------------------------------------------------------------------------- messages


def test_every_message_is_the_protocols() -> None:
    """Names, numbers and types of all fields, against the messages that tritonclient was generated with."""
    theirs = service_pb2.DESCRIPTOR.pool

    def check(ours: Any, other: Any) -> None:
        for field in ours.fields:
            match = other.fields_by_name[field.name]
            assert (field.number, field.type, field.is_repeated) == (
                match.number,
                match.type,
                match.is_repeated,
            )
            assert (field.containing_oneof and field.containing_oneof.name) == (
                match.containing_oneof and match.containing_oneof.name
            )
            if field.message_type is not None:
                assert field.message_type.full_name == match.message_type.full_name
                assert field.message_type.GetOptions().map_entry == match.message_type.GetOptions().map_entry
                if field.message_type.GetOptions().map_entry:
                    check(field.message_type, match.message_type)

    for name in MESSAGES:
        check(message(name).DESCRIPTOR, theirs.FindMessageTypeByName(f"inference.{name}"))
    types = theirs.FindEnumTypeByName("inference.DataType")
    assert [value.name for value in types.values] == [f"TYPE_{name}" for name in DATA_TYPES]
    methods = theirs.FindServiceByName(SERVICE).methods_by_name
    for name in METHODS:
        assert methods[name].input_type.name == f"{name.replace('Stream', '')}Request"
        assert methods[name].output_type.name == f"{name}Response"


@hypothesis_given(st.binary(max_size=40), st.lists(st.binary(max_size=300), max_size=4), st.text(max_size=5))
def test_taking_tensors_out_of_a_message_loses_nothing(noise: bytes, raw: list[bytes], name: str) -> None:
    request = service_pb2.ModelInferRequest(model_name=name, raw_input_contents=raw)
    request.parameters["p"].double_param = 1.5
    rest, found = taken_out(request.SerializeToString(), RAW_INPUTS)
    assert [bytes(one) for one in found] == raw
    request.ClearField("raw_input_contents")
    assert service_pb2.ModelInferRequest.FromString(rest) == request
    with contextlib.suppress(
        errors.WrongInput
    ):  # whatever comes is refused or understood, never anything else
        parse(noise)


def test_a_message_that_is_cut_off_is_refused() -> None:
    whole = service_pb2.ModelInferRequest(model_name="m", raw_input_contents=[b"abcd"]).SerializeToString()
    for length in range(1, len(whole)):
        if length != 3:  # there the name alone is whole
            with pytest.raises(errors.WrongInput):
                taken_out(whole[:length], RAW_INPUTS)


# --------------------------------------------------------------------------------------------------- requests


def test_tritonclient_sees_the_server() -> None:
    backend = FakeBackend()
    with served(backend) as gateway, client(gateway) as ask:
        assert ask.is_server_live()
        assert ask.is_server_ready()
        assert ask.is_model_ready("same")
        assert ask.get_server_metadata().name == "defer"
        told = ask.get_model_metadata("same", "1", as_json=True)
        assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}]
        config = ask.get_model_config("same").config
        assert (config.name, config.input[0].data_type, list(config.input[0].dims)) == ("same", 11, [-1, 4])
        assert [one.name for one in ask.get_model_repository_index().models] == ["same"]
        ask.infer("same", [tensor(X)])
        (told,) = ask.get_inference_statistics("same").model_stats
        assert (told.inference_count, told.inference_stats.success.count) == (1, 1)
        gateway.service.draining = True
        assert not ask.is_server_ready()
        assert not ask.is_model_ready("same")


def test_an_inference_and_its_parameters() -> None:
    backend = FakeBackend()
    with served(backend) as gateway, client(gateway) as ask:
        answer = ask.infer("same", [tensor(X)], request_id="seven", timeout=2_000_000, priority=2)
        np.testing.assert_array_equal(answer.as_numpy("y"), X)
        assert answer.get_response().id == "seven"
        assert answer.get_response().model_version == "1"
        ask.infer("same", [tensor(X)], client_timeout=3)
        wanted = [triton.InferRequestedOutput("y", class_count=2)]
        classes = ask.infer("same", [tensor(X)], outputs=wanted, compression_algorithm="gzip")
        assert classes.as_numpy("y").tolist() == [[b"3.000000:3", b"2.000000:2"]]
    first, second, _ = backend.seen
    now = time.monotonic()
    assert 0 < first.deadline - now <= 2
    assert 2 < second.deadline - now <= 3.5
    assert (first.priority, second.priority) == (2, 0)


def test_large_tensors_are_not_copied_on_the_way_in() -> None:
    backend = FakeBackend()
    values = np.random.default_rng(0).standard_normal((400_000, 4)).astype(np.float32)
    with served(backend) as gateway, client(gateway) as ask:
        np.testing.assert_array_equal(ask.infer("same", [tensor(values)]).as_numpy("y"), values)
    (frame,) = backend.seen[0].frames
    assert isinstance(frame, memoryview)
    assert len(frame.obj) > frame.nbytes


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-1, 2]),
        ("INT16", "int_contents", [-1, 2]),
        ("INT32", "int_contents", [-1, 2]),
        ("INT64", "int64_contents", [-1, 2]),
        ("UINT8", "uint_contents", [1, 255]),
        ("UINT16", "uint_contents", [1, 2]),
        ("UINT32", "uint_contents", [1, 2]),
        ("UINT64", "uint64_contents", [1, 2]),
        ("FP32", "fp32_contents", [1.5, 2.0]),
        ("FP64", "fp64_contents", [1.5, 2.0]),
        ("BYTES", "bytes_contents", [b"a", b""]),
    ],
)
def test_contents_that_are_not_raw(datatype: str, field: str, values: list[Any]) -> None:
    request = service_pb2.ModelInferRequest(model_name="same")
    given = request.inputs.add(name="x", datatype=datatype, shape=[2])
    getattr(given.contents, field).extend(values)
    (made,) = parse(request.SerializeToString()).inputs
    if datatype == "BYTES":
        assert made.data == b"\1\0\0\0a\0\0\0\0"
    else:
        assert np.frombuffer(made.data, made.dtype).tolist() == values
    given.shape[0] = 3
    with pytest.raises(errors.WrongInput, match="2 elements"):
        parse(request.SerializeToString())


def test_wrong_requests_have_the_right_status() -> None:
    with served(FakeBackend()) as gateway, client(gateway) as ask:

        def refused(status: str, *inputs: Any, model: str = "same", **more: Any) -> str:
            with pytest.raises(triton.InferenceServerException) as caught:
                ask.infer(model, list(inputs), **more)
            assert caught.value.status() == f"StatusCode.{status}"
            return str(caught.value.message())

        assert "no model 'none'" in refused("NOT_FOUND", tensor(X), model="none")
        assert "no version" in refused("NOT_FOUND", tensor(X), model_version="2")
        assert "'x' is missing" in refused("INVALID_ARGUMENT")
        assert "no input 'z'" in refused("INVALID_ARGUMENT", tensor(X, "z"))
        assert "element type int32" in refused("INVALID_ARGUMENT", tensor(X.astype(np.int32), "x", "INT32"))
        assert "expected x" in refused("INVALID_ARGUMENT", tensor(X[:, :2]))
        wanted = [triton.InferRequestedOutput("q")]
        assert "no output 'q'" in refused("INVALID_ARGUMENT", tensor(X), outputs=wanted)
        assert "sequence" in refused("INVALID_ARGUMENT", tensor(X), sequence_id=4)
        shared = triton.InferInput("x", [1, 4], "FP32")
        shared.set_shared_memory("region", 16)
        assert "shared memory" in refused("INVALID_ARGUMENT", shared)
        cut = tensor(X)
        cut._raw_content = b"abc"
        assert "takes 16 bytes" in refused("INVALID_ARGUMENT", cut)
        for wrong in (lambda: ask.load_model("none"), lambda: ask.get_model_metadata("none")):
            with pytest.raises(triton.InferenceServerException, match="none"):
                wrong()
        with pytest.raises(triton.InferenceServerException, match="dynamic_batching"):
            ask.load_model("same", config="{}")
        with pytest.raises(triton.InferenceServerException) as caught:
            ask.get_system_shared_memory_status()
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.NotReady("loading"), "UNAVAILABLE"),
        (errors.Overloaded("full"), "RESOURCE_EXHAUSTED"),
        (errors.DeadlineExceeded("late"), "DEADLINE_EXCEEDED"),
        (errors.AgentLost("gone"), "UNAVAILABLE"),
        (errors.RequestFailed("broken"), "INTERNAL"),
    ],
)
def test_errors_have_their_status(error: errors.DeferError, status: str) -> None:
    with served(FakeBackend(work=failing(error))) as gateway, client(gateway) as ask:
        with pytest.raises(triton.InferenceServerException) as caught:
            ask.infer("same", [tensor(X)])
        assert (caught.value.status(), caught.value.message()) == (f"StatusCode.{status}", error.message)


def test_a_message_over_the_limit_is_refused() -> None:
    with served(FakeBackend(), limits=Limits(body=1000)) as gateway, client(gateway) as ask:
        with pytest.raises(triton.InferenceServerException) as caught:
            ask.infer("same", [tensor(np.zeros((10_000, 4), np.float32))])
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        assert gateway.service._held == 0


def test_a_stream_answers_in_order_and_goes_on_after_an_error() -> None:
    answers: list[Any] = []
    done = threading.Event()
    count = 40

    def heard(result: Any, error: Any) -> None:
        answers.append(error if result is None else result)
        if len(answers) == count:
            done.set()

    with served(FakeBackend()) as gateway, client(gateway) as ask:
        ask.start_stream(heard)
        for number in range(count):
            model = "none" if number == 7 else "same"
            ask.async_stream_infer(model, [tensor(X + number)], request_id=str(number))
        assert done.wait(20)
        ask.stop_stream()
        assert gateway.service.under_way == 0
    assert "no model 'none'" in str(answers.pop(7))
    for number, answer in zip([n for n in range(count) if n != 7], answers, strict=True):
        assert answer.get_response().id == str(number)
        assert answer.get_response().parameters["triton_final_response"].bool_param
        np.testing.assert_array_equal(answer.as_numpy("y"), X + number)


def test_a_caller_that_goes_gives_its_request_up() -> None:
    backend = FakeBackend()
    backend.hold = True
    with served(backend) as gateway, client(gateway) as ask:
        under_way = ask.async_infer("same", [tensor(X)], lambda result, error: None)
        assert backend.arrived.wait(10)
        under_way.cancel()
        assert backend.cancelled.wait(10)
        nothing_held(gateway)


def test_a_stream_that_is_dropped_gives_its_requests_up() -> None:
    backend = FakeBackend()
    backend.hold = True
    gone = threading.Event()
    request = service_pb2.ModelInferRequest(model_name="same")
    request.inputs.add(name="x", datatype="FP32", shape=X.shape).contents.fp32_contents.extend(X[0])

    def requests() -> Iterator[Any]:
        yield request
        gone.wait(10)

    with served(backend) as gateway, grpc.insecure_channel(str(gateway.grpc)) as channel:
        stream = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(requests())
        assert backend.arrived.wait(10)
        stream.cancel()
        gone.set()
        assert backend.cancelled.wait(10)
        nothing_held(gateway)


def nothing_held(gateway: Gateway) -> None:
    deadline = time.monotonic() + 10
    while gateway.service.under_way and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (gateway.service.under_way, gateway.service._held) == (0, 0)


def test_load_and_unload() -> None:
    backend = FakeBackend()
    with served(backend) as gateway, client(gateway) as ask:
        ask.unload_model("same", unload_dependents=True)
        assert backend.infos == []
        backend.infos = [ModelInfo("b", "announced", "planning", 0, (TensorSpec("x", "float32", (1,)),))]
        (one,) = ask.get_model_repository_index().models
        assert (one.name, one.state, one.reason) == ("b", "LOADING", "planning")
        assert not ask.is_server_ready()
        assert SAME not in backend.infos


def test_a_token_and_tls(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    token = "a-token-of-some-length"
    options = {"token": token, "certificate": certificate, "key": key}
    with (
        served(FakeBackend(), **options) as gateway,
        client(gateway, ssl=True, root_certificates=str(certificate)) as ask,
    ):
        assert ask.is_server_live()
        assert ask.is_server_ready()
        shown = {"authorization": f"Bearer {token}"}
        assert ask.infer("same", [tensor(X)], headers=shown).as_numpy("y") is not None
        for wrong, why in (
            ({}, "wants a bearer token"),
            ({"authorization": "Bearer x"}, "the bearer token is wrong"),
            ({"authorization": token}, "must be `Bearer TOKEN`"),
        ):
            with pytest.raises(triton.InferenceServerException) as caught:
                ask.infer("same", [tensor(X)], headers=wrong)
            assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
            assert why in str(caught.value)
        failed: list[Any] = []
        ended = threading.Event()
        ask.start_stream(lambda result, error: (failed.append(error), ended.set()))
        assert ended.wait(10)
        ask.stop_stream()
        assert "bearer token" in str(failed[0])


def test_a_port_in_use_is_said() -> None:
    with served(FakeBackend()) as gateway:
        second = Gateway(Service(FakeBackend()), Options(grpc=gateway.grpc))
        with pytest.raises(errors.PortInUse):
            second.start()


def test_http_and_grpc_count_together() -> None:
    from tests.defer.gateway_fixtures import exchange

    both = Options(http=Address("127.0.0.1", 0), grpc=Address("127.0.0.1", 0))
    with Gateway(Service(FakeBackend()), both) as gateway, client(gateway) as ask:
        ask.infer("same", [tensor(X)])
        assert gateway.http is not None
        (told,) = exchange(gateway.http, "GET", "/v2/models/stats")[1]["model_stats"]
        assert told["inference_count"] == 1
