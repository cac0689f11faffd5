"""The classification extension: an output as the indices of its highest values. Pure."""

from __future__ import annotations

import math

import numpy as np

from defer.errors import WrongInput
from defer.gateway.calls import Answer, Call
from defer.gateway.datatypes import join_bytes
from node_agent.dtypes import storage
from node_agent.messages import TensorHeader


def classified(call: Call, answer: Answer) -> Answer:
    """The answer, with each output that is asked for as classes turned into BYTES elements `value:index`.

    The first dimension counts examples, and all others together one example's values. The highest come first, and of
    equals the one with the lower index.

    Raises:
        WrongInput: An output of BYTES, or of a type that NumPy lacks, has no classes.
    """
    classes = {wanted.name: wanted.classes for wanted in call.wanted}
    headers, frames = [], []
    for header, frame in zip(answer.headers, answer.frames, strict=True):
        count = classes.get(header.name, 0)
        if not count:
            headers.append(header)
            frames.append(frame)
            continue
        if header.dtype in ("string", "bfloat16") or not header.shape:
            raise WrongInput(f"output {header.name!r}, {header.dtype}{list(header.shape)}, has no classes")
        rows = math.prod(header.shape[:1]) if len(header.shape) > 1 else 1
        values = np.frombuffer(frame, storage(header.dtype)).reshape(rows, -1)
        best = np.argsort(-values.astype(np.float64), axis=1, kind="stable")[:, :count]
        elements = [
            f"{row[index]:f}:{index}".encode() if row.dtype.kind == "f" else f"{row[index]}:{index}".encode()
            for row, indices in zip(values, best, strict=True)
            for index in indices
        ]
        raw = join_bytes(elements)
        shape = (rows, best.shape[1]) if len(header.shape) > 1 else (best.shape[1],)
        headers.append(TensorHeader(header.name, "string", shape, "raw", len(raw)))
        frames.append(raw)
    return Answer(answer.model, answer.version, tuple(headers), frames)
