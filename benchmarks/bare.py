"""The peer that ours is measured against: a pipeline of pyzmq PUSH/PULL sockets and nothing else, written to be fast.

No planner, no dispatcher, no replay, no deadlines, no codec: each stage is one process with one thread that receives,
runs and sends, while ZeroMQ's own thread overlaps the transfers. Headers are msgspec arrays, tensors are frames of
their own that are not copied. What it costs is what moving the tensors costs in Python.

    python -m benchmarks.bare IN OUT [--model partition.onnx --send NAME …]

IN is bound, OUT is connected; without a model the frames are handed on. Prints `ready`.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import zmq

COPY_BELOW = 64 * 1024
"""pyzmq copies shorter frames anyway; asking for it is cheaper than a frame object."""

QUEUE = 4
"""Messages that wait at each end of a connection; enough to keep a stage busy, few enough to bound memory."""

Arrays = Mapping[str, npt.NDArray[Any]]


class Tensor(msgspec.Struct, array_like=True):
    """One tensor frame."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Header(msgspec.Struct, array_like=True):
    """First frame of a message."""

    request: int
    tensors: list[Tensor]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Header).decode


def open_push(context: zmq.Context[Any], endpoint: str) -> zmq.Socket[bytes]:
    """A connected PUSH socket."""
    socket: zmq.Socket[bytes] = context.socket(zmq.PUSH)
    socket.setsockopt(zmq.SNDHWM, QUEUE)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(endpoint)
    return socket


def open_pull(context: zmq.Context[Any], endpoint: str) -> zmq.Socket[bytes]:
    """A bound PULL socket."""
    socket: zmq.Socket[bytes] = context.socket(zmq.PULL)
    socket.setsockopt(zmq.RCVHWM, QUEUE)
    socket.bind(endpoint)
    return socket


def send(socket: zmq.Socket[bytes], request: int, arrays: Arrays) -> None:
    """Sends the arrays as one message; they must be contiguous, and left alone afterwards."""
    header = Header(request, [Tensor(name, array.dtype.str, array.shape) for name, array in arrays.items()])
    socket.send(_encode(header), zmq.SNDMORE)
    last = len(arrays) - 1
    for index, array in enumerate(arrays.values()):
        socket.send(array.data, zmq.SNDMORE if index < last else 0, copy=array.nbytes < COPY_BELOW)


def receive(socket: zmq.Socket[bytes]) -> tuple[int, dict[str, npt.NDArray[Any]]]:
    """One message; the arrays lie on ZeroMQ's memory."""
    header = _decode(socket.recv())
    arrays = {}
    for tensor in header.tensors:
        kind = np.dtype(tensor.dtype)
        size = kind.itemsize
        for dimension in tensor.shape:
            size *= dimension
        frame: Any = socket.recv(copy=size < COPY_BELOW)
        arrays[tensor.name] = np.frombuffer(frame, kind).reshape(tensor.shape)
    return header.request, arrays


def relay(source: zmq.Socket[bytes], sink: zmq.Socket[bytes]) -> None:
    """Hands messages on until the context ends: header decoded and encoded as a stage would, tensors by reference."""
    while True:
        header = _decode(source.recv())
        sink.send(_encode(header), zmq.SNDMORE)
        last = len(header.tensors) - 1
        for index in range(last + 1):
            frame = source.recv(copy=False)
            sink.send(frame, zmq.SNDMORE if index < last else 0, copy=False)


def compute(source: zmq.Socket[bytes], sink: zmq.Socket[bytes], model: str, names: Sequence[str]) -> None:
    """Runs a partition on each message until the context ends; hands on `names`, made here or passed through."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    inputs = [value.name for value in session.get_inputs()]
    outputs = [value.name for value in session.get_outputs()]
    while True:
        request, arrays = receive(source)
        results = session.run(outputs, {name: arrays[name] for name in inputs})
        made = dict(zip(outputs, results, strict=True))
        send(sink, request, {name: made[name] if name in made else arrays[name] for name in names})


class Pipeline:
    """Both ends of a chain of stages, for whoever measures it.

    Args:
        first: Endpoint of the first stage.
        last: Endpoint to bind, where the last stage sends.
    """

    def __init__(self, first: str, last: str) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._push = open_push(self._context, first)
        self._pull = open_pull(self._context, last)
        self._number = 0

    def put(self, inputs: Arrays) -> None:
        """Sends a request."""
        self._number += 1
        send(self._push, self._number, inputs)

    def get(self) -> dict[str, npt.NDArray[Any]]:
        """The next result."""
        return receive(self._pull)[1]

    def infer(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """One request, waited for."""
        self.put(inputs)
        return self.get()

    def run(self, inputs: Sequence[Arrays], window: int) -> list[dict[str, npt.NDArray[Any]]]:
        """Many requests, `window` of them under way."""
        results = []
        waiting = deque(inputs)
        under_way = 0
        while waiting or under_way:
            while waiting and under_way < window:
                self.put(waiting.popleft())
                under_way += 1
            results.append(self.get())
            under_way -= 1
        return results

    def close(self) -> None:
        """Closes both ends."""
        self._context.destroy(linger=0)


def main() -> None:
    """One stage, until it is ended."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bare", description="one stage of a bare pipeline"
    )
    parser.add_argument("source", metavar="IN")
    parser.add_argument("sink", metavar="OUT")
    parser.add_argument("--model")
    parser.add_argument("--send", nargs="*", default=[])
    arguments = parser.parse_args()
    context: zmq.Context[Any] = zmq.Context()
    source = open_pull(context, arguments.source)
    sink = open_push(context, arguments.sink)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    if arguments.model:
        compute(source, sink, arguments.model, arguments.send)
    else:
        relay(source, sink)


if __name__ == "__main__":
    main()
