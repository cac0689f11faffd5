"""Load on a server of the Open Inference Protocol v2, or on a dispatcher, from one process; prints JSON.

    python -m benchmarks.gateway_load '{"protocol": "http", "address": "127.0.0.1:8000", "runs": […]}'

One thread, one `epoll`, a keep-alive connection per client that sends its next request when its answer is whole. A
request is written from one buffer and an answer is read into one: nothing is built, parsed or copied per request but
the head of the answer. So the load takes little of the core that it runs on, and as much with every server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from defer.client import Client

WARM_S = 60.0
"""Seconds in which every client must have had its first answer."""

LENGTH_HEADER = b"inference-header-content-length:"


def request_of(path: str, host: str, shape: Sequence[int], name: str) -> tuple[bytes, np.ndarray]:
    """An inference request with its tensor in binary form, and the tensor."""
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    raw = array.tobytes()
    tensor = {
        "name": name,
        "shape": list(shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(raw)},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    lines = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {len(head)}\r\nContent-Length: {len(head) + len(raw)}\r\n\r\n"
    )
    return lines.encode() + head + raw, array


class Connection:
    """One client.

    Args:
        address: The server's.
        request: What it sends again and again.
        room: Bytes of an answer, at most.
    """

    __slots__ = ("_at", "_buffer", "_end", "_left", "_request", "begun", "head", "socket")

    def __init__(self, address: tuple[str, int], request: bytes, room: int) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self._request = memoryview(request)
        self._buffer = memoryview(bytearray(room))
        self._left = self._request[:0]
        self._at = self._end = 0
        self.head = b""
        self.begun = 0.0

    def begin(self) -> bool:
        """Send the next request; whether some of it is left."""
        self.begun = time.perf_counter()
        self._left = self._request
        self._at = self._end = 0
        return self.write()

    def write(self) -> bool:
        """Send what is left; whether some of it still is."""
        while self._left:
            try:
                self._left = self._left[self.socket.send(self._left) :]
            except BlockingIOError:
                return True
        return False

    def read(self) -> bool:
        """Read what has come; whether the answer is whole.

        Raises:
            SystemExit: It is no good one.
        """
        try:
            count = self.socket.recv_into(self._buffer[self._at :])
        except BlockingIOError:
            return False
        if not count:
            raise SystemExit("the server closed the connection")
        self._at += count
        if not self._end:
            self._read_head()
        return bool(self._end) and self._at >= self._end

    def _read_head(self) -> None:
        head, found, _ = bytes(self._buffer[: min(self._at, 4096)]).partition(b"\r\n\r\n")
        if not found:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"the server answered {bytes(self._buffer[: self._at])[:400]!r}")
        self.head = head.lower()
        self._end = len(head) + 4 + int(self._value(b"content-length:"))

    def _value(self, name: bytes) -> bytes:
        found = self.head.find(b"\r\n" + name)
        if found < 0:
            raise SystemExit(f"the answer has no {name.decode()} {self.head!r}")
        return self.head[found + 2 + len(name) :].partition(b"\r\n")[0]

    def tensor(self) -> np.ndarray:
        """The only output of the answer."""
        end = len(self.head) + 4
        length = int(self._value(LENGTH_HEADER))
        return np.frombuffer(self._buffer[end + length : self._end], np.float32)


class Measured:
    """What a run finds: latencies of the requests that end in its time, and processor time of the servers meanwhile.

    Args:
        seconds: Its time, which begins a fifth of it after `begin`.
    """

    processes: ClassVar[list[int]] = []
    """The servers'."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._latencies: list[float] = []
        self._cpu = self._after = 0.0
        self.start = self.end = math.inf
        self._all = 0

    def begin(self) -> None:
        """Everybody was answered once: soon it counts."""
        self.start = time.perf_counter() + self._seconds / 5
        self.end = self.start + self._seconds
        self._cpu = self._spent()

    def ended(self, begun: float) -> None:
        """A request that began then has ended now."""
        now = time.perf_counter()
        self._all += self.start < math.inf and now < self.end
        if self.start <= now < self.end:
            self._latencies.append(now - begun)

    def told(self) -> dict[str, float | None]:
        """Requests per second, seconds of latency, seconds of the servers' processor time per request."""
        p50, p99 = np.quantile(self._latencies, [0.5, 0.99]) if self._latencies else (math.nan, math.nan)
        return {
            "rate": len(self._latencies) / self._seconds,
            "p50": float(p50),
            "p99": float(p99),
            "cpu": (self._after - self._cpu) / max(1, self._all),
        }

    def stop(self) -> None:
        """The time is over."""
        self._after = self._spent()

    def _spent(self) -> float:
        ticks = 0
        for process in self.processes:
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def drive(
    address: tuple[str, int],
    request: bytes,
    room: int,
    clients: int,
    seconds: float,
    answer: np.ndarray | None,
) -> Measured:
    """Keep `clients` connections busy for `seconds`.

    Args:
        address: The server's.
        request: What is sent.
        room: Bytes of an answer, at most.
        clients: How many connections.
        seconds: How long, from when every client was answered once.
        answer: What each client's first answer must hold; None where only its form is checked.
    """
    connections = [Connection(address, request, room) for _ in range(clients)]
    poll = select.epoll()
    by_number = {connection.socket.fileno(): connection for connection in connections}
    reads, both = select.EPOLLIN, select.EPOLLIN | select.EPOLLOUT
    measured = Measured(seconds)
    unchecked = set(by_number)
    patience = time.perf_counter() + WARM_S
    try:
        for number, connection in by_number.items():
            poll.register(number, both if connection.begin() else reads)
        while (now := time.perf_counter()) < min(measured.end, patience):
            for number, what in poll.poll(max(0.001, min(measured.end, patience) - now)):
                connection = by_number[number]
                if what & select.EPOLLOUT and not connection.write():
                    poll.modify(number, reads)
                if not what & ~select.EPOLLOUT or not connection.read():
                    continue
                measured.ended(connection.begun)
                if number in unchecked:
                    if answer is not None and not np.array_equal(connection.tensor(), answer):
                        raise SystemExit("an answer is not what the model gives")
                    unchecked.discard(number)
                    if not unchecked:
                        measured.begin()
                        patience = measured.end
                if connection.begin():
                    poll.modify(number, both)
        measured.stop()
        if unchecked:
            raise SystemExit(f"{len(unchecked)} of {clients} clients had no answer within {WARM_S:g} s")
    finally:
        for connection in connections:
            connection.socket.close()
        poll.close()
    return measured


