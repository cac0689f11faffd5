"""Spans at a collector: a real OTLP/HTTP receiver that decodes what client, gateway and dispatcher send."""

from __future__ import annotations

import gzip
import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

import models
import partitioner
from defer import api
from defer.client import Client
from defer.dispatcher.bringup import Order
from defer.dispatcher.daemon import Daemon
from defer.dispatcher.exporting import exporting
from defer.documents.address import Address
from defer.documents.cluster import loads_cluster
from defer.errors import DeferError
from defer.gateway.backend import LocalBackend
from defer.gateway.server import Gateway, Options
from defer.gateway.service import Limits, Service
from defer.local_agents import local_agents
from defer.planning import make_plan, parse_placement
from defer.tracing import otel
from defer.tracing.clocks import OURS, Clock, Reading
from defer.tracing.told import tell
from node_agent.messages import HopTrace
from tests.defer.cli_fixtures import ROOT

MODEL = "tiny_residual"


@dataclass(frozen=True)
class Seen:
    """A span as the collector got it."""

    service: str
    instance: str
    name: str
    trace: str
    span: str
    parent: str
    kind: int
    begun: int
    ended: int
    values: dict[str, Any]
    failed: bool


def _plain(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


class Collector:
    """An OTLP/HTTP receiver of traces."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                assert self.headers["Content-Type"] == "application/x-protobuf"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.take(ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = False
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def take(self, request: ExportTraceServiceRequest) -> None:
        for group in request.resource_spans:
            about = _plain(group.resource.attributes)
            for scope in group.scope_spans:
                assert scope.scope.name == "defer"
                for span in scope.spans:
                    self.spans.append(
                        Seen(
                            about["service.name"],
                            about.get("service.instance.id", ""),
                            span.name,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            span.kind,
                            span.start_time_unix_nano,
                            span.end_time_unix_nano,
                            _plain(span.attributes),
                            span.status.code == 2,
                        )
                    )

    def one(self, service: str, name: str, trace: str = "") -> Seen:
        [found] = [s for s in self.spans if (s.service, s.name) == (service, name) and trace in ("", s.trace)]
        return found


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    made = Collector()
    made.thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.endpoint)
    otel.close()
    try:
        yield made
    finally:
        otel.close()
        made.server.shutdown()
        made.server.server_close()
        made.thread.join()


@pytest.mark.integration
def test_one_trace_from_client_and_gateway_to_the_stages(collector: Collector, tmp_path: Path) -> None:
    model = models.save(MODEL, tmp_path / f"{MODEL}.onnx")
    inputs = models.example_inputs(MODEL, seed=1)
    with ExitStack() as stack:
        agents = stack.enter_context(local_agents(["left", "right"], tmp_path))
        text = '[dispatcher]\nlisten = "127.0.0.1:0"\n[network]\nbandwidth = "1 Gbit/s"\ndelay = "0.1 ms"\n'
        text += "".join(f'[[device]]\nname = "{a.name}"\naddress = "{a.address}"\n' for a in agents)
        cluster = loads_cluster(text)
        daemon = stack.enter_context(Daemon(cluster, tmp_path / "state"))
        stack.enter_context(exporting(daemon))
        daemon.connect(10.0)
        chain = partitioner.analyze(model)
        half, whole = len(chain.blocks) // 2, len(chain.blocks)
        plan = make_plan(
            chain, cluster, placement=parse_placement(f"left=0:{half},right={half}:", cluster, whole)
        )
        daemon.deployments.bring_up(Order(MODEL, model, plan), lambda _what, _fraction: None)
        with Client(str(daemon.address)) as client:
            client.infer(inputs, timeout=30)
            with pytest.raises(DeferError):
                client.infer(inputs, model=MODEL, timeout=1e-6)
        service = Service(LocalBackend(daemon), Limits())
        gateway = stack.enter_context(Gateway(service, Options(http=Address("127.0.0.1", 0))))
        above = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
        connection = http.client.HTTPConnection(str(gateway.http), timeout=30)
        tensors = [
            {"name": name, "shape": list(array.shape), "datatype": "FP32", "data": array.ravel().tolist()}
            for name, array in inputs.items()
        ]
        body = json.dumps({"inputs": tensors})
        connection.request("POST", f"/v2/models/{MODEL}/infer", body, {"traceparent": above})
        assert connection.getresponse().read()
        connection.close()

    otel.close()  # sends what is queued, as the end of a process does
    good = [s for s in collector.spans if s.service == "defer-client" and not s.failed]
    [call] = good
    assert call.kind == 3
    assert call.parent == ""
    assert [s.values["error.type"] for s in collector.spans if s.failed] == ["deadline-exceeded"]
    whole_way(collector, call)

    served = collector.one("defer-gateway", f"serve {MODEL}")
    assert (served.trace, served.parent, served.kind) == ("ab" * 16, "cd" * 8, 2)
    whole_way(collector, served)


def whole_way(collector: Collector, top: Seen) -> None:
    """Everything below a client's or gateway's span: parents, devices, and times within those of their parents."""
    request = collector.one("defer-dispatcher", "defer.request", top.trace)
    assert (request.parent, request.kind, request.values["defer.model"]) == (top.span, 2, MODEL)
    assert top.begun <= request.begun <= request.ended <= top.ended + 2_000_000
    stages = [collector.one("defer-agent", f"stage {number}", top.trace) for number in (0, 1)]
    assert [stage.instance for stage in stages] == ["left", "right"]
    for stage in stages:
        assert stage.parent == request.span
        parts = [s for s in collector.spans if s.parent == stage.span]
        assert "run" in {part.name for part in parts}
        assert {part.instance for part in parts} == {stage.instance}
        assert all(stage.begun <= part.begun <= part.ended <= stage.ended for part in parts)
    moves = {s.name for s in collector.spans if s.parent == request.span and s.name.startswith("transfer")}
    assert moves == {"transfer dispatcher → left", "transfer left → right", "transfer right → dispatcher"}


def test_a_callers_own_context_is_kept(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    from defer.client_events import Submit

    submit = Submit(b"r" * 16, "m", (), (), (), 1.0)
    traced, span = otel.calling(submit)
    assert span is not None
    assert int(traced.trace[-2:], 16) & 1  # sampled; the SDK says as well that its ids are random
    span.end()
    given_context = Submit(b"r" * 16, "m", (), (), (), 1.0, trace="00-" + "1" * 32 + "-" + "2" * 16 + "-01")
    assert otel.calling(given_context) == (given_context, None)
    otel.close()
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    assert otel.calling(submit) == (submit, None)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_without_a_collector_nothing_is_imported(environment: dict[str, str]) -> None:
    code = (
        "import sys\n"
        "from defer.tracing import otel\n"
        "from defer.client import Client\n"
        "assert otel.telemetry() is None\n"
        "with otel.serving('00-' + '1' * 32 + '-' + '2' * 16 + '-01', 'm') as trace: assert trace.endswith('-01')\n"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_without_the_extra_requests_go_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    for name in [name for name in sys.modules if name.startswith("opentelemetry.exporter")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)
    otel.close()
    assert otel.telemetry() is None
    assert otel.telemetry() is None
    assert caplog.text.count("defer-edge[otel]") == 1
    otel.close()


def pair(begun: int, length: int) -> tuple[int, int]:
    return (begun, begun + length) if length else (0, 0)


@given(
    lengths=st.lists(st.tuples(*[st.integers(0, 1000)] * 8), min_size=1, max_size=4),
    ahead=st.lists(st.integers(-(10**9), 10**9), min_size=4, max_size=4),
    answered=st.integers(0, 500),
)
def test_parts_lie_within_and_add_up(lengths: list[tuple[int, ...]], ahead: list[int], answered: int) -> None:
    """With exact clocks: children of the request follow each other without a gap, and so do those of each stage."""
    now, hops, clocks = 10**10 + 7, [], {}
    arrived, sent = now, now + 5
    now = sent
    for number, (moved, w1, decode, w2, run, w3, encode, w4) in enumerate(lengths):
        name, shift = f"d{number}", ahead[number]
        clocks[name] = Clock(Reading(0, shift, 0), Reading(0, shift, 0))
        came = now + moved
        d, r = came + w1, came + w1 + decode + w2
        e = r + run + w3
        now = e + encode + w4
        marks = [pair(begun + shift, length) for begun, length in ((d, decode), (r, run), (e, encode))]
        hops.append((name, HopTrace("t", 1, 2, number, came + shift, now + shift, *marks)))
    request = api.RequestTrace("t", 1, 2, arrived, sent, now + 3, now + 3 + answered, len(lengths))
    told = tell(request, hops, clocks, "m")
    assert told[0].parent == -1
    for number, span in enumerate(told):
        children = [each for each in told if each.parent == number]
        if not children:
            continue
        at = span.begun_ns
        for child in children:
            assert child.begun_ns == at
            at = child.ended_ns
        assert at == span.ended_ns or span.name.startswith("stage")
        assert at <= span.ended_ns
    assert [span.where for span in told if span.name.startswith("stage")] == list(clocks)
    # Of a device whose clock was not read nothing is told, and no transfer is made up.
    fewer = tell(request, hops, {name: clock for name, clock in clocks.items() if name != "d0"}, "m")
    assert not any(span.where == "d0" or span.name.startswith("transfer") for span in fewer)


@given(st.text(max_size=80))
def test_any_text_may_stand_for_a_context(text: str) -> None:
    otel.parent_of(text)


def test_our_clock() -> None:
    assert OURS.ours(5) == 5
