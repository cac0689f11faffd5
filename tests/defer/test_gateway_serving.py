"""The whole house behind the gateway: real agents, and the clients that people have (tritonclient, curl)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from defer.dispatcher.bringup import Order
from defer.dispatcher.daemon import Daemon
from defer.documents.address import Address
from defer.documents.cluster import loads_cluster
from defer.gateway.backend import LocalBackend
from defer.gateway.datatypes import join_bytes
from defer.gateway.repository import Repository
from defer.gateway.server import HELPERS, Gateway, Options
from defer.gateway.service import Service
from defer.local_agents import local_agents, read_line
from node_agent.engines.onnxruntime_cpu import QUIET
from tests.defer.gateway_fixtures import grpc_at_work

pytestmark = [
    pytest.mark.integration,
    # What tritonclient's own libraries warn of is not ours to mend.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

TYPES = {
    "BOOL": (TensorProto.BOOL, np.array([True, False, True])),
    "UINT8": (TensorProto.UINT8, np.array([0, 1, 255], np.uint8)),
    "UINT16": (TensorProto.UINT16, np.array([0, 1, 65535], np.uint16)),
    "UINT32": (TensorProto.UINT32, np.array([0, 1, 2**32 - 1], np.uint32)),
    "UINT64": (TensorProto.UINT64, np.array([0, 1, 2**64 - 1], np.uint64)),
    "INT8": (TensorProto.INT8, np.array([-128, 0, 127], np.int8)),
    "INT16": (TensorProto.INT16, np.array([-(2**15), 0, 2**15 - 1], np.int16)),
    "INT32": (TensorProto.INT32, np.array([-(2**31), 0, 2**31 - 1], np.int32)),
    "INT64": (TensorProto.INT64, np.array([-(2**63), 0, 2**63 - 1], np.int64)),
    "FP16": (TensorProto.FLOAT16, np.array([-1.5, 0, 65504], np.float16)),
    "FP32": (TensorProto.FLOAT, np.array([-1.5, 0, 3e38], np.float32)),
    "FP64": (TensorProto.DOUBLE, np.array([-1.5, 0, 1e300], np.float64)),
    "BF16": (TensorProto.BFLOAT16, np.array([-1.5, 0, 2.0], ml_dtypes.bfloat16)),
}
"""Each number type of the protocol: ONNX's name of it, and values up to its ends."""

WORDS = np.array(["", "naïve", "a\nb", "日本" * 200], object)


def echo_model() -> onnx.ModelProto:
    """One input and one output of every number type, with a free dimension; each output equals its input."""
    inputs = [helper.make_tensor_value_info(f"in_{name}", kind, ["N"]) for name, (kind, _) in TYPES.items()]
    outputs = [helper.make_tensor_value_info(f"out_{name}", kind, ["N"]) for name, (kind, _) in TYPES.items()]
    nodes = [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in TYPES]
    return _model(helper.make_graph(nodes, "echo", inputs, outputs))


def words_model() -> onnx.ModelProto:
    """Text in, the same text twice out."""
    given = helper.make_tensor_value_info("words", TensorProto.STRING, ["N"])
    made = helper.make_tensor_value_info("twice", TensorProto.STRING, ["N"])
    node = helper.make_node("StringConcat", ["words", "words"], ["twice"])
    return _model(helper.make_graph([node], "words", [given], [made]))


def add_model(kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """y = x + x, of any number of rows."""
    given = helper.make_tensor_value_info("x", kind, ["N", 8])
    made = helper.make_tensor_value_info("y", kind, ["N", 8])
    return _model(helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "add", [given], [made]))


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def cluster_text(agents: Any, listen: str = "127.0.0.1:0") -> str:
    lines = [
        f'[dispatcher]\nlisten = "{listen}"\nreplan = "never"\n[network]\nbandwidth = "1 Gbit/s"\ndelay = "0.1 ms"'
    ]
    lines += [f'[[device]]\nname = "{agent.name}"\naddress = "{agent.address}"' for agent in agents]
    return "\n".join(lines)


