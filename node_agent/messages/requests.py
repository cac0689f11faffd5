"""What passes on data sockets between a client and the dispatcher: requests and their answers, by the client's own ids.

`Infer` and `Result` are followed by one frame per tensor.
"""

from __future__ import annotations

import msgspec

from node_agent.messages.data import TensorHeader

ID_BYTES = 16
"""Length of a client's own id of a request."""


class Infer(msgspec.Struct, frozen=True, array_like=True, tag="infer"):
    """A client's request to the dispatcher; tensor frames follow.

    Attributes:
        request: The client's own id, 16 bytes; a resend with the same id never runs twice.
        model: Name of the deployment; empty where there is only one.
        remaining_ns: Time left until the deadline, or `NO_DEADLINE`.
        tensors: One header per tensor frame that follows.
        outputs: Which outputs are wanted; empty for all.
        trace: W3C trace context.
        durable: Keep the request in the dispatcher's store until it is answered, and its answer for a while; answered
            by `Accepted` when it is there.
        priority: Of the requests that wait, those with the smallest go first, from 1 on; 0 stands for `USUAL_PRIORITY`.
    """

    request: bytes
    model: str
    remaining_ns: int
    tensors: tuple[TensorHeader, ...]
    outputs: tuple[str, ...] = ()
    trace: str = ""
    durable: bool = False
    priority: int = 0


class Recall(msgspec.Struct, frozen=True, array_like=True, tag="recall"):
    """A client asks for the answer to a request that it sent before, by the id alone; answered like `Infer`."""

    request: bytes


class GiveUp(msgspec.Struct, frozen=True, array_like=True, tag="give-up"):
    """A client does not want the answer to a request of its own any more; answered by `Rejection`, if by anything."""

    request: bytes


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag="accept"):
    """A durable request is in the dispatcher's store: it will be answered, whether or not it is sent again."""

    request: bytes


class Result(msgspec.Struct, frozen=True, array_like=True, tag="result"):
    """The dispatcher's answer to `Infer`: tensor frames follow."""

    request: bytes
    tensors: tuple[TensorHeader, ...]
    seconds: float = 0.0


class Rejection(msgspec.Struct, frozen=True, array_like=True, tag="reject"):
    """The dispatcher's answer to an `Infer` without a result: one code from the error table, one sentence."""

    request: bytes
    code: str
    message: str
