"""Spans for OpenTelemetry: made where the standard variables name a collector, and at no cost elsewhere.

`OTEL_EXPORTER_OTLP_ENDPOINT` (or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`) turns it on; the SDK reads the other `OTEL_*`
variables itself: headers, timeout, sampler, resource attributes, batching. Imports `opentelemetry` (extra `otel`) when
used.

A request is one trace: the client's span, the gateway's where it came that way, the dispatcher's, and each stage's. What
is passed on is W3C Trace Context, `00-trace id-span id-flags`.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

import msgspec

from defer.client_events import Submit
from defer.errors import DeferError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanContext, Tracer

logger = logging.getLogger("defer.tracing")

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

SCOPE: Final = "defer"
"""Instrumentation scope of every span."""

LAST_S: Final = 3.0
"""How long the last spans are tried to be sent when the process ends."""


def wanted() -> bool:
    """Whether the environment names a collector for traces, and does not turn it off."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return False
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not off and os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "none"


class Telemetry:
    """This process's way to the collector: one queue and thread, shared by what stands for several services.

    Raises:
        ImportError: The SDK or its exporter is not installed.
    """

    def __init__(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
            "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
        )
        if protocol != "http/protobuf":
            logger.warning("traces are sent as http/protobuf; OTEL_EXPORTER_OTLP_PROTOCOL says %s", protocol)
        self._exporter = OTLPSpanExporter()
        self._processor = BatchSpanProcessor(self._exporter)
        self._tracers: dict[tuple[str, str], Tracer] = {}
        self._lock = threading.Lock()
        self._closing, self._closed = threading.Event(), threading.Event()
        # Begun now: while the interpreter ends no thread can be.
        self._impatient = threading.Thread(target=self._give_up, name="defer-otel", daemon=True)
        self._impatient.start()

    def tracer(self, service: str, instance: str = "") -> Tracer:
        """What makes the spans of a service; `instance` tells devices apart."""
        with self._lock:
            known = self._tracers.get((service, instance))
            if known is None:
                known = self._tracers[service, instance] = self._make(service, instance)
            return known

    def _make(self, service: str, instance: str) -> Tracer:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        said: dict[str, Any] = {"service.name": service}
        if instance:
            said["service.instance.id"] = instance
        elif name := os.environ.get("OTEL_SERVICE_NAME"):
            said["service.name"] = name
        provider = TracerProvider(resource=Resource.create(said), shutdown_on_exit=False)
        provider.add_span_processor(self._processor)
        return provider.get_tracer(SCOPE)

    def close(self) -> None:
        """Send what is queued, for at most `LAST_S` where the collector does not answer, and end the threads."""
        self._closing.set()
        self._processor.shutdown()  # type: ignore[no-untyped-call]
        self._closed.set()
        self._impatient.join()

    def _give_up(self) -> None:
        self._closing.wait()
        if not self._closed.wait(LAST_S):
            self._exporter.shutdown()  # type: ignore[no-untyped-call] # ends its retries


_lock = threading.Lock()
_known: Telemetry | None = None
_decided = False


def telemetry() -> Telemetry | None:
    """This process's; None where no collector is named, or the extra is not installed."""
    global _known, _decided
    if _decided:
        return _known
    with _lock:
        if not _decided:
            if wanted():
                try:
                    _known = Telemetry()
                    atexit.register(close)
                except ImportError as error:
                    logger.warning('no traces are sent: %s; pip install "defer-edge[otel]"', error)
            _decided = True
        return _known


def close() -> None:
    """Send what is queued and forget it all; the environment is looked at again the next time."""
    global _known, _decided
    with _lock:
        known, _known, _decided = _known, None, False
    if known is not None:
        atexit.unregister(close)
        known.close()


# --------------------------------------------------------------------------------------------------------- contexts


def traceparent(context: SpanContext) -> str:
    """A span as W3C Trace Context."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def parent_of(trace: str) -> Context:
    """The other way: what a new span is the child of. Malformed contexts are nobody's child."""
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    try:
        _, trace_id, span_id, flags = trace.split("-")[:4]
        context = SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)))
    except ValueError:
        return Context()
    return set_span_in_context(NonRecordingSpan(context), Context())


# ---------------------------------------------------------------------------------------------- client and gateway


def calling(submit: Submit) -> tuple[Submit, Span | None]:
    """Begins the client's span of a request; the request then carries it. `ended` ends it.

    A request that came with a trace context keeps that: its caller's span is the one that stages hang from.
    """
    known = telemetry()
    if known is None or submit.trace or submit.recall:
        return submit, None
    from opentelemetry import trace
    from opentelemetry.trace import SpanKind

    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):  # the application has set none of its own
        tracer = known.tracer("defer-client")
    else:
        tracer = provider.get_tracer(SCOPE)
    attributes = {"defer.model": submit.model, "defer.request": submit.request.hex()}
    span = tracer.start_span(_named("infer", submit.model), kind=SpanKind.CLIENT, attributes=attributes)
    context = span.get_span_context()
    if not context.trace_flags.sampled:
        span.end()
        return submit, None
    return msgspec.structs.replace(submit, trace=traceparent(context)), span


def ended(span: Span, future: Future[Any]) -> None:
    """Ends the span of `calling` as its request ended."""
    if future.cancelled():
        span.set_attribute("defer.cancelled", True)
    else:
        _failed(span, future.exception())
    span.end()


def failed(span: Span, error: BaseException) -> None:
    """Ends the span of `calling` where its request could not be sent."""
    _failed(span, error)
    span.end()


@contextlib.contextmanager
def serving(trace: str, model: str) -> Iterator[str]:
    """The gateway's span of a request whose caller wants it traced; yields the context to pass on."""
    known = telemetry() if trace else None
    if known is None:
        yield trace
        return
    from opentelemetry.trace import SpanKind

    span = known.tracer("defer-gateway").start_span(
        _named("serve", model),
        parent_of(trace),
        SpanKind.SERVER,
        {"defer.model": model},
        record_exception=False,
    )
    try:
        yield traceparent(span.get_span_context())
    except BaseException as error:
        _failed(span, error)
        raise
    finally:
        span.end()


def set_failed(span: Span, code: str, message: str) -> None:
    """Marks a span as ended by an error."""
    from opentelemetry.trace import Status, StatusCode

    span.set_status(Status(StatusCode.ERROR, message))
    span.set_attribute("error.type", code)


def _failed(span: Span, error: BaseException | None) -> None:
    if error is not None:
        set_failed(span, error.code if isinstance(error, DeferError) else type(error).__name__, str(error))


def _named(what: str, model: str) -> str:
    return f"{what} {model}" if model else what


def attributes_of(plain: Mapping[str, str | int | float]) -> dict[str, str | int | float]:
    """Attributes under defer's name."""
    return {f"defer.{key}": value for key, value in plain.items()}
