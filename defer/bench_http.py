"""A small client of the Open Inference Protocol v2 over HTTP, for load on ours or any other server.

A request's body is made once: JSON with the tensors' bytes behind it (the binary data extension), or all in JSON for a
server that lacks the extension. Each thread keeps a connection of its own.
"""

from __future__ import annotations

import http.client
import json
import math
import ssl
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote, urlsplit

import numpy as np

from defer.api import ModelInfo
from defer.client_arrays import Array
from defer.errors import DeferError, DispatcherUnreachable, NotReady, UnknownModel, UsageError, from_code
from defer.gateway.datatypes import DATATYPE, WIRE, join_bytes, to_json
from node_agent.messages import TensorSpec

Encoding = Literal["binary", "json"]

LENGTH_HEADER = "Inference-Header-Content-Length"

_BROKEN = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)
"""A server may close a connection that was idle."""

CODES = {
    400: "wrong-input",
    401: "unauthorised",
    403: "unauthorised",
    404: "unknown-model",
    429: "overloaded",
}
CODES |= {499: "cancelled", 503: "not-ready", 504: "deadline-exceeded"}
"""Our code for a status, where the server does not say one."""

_NO_LIST = {"unknown-model", "wrong-input", "request-failed"}
"""How a server answers that does not list its models; with other codes it does not answer at all, or not us."""


