"""What runs on devices to measure them: plain sockets and loops, no package needed.

python probe.py serve HOST PORT      prints `ready`; a connection that begins with S is received and timed,
                                     one that begins with E is echoed
python probe.py send HOST PORT BYTES     prints bytes/s as the receiver saw them
python probe.py ping HOST PORT COUNT     prints round-trip seconds, one per line
python probe.py spin SECONDS             uses the CPU, prints CPU seconds per second
python probe.py eat BYTES                prints `eaten` when it holds so much memory
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
import time

CHUNK = 1 << 18
TIMEOUT_S = 60.0
PAUSE_S = 0.002


def serve(host: str, port: int) -> None:
    """Answers connections until it is ended."""
    with socket.create_server((host, port), backlog=64) as listener:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        kind = connection.recv(1)
        if kind == b"E":
            while data := connection.recv(4096):
                connection.sendall(data)
        elif kind == b"S":
            connection.sendall(struct.pack("!d", _received_rate(connection)))


def _received_rate(connection: socket.socket) -> float:
    """Bytes/s of the second half of what arrives: the first half is TCP finding out how fast it may go."""
    buffer = bytearray(CHUNK)
    arrivals = []
    total = 0
    while count := connection.recv_into(buffer):
        total += count
        arrivals.append((time.perf_counter(), total))
    begin, before = next(pair for pair in arrivals if pair[1] >= total / 2)
    end, after = arrivals[-1]
    return (after - before) / max(end - begin, 1e-9)


def send(host: str, port: int, nbytes: int) -> float:
    """Sends so many bytes; returns the rate in bytes/s that the receiver saw."""
    with socket.create_connection((host, port), TIMEOUT_S) as connection:
        connection.sendall(b"S")
        piece = memoryview(bytes(CHUNK))
        left = nbytes
        while left:
            count = min(left, CHUNK)
            connection.sendall(piece[:count])
            left -= count
        connection.shutdown(socket.SHUT_WR)
        return float(struct.unpack("!d", connection.recv(8, socket.MSG_WAITALL))[0])


def ping(host: str, port: int, count: int) -> list[float]:
    """Round-trip times of one byte, in seconds; the first is not counted."""
    seconds = []
    with socket.create_connection((host, port), TIMEOUT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(b"E")
        for _ in range(count + 1):
            begin = time.perf_counter()
            connection.sendall(b".")
            connection.recv(1)
            seconds.append(time.perf_counter() - begin)
            time.sleep(PAUSE_S)
    return seconds[1:]


def spin(seconds: float) -> float:
    """Uses all the CPU it gets; returns CPU seconds per second."""
    begin, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
        pass
    return (time.process_time() - cpu) / (time.perf_counter() - begin)


def main(words: list[str]) -> None:
    """The command."""
    verb, *rest = words
    if verb == "serve":
        serve(rest[0], int(rest[1]))
    elif verb == "send":
        print(send(rest[0], int(rest[1]), int(rest[2])))
    elif verb == "ping":
        print("\n".join(map(str, ping(rest[0], int(rest[1]), int(rest[2])))))
    elif verb == "spin":
        print(spin(float(rest[0])))
    elif verb == "eat":
        eaten = bytearray(int(rest[0]))
        eaten[::4096] = b"." * len(eaten[::4096])
        print("eaten")
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
