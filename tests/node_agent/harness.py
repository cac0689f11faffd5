"""Real agent processes, and a dispatcher made of raw sockets that shares no code with the product's."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import zmq
from onnx import TensorProto, helper, numpy_helper

from node_agent import messages as m

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 30.0
ENCODER = msgspec.msgpack.Encoder()
CONTROL = msgspec.msgpack.Decoder(m.ControlMessage)
DATA = msgspec.msgpack.Decoder(m.DataHeader)


def spec(name: str, *shape: int | str, dtype: str = "float32") -> m.TensorSpec:
    return m.TensorSpec(name, dtype, shape)


def model_bytes(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, Any]) -> bytes:
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializer=initializers)
    opset = [helper.make_opsetid("", 20)]
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=opset, ir_version=9)
    ).SerializeToString()


def value(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def affine(source: str, target: str, width: int, seed: int) -> tuple[bytes, np.ndarray]:
    """`target = relu(source @ w)` for rows of `width`, and its weights."""
    w = (np.random.default_rng(seed).standard_normal((width, width)) / np.sqrt(width)).astype(np.float32)
    nodes = [helper.make_node("MatMul", [source, "w"], ["pre"]), helper.make_node("Relu", ["pre"], [target])]
    return (
        model_bytes(nodes, [value(source, "n", width)], [value(target, "n", width)], {"w": w}),
        w,
    )


def identity(source: str = "x", target: str = "y") -> bytes:
    node = helper.make_node("Identity", [source], [target])
    return model_bytes([node], [value(source, "n")], [value(target, "n")], {})


def spin() -> bytes:
    """A model that multiplies a matrix by itself as often as its input says: seconds, or for ever."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["a_in", "a_in"], ["prod"]),
            helper.make_node("Clip", ["prod", "lo", "hi"], ["a_out"]),
            helper.make_node("Identity", ["cond_in"], ["cond_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("cond_in", TensorProto.BOOL, []),
            value("a_in", 64, 64),
        ],
        [helper.make_tensor_value_info("cond_out", TensorProto.BOOL, []), value("a_out", 64, 64)],
        initializer=[
            numpy_helper.from_array(np.float32(-1), "lo"),
            numpy_helper.from_array(np.float32(1), "hi"),
        ],
    )
    loop = helper.make_node("Loop", ["n", "", "start"], ["y"], body=body)
    start = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    return model_bytes([loop], [value("n", kind=TensorProto.INT64)], [value("y", 64, 64)], {"start": start})


def reshaped() -> bytes:
    """A model that fails on inputs whose second input is no possible shape."""
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    return model_bytes(
        [node], [value("x", "n"), value("shape", 2, kind=TensorProto.INT64)], [value("y", "a", "b")], {}
    )


def ref(data: bytes, suffix: str = ".onnx") -> m.FileRef:
    return m.FileRef(hashlib.sha256(data).hexdigest(), len(data), suffix)