class V2Client:
    """A server that speaks the protocol.

    Args:
        url: As `http://host:8000`, perhaps with a path before `/v2`.
        timeout: Seconds that a request may take.
        token: Bearer token; empty for none.
        threads: Requests at once.
    """

    def __init__(self, url: str, *, timeout: float, token: str = "", threads: int = 1) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url!r} is no URL of a server", hint="for example http://127.0.0.1:8000")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        try:
            port = parts.port
        except ValueError as error:
            raise UsageError(f"{url!r}: {error}") from None
        self._secure = parts.scheme == "https"
        self._host, self._port, self._path = parts.hostname, port, parts.path.rstrip("/")
        self._timeout = timeout
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="defer-bench")
        self._local = threading.local()
        self._connections: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        for connection in self._connections:
            connection.close()

    # ----------------------------------------------------------------------------------------- about the server

    def signature(self, model: str) -> ModelInfo:
        """A model's inputs and outputs; the only one where none is named and the server lists its models.

        Raises:
            UnknownModel: No such model, or several and none named.
            DispatcherUnreachable: Nobody answers.
        """
        name = model or self._only()
        said = self._json("GET", f"/v2/models/{quote(name, safe='')}")
        try:
            inputs, outputs = (
                tuple(_spec(name, tensor) for tensor in said[side]) for side in ("inputs", "outputs")
            )
        except (KeyError, TypeError) as error:
            raise NotReady(f"{self.url} tells no signature of model {name!r}: {error}") from None
        return ModelInfo(name, "ready", "", 0, inputs, outputs)

    def _only(self) -> str:
        try:
            listed = self._json("POST", "/v2/repository/index", b"{}")
        except DeferError as error:
            if error.code not in _NO_LIST:
                raise
            raise UnknownModel(
                f"{self.url} does not list its models: {error}", hint="say which with --model"
            ) from None
        names = {str(each["name"]) for each in listed if each.get("state", "READY") == "READY"}
        if len(names) != 1:
            raise UnknownModel(
                f"{self.url} serves {', '.join(sorted(names)) or 'no model'}", hint="say which with --model"
            )
        return names.pop()

    # -------------------------------------------------------------------------------------------------- requests

    def prepare(self, info: ModelInfo, inputs: Mapping[str, Array], encoding: Encoding) -> Prepared:
        """A request that can be sent again and again."""
        binary = encoding == "binary"
        tensors: list[dict[str, Any]] = []
        frames: list[bytes] = []
        for spec in info.inputs:
            array = inputs[spec.name]
            raw = join_bytes(list(array.reshape(-1))) if spec.dtype == "string" else array.tobytes()
            tensor: dict[str, Any] = {
                "name": spec.name,
                "datatype": DATATYPE[spec.dtype],
                "shape": list(array.shape),
            }
            if binary:
                tensor["parameters"] = {"binary_data_size": len(raw)}
                frames.append(raw)
            else:
                tensor["data"] = to_json(spec.name, spec.dtype, array.shape, raw)
            tensors.append(tensor)
        asked: dict[str, Any] = {"inputs": tensors}
        if binary:
            asked["parameters"] = {"binary_data_output": True}
        head = json.dumps(asked).encode()
        headers = (
            {LENGTH_HEADER: str(len(head)), "Content-Type": "application/octet-stream"} if binary else {}
        )
        path = f"/v2/models/{quote(info.name, safe='')}/infer"
        return Prepared(path, headers or {"Content-Type": "application/json"}, head + b"".join(frames))

    def check(self, prepared: Prepared, info: ModelInfo) -> int:
        """Sends a request and reads its answer in full.

        Returns:
            Bytes of the answer.

        Raises:
            NotReady: It is no answer to that request.
        """
        headers, body = self._ask("POST", prepared.path, prepared.body, prepared.headers)
        length = next(
            (value for name, value in headers.items() if name.lower() == LENGTH_HEADER.lower()), None
        )
        head = body[: int(length)] if length else body
        try:
            outputs = {output["name"]: output for output in json.loads(head)["outputs"]}
            rest = len(body) - len(head)
            told = sum(
                int(each.get("parameters", {}).get("binary_data_size", 0)) for each in outputs.values()
            )
        except (KeyError, TypeError, ValueError) as error:
            raise NotReady(f"{self.url} answered what is no inference response: {error}") from None
        missing = {spec.name for spec in info.outputs} - outputs.keys()
        if missing or rest != told:
            what = f"without {', '.join(sorted(missing))}" if missing else f"{rest} bytes for {told}"
            raise NotReady(f"{self.url} answered {what}")
        return len(body)

    def submit(self, prepared: Prepared) -> Future[int]:
        """Sends a request in one of the threads; the bytes of its answer."""

        def send() -> int:
            return len(self._ask("POST", prepared.path, prepared.body, prepared.headers)[1])

        return self._threads.submit(send)

    def _json(self, method: str, path: str, body: bytes | None = None) -> Any:
        _, data = self._ask(method, path, body, {"Content-Type": "application/json"} if body else {})
        try:
            return json.loads(data)
        except ValueError as error:
            raise NotReady(f"{self.url}{path} answered what is not JSON: {error}") from None

    def _ask(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[Mapping[str, str], bytes]:
        connection = self._connection()
        for attempt in (1, 2):
            try:
                connection.request(method, self._path + path, body, {**self._headers, **headers})
                response = connection.getresponse()
                data = response.read()
                break
            except TimeoutError:
                connection.close()
                raise from_code(
                    "deadline-exceeded", f"{self.url} did not answer in {self._timeout:g} s"
                ) from None
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if attempt == 1 and isinstance(error, _BROKEN):
                    continue
                raise DispatcherUnreachable(
                    f"nothing that speaks HTTP answers at {self.url}: {error}",
                    hint="check --url; is it started with --http?",
                ) from None
        if response.status != 200:
            raise _refusal(self.url, response.status, data)
        return dict(response.headers.items()), data

    def _connection(self) -> http.client.HTTPConnection:
        found: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if found is None:
            if self._secure:
                context = ssl.create_default_context()
                found = http.client.HTTPSConnection(
                    self._host, self._port, timeout=self._timeout, context=context
                )
            else:
                found = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
            self._local.connection = found
            with self._lock:
                self._connections.append(found)
        return found


class Prepared:
    """An inference request as bytes."""

    __slots__ = ("body", "headers", "path")

    def __init__(self, path: str, headers: Mapping[str, str], body: bytes) -> None:
        self.path, self.headers, self.body = path, headers, body


def _spec(model: str, tensor: Mapping[str, Any]) -> TensorSpec:
    datatype = str(tensor["datatype"])
    if datatype not in WIRE:
        raise UsageError(f"model {model!r} takes {datatype}, which defer bench cannot make up")
    shape = tuple(int(size) if int(size) >= 0 else f"dim {axis}" for axis, size in enumerate(tensor["shape"]))
    return TensorSpec(str(tensor["name"]), WIRE[datatype], shape)


def _refusal(url: str, status: int, body: bytes) -> DeferError:
    try:
        said = json.loads(body)
        text = str(said.get("error", said)) if isinstance(said, dict) else str(said)
    except ValueError:
        text = body[:200].decode(errors="replace")
    return from_code(
        CODES.get(status, "request-failed"),
        f"{url} answered {status}: {text.strip() or 'nothing'}",
        "--token-file, with the server's token in it" if status in (401, 403) else "",
    )


def made_up_strings(info: ModelInfo, batch: int) -> dict[str, Array]:
    """Something for inputs of strings; `batch` is the size of free dimensions."""
    found: dict[str, Array] = {}
    for spec in info.inputs:
        if spec.dtype == "string":
            shape = tuple(size if isinstance(size, int) else batch for size in spec.shape)
            elements = np.empty(math.prod(shape), dtype=object)
            elements[:] = b"defer"
            found[spec.name] = elements.reshape(shape)
    return found
