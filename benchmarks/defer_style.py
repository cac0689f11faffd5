"""A chain as DEFER builds it (arXiv 2201.06769), to be measured beside ours.

Cuts where one tensor crosses, with equal numbers of layers between them (for residual networks at the residual
additions, as in DEFER's own example: every second one for ResNet-50 on eight nodes). Activations are compressed
without loss by ZFP and LZ4, on squeezed shapes: DEFER's own call expands them. TCP, 512 KiB at a time. In each
node one thread receives and decompresses; one thread computes, compresses and sends. What DEFER repeats of
residual layers in its partitions is left out.

    python -m benchmarks.defer_style HOST PORT NEXT_HOST NEXT_PORT --model partition.onnx

Prints `ready`. Without zfpy, LZ4 alone.
"""

from __future__ import annotations

import argparse
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from queue import Queue
from typing import TYPE_CHECKING, Any

import lz4.frame
import numpy as np
import numpy.typing as npt

try:
    import zfpy
except ImportError:
    zfpy = None

if TYPE_CHECKING:
    from partitioner import BlockChain

CHUNK = 512 * 1024
QUEUE = 4
CODEC = "LZ4" if zfpy is None else "ZFP + LZ4"

Array = npt.NDArray[np.float32]


def cuts(chain: BlockChain, parts: int) -> tuple[int, ...]:
    """Op positions where DEFER would cut a chain of one block per op."""
    single = [n for n in range(1, len(chain.blocks)) if len(chain.boundaries[n].tensors) == 1]
    added = [n for n in single if chain.blocks[n - 1].op_types == ("Add",)]
    candidates = added if len(added) >= 2 * parts else single
    wanted = [len(candidates) * number // parts for number in range(1, parts)]
    return tuple(chain.boundaries[candidates[index]].position for index in wanted)


def compress(array: Array) -> bytes:
    """One activation on the wire: its shape, then its bytes."""
    squeezed = np.ascontiguousarray(np.squeeze(array))
    small = squeezed.tobytes() if zfpy is None else zfpy.compress_numpy(squeezed)
    shape = struct.pack(f"<B{array.ndim}q", array.ndim, *array.shape)
    return shape + bytes(lz4.frame.compress(small))


def decompress(data: bytes) -> Array:
    """The activation in `compress`'s bytes."""
    rank = data[0]
    shape = struct.unpack_from(f"<{rank}q", data, 1)
    small = lz4.frame.decompress(data[1 + 8 * rank :])
    array = np.frombuffer(small, np.float32) if zfpy is None else zfpy.decompress_numpy(small)
    return array.reshape(shape)


def send(connection: socket.socket, data: bytes) -> None:
    """A length, then the bytes in pieces."""
    connection.sendall(struct.pack("<q", len(data)))
    for start in range(0, len(data), CHUNK):
        connection.sendall(data[start : start + CHUNK])


def receive(connection: socket.socket) -> bytes:
    """What `send` has sent.

    Raises:
        ConnectionError: The peer is gone.
    """
    (size,) = struct.unpack("<q", _exactly(connection, 8))
    return _exactly(connection, size)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(min(CHUNK, size - len(data)))
        if not piece:
            raise ConnectionError("the peer closed the connection")
        data += piece
    return bytes(data)


def connect(host: str, port: int, timeout: float = 60.0) -> socket.socket:
    """A connection to a node that may not listen yet."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=5.0)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            connection.settimeout(None)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection


class Pipeline:
    """Both ends of a chain.

    Args:
        first: Host and port of the first node.
        last: Host and port to bind, where the last node sends.
        name: The model's input.
    """

    def __init__(self, first: tuple[str, int], last: tuple[str, int], name: str) -> None:
        self._name = name
        self._listener = socket.create_server(last)
        self._out = connect(*first)
        self._in: socket.socket | None = None

    def run(self, inputs: Sequence[Mapping[str, Any]], window: int) -> list[tuple[float, Array]]:
        """Many requests, `window` of them under way: when each result came, and the result."""
        room = threading.Semaphore(window)

        def feed() -> None:
            for one in inputs:
                room.acquire()
                send(self._out, compress(one[self._name]))

        feeder = threading.Thread(target=feed, daemon=True)
        feeder.start()
        if self._in is None:
            self._in, _ = self._listener.accept()
        results = []
        for _ in inputs:
            array = decompress(receive(self._in))
            results.append((time.perf_counter(), array))
            room.release()
        feeder.join()
        return results

    def close(self) -> None:
        """Closes both ends."""
        for end in (self._out, self._listener, self._in):
            if end is not None:
                end.close()


def main() -> None:
    """One node, until its peers are gone."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.defer_style", description="one node of a chain"
    )
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("next_host")
    parser.add_argument("next_port", type=int)
    parser.add_argument("--model", required=True)
    arguments = parser.parse_args()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(arguments.model, options, providers=["CPUExecutionProvider"])
    (source,), (sink,) = session.get_inputs(), session.get_outputs()
    listener = socket.create_server((arguments.host, arguments.port))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    queue: Queue[Array | None] = Queue(QUEUE)

    def work() -> None:
        following = connect(arguments.next_host, arguments.next_port)
        while (array := queue.get()) is not None:
            (result,) = session.run([sink.name], {source.name: array})
            send(following, compress(result))

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    connection, _ = listener.accept()
    try:
        while True:
            queue.put(decompress(receive(connection)))
    except ConnectionError:
        queue.put(None)
        worker.join()


if __name__ == "__main__":
    main()