async def drive_grpc(
    address: str, model: str, name: str, array: np.ndarray, clients: int, seconds: float, checked: bool
) -> Measured:
    """The same over gRPC, a channel per client: one message that was made once, and answers that nobody takes apart."""
    import grpc
    from tritonclient.grpc import service_pb2  # type: ignore[import-untyped,unused-ignore]

    asked = service_pb2.ModelInferRequest(
        model_name=model,
        inputs=[
            service_pb2.ModelInferRequest.InferInputTensor(name=name, datatype="FP32", shape=array.shape)
        ],
        raw_input_contents=[array.tobytes()],
    ).SerializeToString()
    options = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    measured = Measured(seconds)
    waiting = clients
    warm = asyncio.Event()

    async def one() -> None:
        nonlocal waiting
        async with grpc.aio.insecure_channel(address, options) as channel:
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            said = service_pb2.ModelInferResponse.FromString(await infer(asked, timeout=WARM_S))
            if checked and said.raw_output_contents[0] != (array + 1).tobytes():
                raise SystemExit("an answer is not what the model gives")
            waiting -= 1
            if not waiting:
                measured.begin()
                warm.set()
            await warm.wait()
            while (begun := time.perf_counter()) < measured.end:
                await infer(asked, timeout=WARM_S)
                measured.ended(begun)

    await asyncio.gather(*(one() for _ in range(clients)))
    measured.stop()
    return measured


def drive_client(
    client: Client, model: str, name: str, array: np.ndarray, clients: int, seconds: float, checked: bool
) -> Measured:
    """The same with the Python client, so many requests under way."""
    room = threading.Semaphore(clients)
    first = client.infer({name: array}, model=model)
    if checked and not np.array_equal(first["y"], array + 1):
        raise SystemExit("an answer is not what the model gives")
    measured = Measured(seconds)
    measured.begin()

    def submit() -> None:
        begun = time.perf_counter()

        def ended(_: object) -> None:
            measured.ended(begun)
            room.release()

        client.submit({name: array}, model=model, timeout=60).add_done_callback(ended)

    while time.perf_counter() < measured.end:
        room.acquire()
        submit()
    for _ in range(clients):
        room.acquire(timeout=60)
    measured.stop()
    return measured


def main(said: dict[str, Any]) -> None:
    """Runs one after the other, each with its rate and its latencies."""
    host, _, port = said["address"].rpartition(":")
    protocol, found = said["protocol"], []
    Measured.processes = said["processes"]
    # What first requests cost (connections, threads, code that is compiled on the way) counts nowhere.
    said["runs"].insert(0, said["runs"][0])
    client = Client(said["address"]) if protocol == "zmq" else None
    for run in said["runs"]:
        request, array = request_of(run["path"], said["address"], run["shape"], run["input"])
        how = run["clients"], run["seconds"]
        if client is not None:
            measured = drive_client(client, run["model"], run["input"], array, *how, run["checked"])
        elif protocol == "grpc":
            asked = drive_grpc(said["address"], run["model"], run["input"], array, *how, run["checked"])
            measured = asyncio.run(asked)
        else:
            answer = array.reshape(-1) + 1 if run["checked"] else None
            measured = drive((host, int(port)), request, run["room"], *how, answer)
        found.append(measured.told())
    if client is not None:
        client.close()
    sys.stdout.write(json.dumps(found[1:]) + "\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
