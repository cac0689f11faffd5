"""Metrics as text, read back by Prometheus' own parser; the pages over HTTP; an agent that serves them."""

from __future__ import annotations

import http.client
import json
import logging
import math
import socket
import threading

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from node_agent.agent_metrics import HOP_COUNTERS, agent_families
from node_agent.errors import AddressInUseError, AddressInvalidError
from node_agent.events import Gauge
from node_agent.exposition import Family, render
from node_agent.json_log import formatter
from node_agent.messages import AgentStatus, HopStatus
from node_agent.observed import agent_pages
from node_agent.pages import Page, PageServer

TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\r\x85\u2028\u2029\x0b\x0c\x1c\x1d\x1e")
)


@given(TEXT, st.floats(), TEXT)
def test_labels_and_values_come_back_as_they_were(label: str, value: float, about: str):
    family = Family("m", "gauge", about or "x")
    family.add(value, name=label)
    (read,) = text_string_to_metric_families(render([family]))
    (sample,) = read.samples
    assert sample.labels == {"name": label}
    assert sample.value == value or (math.isnan(sample.value) and math.isnan(value))


@given(st.lists(st.integers(0, 1000), min_size=4, max_size=4), st.floats(0, 1e9))
def test_a_histogram_counts_upwards_to_infinity(counts: list[int], total: float):
    family = Family("seconds", "histogram", "x")
    family.add_histogram((0.1, 1, 10), counts, total, model="m")
    (read,) = text_string_to_metric_families(render([family]))
    buckets = [sample.value for sample in read.samples if sample.name == "seconds_bucket"]
    assert buckets == [sum(counts[: n + 1]) for n in range(4)]
    assert [s.labels["le"] for s in read.samples if s.name == "seconds_bucket"] == ["0.1", "1", "10", "+Inf"]
    assert {s.name: s.value for s in read.samples if not s.name.endswith("bucket")} == {
        "seconds_sum": total,
        "seconds_count": sum(counts),
    }


def test_a_family_without_samples_is_not_shown():
    assert render([Family("m", "gauge", "x")]) == "\n"


STATUS = AgentStatus(
    0, "nano", "boot", "serving", 12.5, 1000, 2000, 300, sensors={"gpu0.power_w": 7.5}, stale=2,
    hops=(HopStatus(4, 1, "m", "run", items=9, run_s=0.5, queued=3),),
)  # fmt: skip


def test_an_agents_state_as_metrics():
    text = render(agent_families(STATUS, version="1", progress=9, queued=3, item_age_s=0.25))
    read = {s.name: s for family in text_string_to_metric_families(text) for s in family.samples}
    assert len(text.splitlines()) == 2 * len(list(text_string_to_metric_families(text))) + len(read)
    assert read["defer_agent_info"].labels == {"device": "nano", "version": "1", "boot": "boot"}
    assert read["defer_agent_sensor"].labels == {"sensor": "gpu0.power_w"}
    assert read["defer_hop_run_seconds_total"].value == 0.5
    assert read["defer_hop_queue_length"].labels == {
        "model": "m",
        "deployment": "4",
        "hop": "1",
        "kind": "run",
    }
    assert {name for _, name, _ in HOP_COUNTERS} <= read.keys()


class Fixed:
    failed = False
    status = STATUS
    age = 0.0

    def look(self, timeout: float):
        return self.status, Gauge(item_age_s=self.age)


def test_health_means_what_it_says():
    agent = Fixed()
    pages = agent_pages(agent, "1")

    def told() -> tuple[int, int]:
        return pages["/healthz"]().status, pages["/readyz"]().status

    assert told() == (200, 200)
    agent.status = msgspec.structs.replace(STATUS, state="draining")
    assert told() == (200, 503)
    agent.age = 400.0
    assert told() == (503, 503)
    agent.failed = True
    assert told() == (503, 503)
    assert "thread" in pages["/healthz"]().body


def get(port: int, path: str, method: str = "GET") -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type", ""), answer.read().decode()
    finally:
        connection.close()


def fail() -> Page:
    raise RuntimeError("no")


@pytest.mark.integration
def test_pages_are_served_and_nobody_can_hold_the_server_up():
    with PageServer("127.0.0.1", 0, {"/a": lambda: Page("here\n"), "/b": fail}) as server:
        port = server.port
        assert get(port, "/a?x=1") == (200, "text/plain; charset=utf-8", "here\n")
        assert get(port, "/a", "HEAD")[2] == ""
        assert get(port, "/b")[0] == 500
        assert get(port, "/c")[0] == 404
        assert "/a" in get(port, "/c")[2]
        assert get(port, "/a", "POST")[0] == 501
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        assert get(port, "/a")[0] == 200
        for each in silent:
            each.close()
        with pytest.raises(AddressInUseError):
            PageServer("127.0.0.1", port, {}).start()
    with pytest.raises(AddressInvalidError):
        PageServer("192.0.2.1", 0, {}).start()


@pytest.mark.integration
def test_too_many_readers_at_once_are_told_so():
    free = threading.Event()
    busy = threading.Semaphore(0)

    def slow() -> Page:
        busy.release()
        free.wait(10)
        return Page("late\n")

    with PageServer("127.0.0.1", 0, {"/slow": slow}) as server:
        readers = [threading.Thread(target=get, args=(server.port, "/slow")) for _ in range(16)]
        for reader in readers:
            reader.start()
        for _ in readers:
            assert busy.acquire(timeout=10)
        assert get(server.port, "/slow")[0] == 503
        free.set()
        for reader in readers:
            reader.join()


def test_log_lines_as_json():
    record = logging.LogRecord("a.b", logging.WARNING, "f", 1, '%s is "gone"\n', ("x",), None)
    told = json.loads(formatter("json").format(record))
    assert (told["level"], told["logger"], told["message"]) == ("warning", "a.b", 'x is "gone"\n')
    assert told["time"].endswith("+00:00")
    assert formatter("text").format(record).endswith('x is "gone"\\n'), (
        "what is quoted makes no line of its own"
    )


@pytest.mark.integration
def test_an_agent_serves_its_metrics(start_agent):
    agent = start_agent("nano", "--metrics", "127.0.0.1:0")
    port = int(agent.ready["metrics"].removesuffix("/metrics").rpartition(":")[2])
    status, kind, text = get(port, "/metrics")
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    read = {s.name: s for family in text_string_to_metric_families(text) for s in family.samples}
    assert read["defer_agent_serving"].value == 1
    assert read["defer_agent_info"].labels["device"] == "nano"
    assert get(port, "/healthz")[0] == get(port, "/readyz")[0] == 200
