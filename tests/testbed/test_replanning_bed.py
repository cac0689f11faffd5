"""Agents in devices of their own: a link that becomes slow, or a device that gets less processor, is planned around.

Needs root. Nothing here is timed but by a deadline that is far away.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.testbed import Testbed, uniform

pytestmark = [
    pytest.mark.integration,
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.usefixtures("clean"),
]

DEADLINE_S = 100.0
MBIT = 125_000.0
ROWS, WIDTH = 64, 512

LOAD = """
import sys, time
import numpy as np
from defer.client import Client
folder, address = sys.argv[1:]
x, expected = np.load(folder + "/x.npy"), np.load(folder + "/y.npy")
with Client(address, insecure=True) as client:
    while True:
        (y,) = client.infer({"x": x}, timeout=120).values()
        np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-3)
        print("answered", flush=True)
        time.sleep(0.05)
"""


def save_model(folder: Path, layers: int) -> Path:
    """Layers of one size, a request, and its answer."""
    draw = np.random.default_rng(3)
    matrices = [
        (draw.standard_normal((WIDTH, WIDTH)) * np.sqrt(2 / WIDTH)).astype(np.float32) for _ in range(layers)
    ]
    nodes, names = [], ["x"]
    for number in range(layers):
        nodes.append(helper.make_node("MatMul", [names[-1], f"w{number}"], [f"m{number}"]))
        nodes.append(helper.make_node("Relu", [f"m{number}"], [f"a{number}"]))
        names.append(f"a{number}")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [ROWS, WIDTH]) for name in ("x", names[-1])
    ]
    constants = [numpy_helper.from_array(matrix, f"w{number}") for number, matrix in enumerate(matrices)]
    graph = helper.make_graph(nodes, "layers", ends[:1], ends[1:], constants)
    path = folder / "layers.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    x = draw.standard_normal((ROWS, WIDTH)).astype(np.float32)
    np.save(folder / "x.npy", x)
    for matrix in matrices:
        x = np.maximum(x @ matrix, 0)
    np.save(folder / "y.npy", x)
    return path


class Lines:
    """What a process prints, read by a thread."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.seen: list[str] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.seen.append(line)

    def wait(self, count: int = 1, having: str = "") -> list[str]:
        deadline = time.monotonic() + DEADLINE_S
        while len(found := [line for line in self.seen if having in line]) < count:
            assert self.process.poll() is None, "".join(self.seen)
            assert time.monotonic() < deadline, "".join(self.seen[-20:])
            time.sleep(0.1)
        return found

    def close(self) -> None:
        self._thread.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def running(bed: Testbed, *command: str) -> Iterator[Lines]:
    process = bed.start(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = Lines(process)
    try:
        yield lines
    finally:
        bed.end(process)
        lines.close()


@contextmanager
def served(bed: Testbed, tmp_path: Path, layers: int = 6) -> Iterator[tuple[Lines, Lines, str]]:
    """The load, the events, and the first device that the model is on."""
    text = bed.cluster_file.read_text()
    settings = 'replan_after = "3 s"\nreplan_pause = "5 s"\ncanary = "0 s"\n'
    cluster = tmp_path / "cluster.toml"
    cluster.write_text(text.replace("[dispatcher]\n", "[dispatcher]\n" + settings))
    model = save_model(tmp_path, layers)
    serve = ["-m", "defer", "serve", "--cluster", str(cluster), "--model", str(model), "--blocks", "4"]
    serve += ["--state", str(tmp_path / "state"), "--insecure", "--json", "--wait", "60"]
    with running(bed, *serve) as dispatcher:
        (line,) = dispatcher.wait(having='"ready"')
        address = json.loads(line)["ready"]
        follow = ["-m", "defer", "events", "--follow", "--json", "--dispatcher", address, "--insecure"]
        with running(bed, *follow) as events, running(bed, "-c", LOAD, str(tmp_path), address) as load:
            load.wait(10, "answered")
            (deployed,) = events.wait(having='"kind":"deployed"')
            yield load, events, json.loads(deployed)["text"].rpartition(" on ")[2].split(", ")[0]


def taken_elsewhere(load: Lines, events: Lines, before: str) -> list[str]:
    """Waits until another plan has taken over, and answers come by it; everything that happened."""
    events.wait(having='"kind":"replanned"')
    load.wait(len(load.seen) + 10, "answered")
    happened = [json.loads(line) for line in events.seen]
    (first, *_) = [event["text"] for event in happened if event["kind"] == "replanned"]
    assert before not in first.partition(" after ")[0]
    assert "changed: gains" in first
    kinds = [event["kind"] for event in happened]
    assert not {"agent-lost", "route-lost", "stage-hangs", "request-failed"} & set(kinds)
    assert all(line == "answered\n" for line in load.seen)
    # What a device does between two refills of its quota makes it no faster.
    assert not any(" takes 0." in event["text"] for event in happened if event["kind"] == "drift")
    return [event["text"] for event in happened if event["kind"] == "drift"]


def test_a_link_that_becomes_slow_is_left(tmp_path: Path) -> None:
    with (
        Testbed(uniform(2, bandwidth=100 * MBIT, delay=0.001)) as bed,
        served(bed, tmp_path) as (load, events, before),
    ):
        assert before in ("box-1", "box-2")
        bed.set_link("dispatcher", before, bandwidth=4 * MBIT)
        drifts = taken_elsewhere(load, events, before)
        assert any("bandwidth" in text and before in text for text in drifts)


def test_a_device_that_gets_less_of_its_processor_is_left(tmp_path: Path) -> None:
    with (
        Testbed(uniform(2, cpu=0.5, bandwidth=1000 * MBIT, delay=0.001)) as bed,
        # Runs far longer than what a device gets at once: short ones would hardly notice that it gets less.
        served(bed, tmp_path, layers=40) as (load, events, before),
    ):
        bed.set_cpu(before, 0.05)
        drifts = taken_elsewhere(load, events, before)
        assert any(f": {before} takes" in text for text in drifts)
