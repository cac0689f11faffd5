"""The short way of an item through an agent: received, run and sent on by one function, in the data thread.

Most items are like the one before: the same headers, raw tensors, a partition that takes microseconds, a next hop that
has granted credit. For those everything was worked out when the first of them took the general way (`Known`), and what
is left are the frames, the run and two numbers in the header. Whatever is not like that takes the general way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from node_agent.dtypes import STRING, storage
from node_agent.frames import encode_header, inlined
from node_agent.limits import COPY_BELOW
from node_agent.link import Sent, send
from node_agent.messages import NO_DEADLINE, Item
from node_agent.sender import Sender
from node_agent.work import Known, LoadedRoute, Origin, Work
from node_agent.worker import Worker


def known_from(work: Work) -> Known | None:
    """What an item that has taken the general way says of others with its headers; None where that is too little."""
    route, item = work.loaded.route, work.item
    if not isinstance(item, Item) or work.encoded is None or work.loaded.session is None or route.bits:
        return None
    sent = work.encoded[0]
    for header in (*item.tensors, *sent):
        # An empty frame is no buffer to NumPy; what is not raw takes time.
        if header.codec != "raw" or not header.nbytes or not _viewable(header.dtype):
            return None
    at = {header.name: index for index, header in enumerate(item.tensors)}
    return Known(
        tensors=item.tensors,
        nbytes=work.nbytes,
        inputs=tuple(
            (header.name, index, storage(header.dtype), header.shape)
            for index, header in ((index, item.tensors[index]) for index in work.decode)
        ),
        sent=sent,
        sent_bytes=sum(header.nbytes for header in sent),
        made=tuple(
            (header.name, -1, storage(header.dtype), header.shape)
            if header.name in route.made
            else (header.name, at[header.name], None, ())
            for header in sent
        ),
    )


def _viewable(dtype: str) -> bool:
    """Whether the bytes of such an array can be had without NumPy's help; text is no buffer at all."""
    if dtype == STRING:
        return False
    try:
        memoryview(np.empty(1, storage(dtype)).data).cast("B")
    except (ValueError, TypeError):
        return False
    return True


class ShortWay:
    """See the module.

    Args:
        worker: Runs partitions.
        sender: Knows the next hops.
        release: Gives the credit of an item back upstream.
    """

    def __init__(self, worker: Worker, sender: Sender, release: Callable[[Any, int], None]) -> None:
        self._worker = worker
        self._sender = sender
        self._release = release

    def take(
        self,
        loaded: LoadedRoute,
        known: Known,
        item: Item,
        frames: list[Any],
        origin: Origin,
        arrived_ns: int,
    ) -> bool:
        """Takes an item whose headers are those of `known`, if this way is open to it; whether it did."""
        left = item.remaining_ns
        if left == 0 or item.trace or loaded.closed:
            return False
        downstream = self._sender.open_to(loaded.route.spec.next)
        if downstream is None or not self._worker.begin(loaded):
            return False
        session = loaded.session
        assert session is not None
        outputs: Any = None
        failed: Exception | None = None
        try:
            inputs = {}
            for name, index, dtype, shape in known.inputs:
                frame = frames[index]
                array = np.ndarray(shape, dtype, frame)
                # What is short was copied, and lies right; what is not may lie at any address.
                inputs[name] = array if type(frame) is bytes or array.flags.aligned else array.copy()
            outputs = session.run(inputs)
        except Exception as error:
            failed = error
        ended_ns = self._worker.end(loaded, arrived_ns)
        sending: list[Any] = []
        for name, index, kind, shape in known.made if failed is None else ():
            if index >= 0:
                sending.append(frames[index])
                continue
            array = outputs[name]
            if array.shape != shape or array.dtype != kind:
                break
            if array.nbytes < COPY_BELOW:
                sending.append(array.tobytes())  # what `send` would do, and in C order however it lies
            elif array.flags.c_contiguous:
                sending.append(memoryview(array).cast("B"))
            else:
                break
        if (
            failed is None
            and len(sending) == len(known.made)
            and (left == NO_DEADLINE or left > ended_ns - arrived_ns)
        ):
            if left != NO_DEADLINE:
                left -= ended_ns - arrived_ns
            inline = inlined(sending) if downstream.end.handshake.inline else ()
            header = encode_header(
                Item(item.epoch, item.request, item.hop + 1, left, known.sent, "", item.priority, inline)
            )
            if send(downstream.socket, header, () if inline else sending, downstream.identity) is Sent.YES:
                window = downstream.end.window  # `open_to` has asked for credit
                window.items -= 1
                window.nbytes -= known.sent_bytes
                counters = loaded.counters
                counters.items += 1
                counters.bytes_out += known.sent_bytes
                self._release(origin, known.nbytes)
                return True
        # It has run, so that it cannot begin anew; the general way goes on with it.
        work = Work(loaded, item, frames, origin, known.nbytes, arrived_ns)
        if failed is not None:
            self._worker.failed(work, failed)
        else:
            work.decode, work.forward = loaded.admitted
            work.outputs = outputs
        self._sender.submit(work)
        return True