@pytest.fixture(scope="module", autouse=True)
def started_before_the_first_test() -> Iterator[None]:
    """Threads that tritonclient's libraries start once and never end must not be taken for a test's."""
    import gevent

    gevent.get_hub().threadpool.spawn(lambda: None).get()
    with grpc_at_work():
        yield


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    onnx.save(echo_model(), folder / "echo.onnx")
    onnx.save(words_model(), folder / "words.onnx")
    (folder / "add" / "1").mkdir(parents=True)
    onnx.save(add_model(), folder / "add" / "1" / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def gateway(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A dispatcher with two agents behind a gateway, serving `echo`, `words` and `add`."""
    folder = tmp_path_factory.mktemp("house")
    with local_agents(["a", "b"], folder) as agents:
        cluster = loads_cluster(cluster_text(agents))
        with Daemon(cluster, folder / "state") as daemon:
            daemon.connect(20)
            held = Repository(repository)
            for name, path in held.models().items():
                daemon.deployments.bring_up(Order(name, path), lambda _what, _fraction: None)
            service = Service(LocalBackend(daemon), repository=held)
            with Gateway(service, Options(Address("127.0.0.1", 0), Address("127.0.0.1", 0))) as running:
                started(running.helpers, HELPERS)
                started(daemon._background._threads, 2)
                started(daemon.recovery._links._jobs, 2)
                yield running


def started(pool: ThreadPoolExecutor, threads: int) -> None:
    """A pool starts its threads when they are first needed; no test must be blamed for them."""
    together = threading.Barrier(threads)
    for done in [pool.submit(together.wait, 10) for _ in range(threads)]:
        done.result(10)


def given(module: Any, name: str, array: np.ndarray, datatype: str, **how: Any) -> Any:
    tensor = module.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, **how)
    return tensor


def everything(module: Any, **how: Any) -> list[Any]:
    return [given(module, f"in_{name}", values, name, **how) for name, (_, values) in TYPES.items()]


def check_everything(answer: Any) -> None:
    for name, (_, values) in TYPES.items():
        got = answer.as_numpy(f"out_{name}")
        np.testing.assert_array_equal(got, values, err_msg=name)
        assert got.dtype == values.dtype


# ------------------------------------------------------------------------------------------------------- HTTP


def test_tritonclient_http_sees_the_server(gateway: Gateway) -> None:
    import tritonclient.http as triton

    with triton.InferenceServerClient(str(gateway.http)) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("add")
        assert client.is_model_ready("add", "1")
        assert not client.is_model_ready("none")
        assert client.get_server_metadata()["name"] == "defer"
        assert client.get_model_metadata("add")["inputs"] == [
            {"name": "x", "datatype": "FP32", "shape": [-1, 8]}
        ]
        assert client.get_model_config("add")["output"] == [
            {"name": "y", "data_type": "TYPE_FP32", "dims": [-1, 8]}
        ]
        told = {tensor["datatype"] for tensor in client.get_model_metadata("echo", "1")["inputs"]}
        assert told == set(TYPES)
        index = {one["name"]: one["state"] for one in client.get_model_repository_index()}
        assert index == dict.fromkeys(("add", "echo", "words"), "READY")
        (statistics,) = client.get_inference_statistics("add", "1")["model_stats"]
        assert statistics["name"] == "add"


def test_every_number_type_through_agents_in_binary(gateway: Gateway) -> None:
    import tritonclient.http as triton

    with triton.InferenceServerClient(str(gateway.http)) as client:
        answer = client.infer("echo", everything(triton), request_id="7")
        check_everything(answer)
        assert answer.get_response()["id"] == "7"
        outputs = [triton.InferRequestedOutput("out_INT8"), triton.InferRequestedOutput("out_FP16")]
        answer = client.infer("echo", everything(triton), outputs=outputs)
        assert [output["name"] for output in answer.get_response()["outputs"]] == ["out_INT8", "out_FP16"]
        np.testing.assert_array_equal(answer.as_numpy("out_FP16"), TYPES["FP16"][1])


def test_every_number_type_through_agents_in_json(gateway: Gateway) -> None:
    asked = {
        "inputs": [
            {"name": f"in_{name}", "shape": [3], "datatype": name, "data": values.tolist()}
            for name, (_, values) in TYPES.items()
        ]
    }
    done = curl(gateway, "/v2/models/echo/infer", "-d", json.dumps(asked))
    for output, (name, (_, values)) in zip(done["outputs"], TYPES.items(), strict=True):
        assert (output["name"], output["datatype"]) == (f"out_{name}", name)
        assert np.array(output["data"], values.dtype).tolist() == values.tolist()


@pytest.mark.parametrize("binary", [True, False])
def test_text_through_agents(gateway: Gateway, binary: bool) -> None:
    import tritonclient.http as triton

    with triton.InferenceServerClient(str(gateway.http)) as client:
        words = given(triton, "words", WORDS, "BYTES", binary_data=binary)
        answer = client.infer("words", [words], outputs=[triton.InferRequestedOutput("twice", binary)])
        got = answer.as_numpy("twice")
    assert [one.decode() if isinstance(one, bytes) else one for one in got] == [word * 2 for word in WORDS]


def test_text_that_is_not_utf8_is_refused(gateway: Gateway) -> None:
    import tritonclient.http as triton

    with triton.InferenceServerClient(str(gateway.http)) as client:
        wrong = triton.InferInput("words", [1], "BYTES")
        wrong._raw_data = join_bytes([b"\xff\xfe"])
        wrong._parameters["binary_data_size"] = len(wrong._raw_data)
        with pytest.raises(triton.InferenceServerException, match="not UTF-8"):
            client.infer("words", [wrong])


def test_large_tensors_and_compression(gateway: Gateway) -> None:
    import tritonclient.http as triton

    values = np.random.default_rng(1).integers(0, 4, (50_000, 8)).astype(np.float32)  # 1.6 MB
    with triton.InferenceServerClient(str(gateway.http)) as client:
        x = [given(triton, "x", values, "FP32")]
        for coding in (None, "gzip", "deflate"):
            answer = client.infer(
                "add", x, request_compression_algorithm=coding, response_compression_algorithm=coding
            )
            np.testing.assert_array_equal(answer.as_numpy("y"), values * 2)


def test_several_requests_at_once(gateway: Gateway) -> None:
    import tritonclient.http as triton

    with triton.InferenceServerClient(str(gateway.http), concurrency=8) as client:
        under_way = []
        for number in range(32):
            x = [given(triton, "x", np.full((1, 8), number, np.float32), "FP32")]
            under_way.append(client.async_infer("add", x))
        for number, request in enumerate(under_way):
            np.testing.assert_array_equal(request.get_result().as_numpy("y"), np.full((1, 8), 2 * number))


def test_tritonclient_http_aio(gateway: Gateway) -> None:
    import tritonclient.http.aio as triton

    async def ask() -> None:
        async with triton.InferenceServerClient(str(gateway.http)) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("echo")
            assert (await client.get_model_metadata("words"))["name"] == "words"
            assert (await client.get_inference_statistics())["model_stats"]
            check_everything(await client.infer("echo", everything(triton)))
            answers = await asyncio.gather(
                *(
                    client.infer("add", [given(triton, "x", np.full((1, 8), number, np.float32), "FP32")])
                    for number in range(16)
                )
            )
            assert [float(answer.as_numpy("y")[0, 0]) for answer in answers] == [2.0 * n for n in range(16)]
            with pytest.raises(triton.InferenceServerException) as caught:
                await client.infer("none", [])
            assert caught.value.status() == "404"

    asyncio.run(ask())


def test_wrong_requests_of_tritonclient_http(gateway: Gateway) -> None:
    import tritonclient.http as triton

    x = np.zeros((1, 8), np.float32)
    with triton.InferenceServerClient(str(gateway.http)) as client:

        def refused(status: str, *inputs: Any, model: str = "add", **more: Any) -> str:
            with pytest.raises(triton.InferenceServerException) as caught:
                client.infer(model, list(inputs), **more)
            assert caught.value.status() == status
            return str(caught.value)

        assert "no model 'none'" in refused("404", given(triton, "x", x, "FP32"), model="none")
        assert "no version" in refused("404", given(triton, "x", x, "FP32"), model_version="9")
        assert "'x' is missing" in refused("400")
        assert "no input 'z'" in refused("400", given(triton, "z", x, "FP32"))
        assert "element type int32" in refused("400", given(triton, "x", x.astype(np.int32), "INT32"))
        assert "expected x" in refused("400", given(triton, "x", x[:, :3], "FP32"))
        wanted = [triton.InferRequestedOutput("q")]
        assert "no output 'q'" in refused("400", given(triton, "x", x, "FP32"), outputs=wanted)
        assert "sequence" in refused("400", given(triton, "x", x, "FP32"), sequence_id=5)
        late = refused("504", given(triton, "x", np.zeros((4000, 8), np.float32), "FP32"), timeout=1)
        assert "within" in late or "deadline" in late
        client.infer("add", [given(triton, "x", x, "FP32")], priority=1, timeout=10_000_000)


def test_unload_and_load_through_the_repository(gateway: Gateway) -> None:
    import tritonclient.http as triton

    with triton.InferenceServerClient(str(gateway.http)) as client:
        client.unload_model("words")
        assert not client.is_model_ready("words")
        index = {one["name"]: one["state"] for one in client.get_model_repository_index()}
        assert index["words"] == "UNAVAILABLE"
        with pytest.raises(triton.InferenceServerException, match="words"):
            client.infer("words", [given(triton, "words", WORDS, "BYTES")])
        client.load_model("words")
        assert client.is_model_ready("words")
        assert client.infer("words", [given(triton, "words", WORDS, "BYTES")]).as_numpy("twice") is not None
        # Other batching than before, where the first dimension is free; what is served stays where it is not.
        config = json.dumps({"dynamic_batching": {"preferred_batch_size": [2, 4]}})
        client.load_model("words", config=config)
        assert gateway.service.backend._daemon.deployments.orders["words"].batching.sizes == (2, 4)
        client.load_model("words")
        assert client.infer("words", [given(triton, "words", WORDS, "BYTES")]).as_numpy("twice") is not None
        for wrong in (lambda: client.load_model("none"), lambda: client.unload_model("none")):
            with pytest.raises(triton.InferenceServerException, match="none"):
                wrong()


# ------------------------------------------------------------------------------------------------------- gRPC


def test_every_type_through_agents_by_grpc(gateway: Gateway) -> None:
    import tritonclient.grpc as triton

    with triton.InferenceServerClient(str(gateway.grpc)) as client:
        assert client.is_server_ready()
        assert client.is_model_ready("echo", "1")
        check_everything(client.infer("echo", everything(triton)))
        words = client.infer("words", [given(triton, "words", WORDS, "BYTES")]).as_numpy("twice")
        assert [word.decode() for word in words] == [word * 2 for word in WORDS]
        values = np.random.default_rng(1).standard_normal((150_000, 8)).astype(np.float32)
        for coding in (None, "gzip"):
            answer = client.infer("add", [given(triton, "x", values, "FP32")], compression_algorithm=coding)
            np.testing.assert_array_equal(answer.as_numpy("y"), values * 2)
        assert client.get_inference_statistics("add").model_stats[0].inference_stats.compute_infer.count
        client.unload_model("words")
        ready = {one.name for one in client.get_model_repository_index().models if one.state == "READY"}
        assert ready == {"add", "echo"}
        client.load_model("words")
        assert client.is_model_ready("words")


def test_a_stream_through_agents(gateway: Gateway) -> None:
    import tritonclient.grpc as triton

    answers: list[Any] = []
    done = threading.Event()

    def heard(result: Any, error: Any) -> None:
        answers.append(error or result.as_numpy("y")[0, 0])
        if len(answers) == 30:
            done.set()

    with triton.InferenceServerClient(str(gateway.grpc)) as client:
        client.start_stream(heard)
        for number in range(30):
            client.async_stream_infer(
                "add", [given(triton, "x", np.full((1, 8), number, np.float32), "FP32")]
            )
        assert done.wait(20)
        client.stop_stream()
    assert answers == [2 * number for number in range(30)]


def test_tritonclient_grpc_aio(gateway: Gateway) -> None:
    import tritonclient.grpc.aio as triton

    async def ask() -> None:
        async with triton.InferenceServerClient(str(gateway.grpc)) as client:
            assert await client.is_server_live()
            assert await client.is_model_ready("add")
            assert (await client.get_server_metadata()).name == "defer"
            assert (await client.get_model_metadata("echo")).platform == "defer_onnx"
            assert (await client.get_model_config("add")).config.backend == "defer"
            check_everything(await client.infer("echo", everything(triton)))
            answers = await asyncio.gather(
                *(
                    client.infer("add", [given(triton, "x", np.full((1, 8), number, np.float32), "FP32")])
                    for number in range(16)
                )
            )
            assert [float(answer.as_numpy("y")[0, 0]) for answer in answers] == [2.0 * n for n in range(16)]
            with pytest.raises(triton.InferenceServerException) as caught:
                await client.infer("none", [])
            assert caught.value.status() == "StatusCode.NOT_FOUND"

    asyncio.run(ask())


# ------------------------------------------------------------------------------------------------------- curl


def curl(gateway: Gateway, path: str, *more: str) -> Any:
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "20", *more, f"http://{gateway.http}{path}"],
        capture_output=True,
        check=True,
        timeout=30,
    )
    return json.loads(done.stdout)


def test_curl(gateway: Gateway, tmp_path: Path) -> None:
    assert curl(gateway, "/v2/health/live") == {"live": True}
    assert curl(gateway, "/v2/models/add")["versions"] == ["1"]
    asked = {"inputs": [{"name": "x", "shape": [1, 8], "datatype": "FP32", "data": list(range(8))}]}
    told = curl(gateway, "/v2/models/add/infer", "-d", json.dumps(asked))
    assert told["outputs"][0]["data"] == [2 * n for n in range(8)]
    values = np.random.default_rng(2).standard_normal((40_000, 8)).astype(np.float32)
    (tmp_path / "x.bin").write_bytes(values.tobytes())
    answer = subprocess.run(
        [
            *("curl", "-sS", "-i", "--max-time", "20", "--data-binary", f"@{tmp_path / 'x.bin'}"),
            *("-H", "Inference-Header-Content-Length: 0", f"http://{gateway.http}/v2/models/add/infer"),
        ],
        capture_output=True,
        check=True,
        timeout=30,
    ).stdout
    assert answer.endswith((values * 2).tobytes())
    assert curl(gateway, "/v2/models/none/infer", "-d", "{}")["error"]


# --------------------------------------------------------------------------------------------- as processes


def test_serve_and_a_gateway_of_its_own(repository: Path, tmp_path: Path) -> None:
    import tritonclient.http as triton

    with local_agents(["a"], tmp_path) as agents:
        (tmp_path / "cluster.toml").write_text(cluster_text(agents))
        environment = os.environ | {QUIET[0]: QUIET[1]}
        options = ["--model", str(repository / "add" / "1" / "model.onnx"), "--name", "add", "--json"]
        serve = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "defer",
                "serve",
                "--cluster",
                "cluster.toml",
                "--http",
                "127.0.0.1:0",
                *options,
            ],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        front = None
        try:
            ready: dict[str, Any] = {}
            while "ready" not in ready:
                ready = json.loads(read_line(serve, 60))
            where = ["--http", "127.0.0.1:0", "--dispatcher", ready["ready"], "--repository", str(repository)]
            front = subprocess.Popen(
                [sys.executable, "-m", "defer", "gateway", *where, "--json"],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            addresses = [ready["http"], json.loads(read_line(front, 60))["http"]]
            for address in addresses:
                with triton.InferenceServerClient(address) as client:
                    x = np.arange(8, dtype=np.float32).reshape(1, 8)
                    assert client.is_server_ready()
                    got = client.infer("add", [given(triton, "x", x, "FP32")]).as_numpy("y")
                    np.testing.assert_array_equal(got, x * 2)
            with triton.InferenceServerClient(addresses[1]) as client:
                client.load_model("echo")
                check_everything(client.infer("echo", everything(triton)))
                client.unload_model("echo")
                assert not client.is_model_ready("echo")
        finally:
            codes = []
            for process in filter(None, (front, serve)):
                process.send_signal(signal.SIGTERM)
                codes.append(process.wait(30))
                assert process.stdout is not None
                process.stdout.close()
            assert not any(codes), codes