class AgentProcess:
    """`python -m node_agent.cli` on free ports."""

    def __init__(self, name: str, store: Path, *arguments: str, program: list[str] | None = None) -> None:
        self.name = name
        command = program or [sys.executable, "-m", "node_agent.cli"]
        self.process = subprocess.Popen(
            [
                *command,
                *(
                    "--name",
                    name,
                    "--listen",
                    "127.0.0.1:0",
                    "--store",
                    str(store),
                    "--json",
                    "--threads",
                    "1",
                ),
                *arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, stderr = self.process.communicate(timeout=10)
            raise AssertionError(f"agent did not start: {stderr}")
        self.ready = json.loads(line)
        self.control: str = self.ready["control"]
        self.data: str = self.ready["data"]
        self.fetch: str = self.ready["fetch"]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Ends the process; its exit code and what it wrote to stderr."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        """Waits for the end that was asked for; the exit code and what was written to stderr."""
        try:
            _, stderr = self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _, stderr = self.process.communicate()
            raise AssertionError(f"agent {self.name} did not end: {stderr}") from None
        return self.process.returncode, stderr


class ControlLink:
    """A control connection: a DEALER that dialled an agent, or a ROUTER's view of one that dialled in."""

    def __init__(self, socket: Any, identity: bytes | None = None) -> None:
        self.socket = socket
        self.identity = identity
        self.ids = 0
        self.heartbeats: list[tuple[float, m.Heartbeat]] = []
        self.progress: list[m.Progress] = []

    def say(self, message: Any, payload: bytes | None = None) -> None:
        prefix = [] if self.identity is None else [self.identity]
        self.socket.send_multipart(
            [*prefix, ENCODER.encode(message), *([] if payload is None else [payload])]
        )

    def next(self, timeout: float = PATIENCE_S) -> Any:
        assert self.socket.poll(int(timeout * 1000)), "the agent says nothing"
        return CONTROL.decode(self.socket.recv_multipart()[-1])

    def answer(self, number: int, timeout: float = PATIENCE_S) -> Any:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            message = self.next(max(0.0, deadline - time.monotonic()))
            if isinstance(message, m.Heartbeat):
                self.heartbeats.append((time.monotonic(), message))
            elif isinstance(message, m.Progress):
                self.progress.append(message)
            elif message.id == number:
                return message
        raise AssertionError(f"no answer to request {number}")

    def ask(
        self, kind: Any, *fields: Any, payload: bytes | None = None, timeout: float = PATIENCE_S, **more: Any
    ) -> Any:
        self.ids += 1
        self.say(kind(self.ids, *fields, **more), payload)
        return self.answer(self.ids, timeout)

    def beat(self, wanted: Callable[[m.Heartbeat], bool], timeout: float = PATIENCE_S) -> m.Heartbeat:
        """The next heartbeat that is as wanted."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            message = self.next(max(0.0, deadline - time.monotonic()))
            if isinstance(message, m.Heartbeat):
                self.heartbeats.append((time.monotonic(), message))
                if wanted(message):
                    return message
        raise AssertionError("no heartbeat was as wanted")

    def hello(self) -> m.Welcome:
        answer = self.ask(m.Hello, 1, 1, "test", "dispatcher")
        assert isinstance(answer, m.Welcome), answer
        return answer

    def ship(self, *files: bytes, suffix: str = ".onnx") -> int:
        """Sends what the agent lacks; how many bytes that was."""
        refs = tuple(ref(data, suffix) for data in files)
        have = self.ask(m.Want, refs)
        assert isinstance(have, m.Have), have
        sent = 0
        for data, file, offset in zip(files, refs, have.offsets, strict=True):
            while offset < len(data):
                piece = data[offset : offset + m.CHUNK_BYTES]
                taken = self.ask(m.Chunk, file, offset, payload=piece)
                assert isinstance(taken, m.Taken), taken
                offset, sent = taken.offset, sent + len(piece)
        return sent

    def load(self, epoch: int, *hops: m.HopSpec, **more: Any) -> Any:
        return self.ask(m.Load, epoch, "test", hops, **more)


class Driver:
    """The data sockets of a dispatcher called `test`: it sends items to a first hop and takes the last one's."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.sockets: list[Any] = []
        self.results = self.socket(zmq.ROUTER)
        port = self.results.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self.peer = m.PeerRef("test", self.endpoint)
        self.fetch = self.socket(zmq.ROUTER)
        self.fetch_endpoint = f"tcp://127.0.0.1:{self.fetch.bind_to_random_port('tcp://127.0.0.1')}"

    def socket(self, kind: int) -> Any:
        made = self.context.socket(kind)
        made.setsockopt(zmq.LINGER, 0)
        self.sockets.append(made)
        return made

    def control(self, agent: AgentProcess) -> ControlLink:
        made = self.socket(zmq.DEALER)
        made.setsockopt(zmq.IPV6, int("[" in agent.control))
        made.connect(agent.control)
        link = ControlLink(made)
        link.hello()
        return link

    def dial(self, endpoint: str, greeting: Any = None) -> tuple[Any, list[Any]]:
        """Connects to a data-in port and greets; the socket and what was answered."""
        made = self.socket(zmq.DEALER)
        made.connect(endpoint)
        made.send(ENCODER.encode(greeting or m.Greeting(1, 1, "test")))
        answers = [self.header(made)]
        if isinstance(answers[0], m.Greeting):
            answers.append(self.header(made))
        return made, answers

    def header(self, socket: Any, timeout: float = PATIENCE_S) -> Any:
        assert socket.poll(int(timeout * 1000)), "nothing came"
        return DATA.decode(socket.recv_multipart()[0 if socket.type == zmq.DEALER else 1])

    def send(
        self, socket: Any, epoch: int, request: int, hop: int, arrays: dict[str, Any], remaining: int = -1
    ) -> None:
        headers = tuple(
            m.TensorHeader(name, array.dtype.name, array.shape, "raw", array.nbytes)
            for name, array in arrays.items()
        )
        item = m.Item(epoch, request, hop, remaining, headers, "00-trace")
        socket.send_multipart([ENCODER.encode(item), *(array.tobytes() for array in arrays.values())])

    def result(self, timeout: float = PATIENCE_S, credit: bool = True) -> tuple[Any, list[bytes]]:
        """The next item or failure that a last hop sends; greetings are answered, credit is granted."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            left = int(max(0.0, deadline - time.monotonic()) * 1000) + 1
            if not self.results.poll(left):
                continue
            identity, first, *frames = self.results.recv_multipart()
            header = DATA.decode(first)
            if isinstance(header, m.Greeting):
                self.results.send_multipart([identity, ENCODER.encode(m.Greeting(1, 1, "test"))])
                if credit:
                    self.results.send_multipart([identity, ENCODER.encode(m.Credit(1000, 1 << 30))])
            elif isinstance(header, m.Probe):
                self.results.send_multipart([identity, ENCODER.encode(m.ProbeEcho(header.id))])
            else:
                return header, frames
        raise AssertionError("no result came")


def arrays_of(header: m.Item, frames: list[bytes]) -> dict[str, np.ndarray]:
    return {
        tensor.name: np.frombuffer(frame, tensor.dtype).reshape(tensor.shape)
        for tensor, frame in zip(header.tensors, frames, strict=True)
    }
