"""A port under mutated messages: sent as fast as they are taken, with a question now and then that must be answered."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Sequence

import zmq

from benchmarks.hostile.mutate import Message, mutated
from defer import api
from node_agent import messages as m
from node_agent.frames import encode_control, encode_header

ANSWER_S = 20.0
"""Longest that a question may wait behind what was sent before it."""

BETWEEN = 2000
"""Messages between two questions."""

RAW_EVERY = 500
"""One in so many goes over TCP as it is, without ZeroMQ's framing."""

GREETED = 8
"""One in so many connections says an honest greeting first, and is then believed what an honest peer is."""


class NoAnswerError(Exception):
    """A port did not answer an honest question."""


class Flood:
    """Messages to one port.

    Args:
        port: One of `corpus.PORTS`.
        endpoint: `tcp://host:port`.
        corpus: What is mutated.
        seed: Of all choices.
    """

    def __init__(self, port: str, endpoint: str, corpus: Sequence[Message], seed: int) -> None:
        self.port = port
        self.sent = 0
        self.answers = 0
        self.slowest_s = 0.0
        self._endpoint = endpoint
        self._corpus = corpus
        self._draw = random.Random(f"{seed} {port}")
        self._context = zmq.Context()
        self._rounds = 0

    def close(self) -> None:
        """Hang up."""
        self._context.destroy(linger=0)

    def round(self, count: int) -> None:
        """Send some messages over a new connection, then see whether the port still answers."""
        self._rounds += 1
        dealer = self._dealer()
        if self._rounds % GREETED == 0:
            dealer.send_multipart(self._greeting())
        try:
            for number in range(count):
                message = mutated(self._draw, self._draw.choice(self._corpus), self._corpus)
                if number % RAW_EVERY == RAW_EVERY - 1:
                    self._raw(b"".join(message))
                else:
                    self._send(dealer, message)
                self.sent += 1
                if number % 64 == 0:
                    self._read(dealer)
            # A connection of its own: what a peer may have been refused for is not held against another one.
            self.ask()
        finally:
            dealer.close(0)

    def ask(self) -> float:
        """Seconds until an honest question was answered.

        Raises:
            NoAnswerError: It was not, in `ANSWER_S`.
        """
        dealer = self._dealer()
        begin = time.monotonic()
        try:
            for message in self._question():
                dealer.send_multipart(message)
            while not dealer.poll(100):
                if time.monotonic() - begin > ANSWER_S:
                    raise NoAnswerError(f"the {self.port} port did not answer within {ANSWER_S:g} s")
        finally:
            dealer.close(0)
        took = time.monotonic() - begin
        self.slowest_s = max(self.slowest_s, took)
        return took

    def told(self, message: Message, matches: Callable[[bytes], bool], greeted: bool = True) -> float:
        """Seconds until a message was answered by one that `matches`; for attacks whose answer is known.

        Raises:
            NoAnswerError: It was not.
        """
        dealer = self._dealer()
        begin = time.monotonic()
        try:
            if greeted:
                dealer.send_multipart(self._greeting())
            dealer.send_multipart(message)
            while time.monotonic() - begin < ANSWER_S:
                if dealer.poll(50) and matches(b"".join(dealer.recv_multipart())):
                    return time.monotonic() - begin
        finally:
            dealer.close(0)
        raise NoAnswerError(f"the {self.port} port said nothing to an attack")

    def _dealer(self) -> zmq.Socket[bytes]:
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.SNDTIMEO, int(ANSWER_S * 1000))
        dealer.setsockopt(zmq.SNDHWM, 200)
        dealer.connect(self._endpoint)
        return dealer

    def _send(self, dealer: zmq.Socket[bytes], message: Message) -> None:
        try:
            dealer.send_multipart(message or [b""])
        except zmq.Again:
            raise NoAnswerError(f"the {self.port} port takes nothing any more") from None

    def _read(self, dealer: zmq.Socket[bytes]) -> None:
        try:
            while True:
                dealer.recv_multipart(zmq.NOBLOCK)
                self.answers += 1
        except zmq.Again:
            return

    def _raw(self, data: bytes) -> None:
        """Bytes that are no ZMTP, or begin as if they were."""
        host, _, port = self._endpoint.removeprefix("tcp://").rpartition(":")
        begins = (
            b"",
            b"\xff\0\0\0\0\0\0\0\1\x7f",
            b"\xff\0\0\0\0\0\0\0\1\x7f\3\0NULL" + bytes(48),
            b"GET / HTTP/1.1\r\n",
        )
        with socket.create_connection((host, int(port)), timeout=ANSWER_S) as raw:
            raw.sendall(self._draw.choice(begins) + data)

    def _greeting(self) -> Message:
        if self.port.endswith(("control", "api")):
            return [encode_control(m.Hello(1, 1, 1, "stranger", "dispatcher"))]
        return [encode_header(m.Greeting(1, 1, "stranger"))]

    def _question(self) -> list[Message]:
        if self.port == "agent control":
            return [self._greeting()]
        if self.port == "dispatcher api":
            return [[api.encode(api.ListModels(1))]]
        if self.port.endswith("fetch"):
            return [self._greeting()]
        return [[encode_header(m.Probe(1, 4)), b"ping"]]
