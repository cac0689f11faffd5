"""What `defer doctor` tells of the box."""

from __future__ import annotations

import json
import socket
import sys

import pytest
from click.testing import CliRunner

from defer.cli import group
from defer.health_device import clock, devices, engines, ports, sensing
from node_agent.engines import names
from node_agent.messages import EngineInfo
from node_agent.sensors_nvml import Nvml


def test_each_engine_is_there_or_says_what_to_install():
    there, missing = engines(
        [
            EngineInfo("tensorrt", "11.4", "Orin, compute capability 8.7"),
            EngineInfo(
                "onnxruntime-cuda", missing="CUDA cannot start: libcublas.so.13 is absent. pip install x."
            ),
        ]
    )
    assert (there.there, there.found) == (True, "11.4, Orin, compute capability 8.7")
    assert (missing.there, missing.found) == (False, "CUDA cannot start: libcublas.so.13 is absent")
    assert missing.hint == "pip install x."


class Gpus(Nvml):
    def __init__(self) -> None:
        self.missing = ""

    def names(self):
        return ["H200"]

    def driver(self):
        return "580.65"


def test_gpus_show_their_memory():
    readings = {"gpu0.memory_total_bytes": 8.0 * 2**30, "gpu0.memory_used_bytes": 2.0 * 2**30}
    _, gpu = devices(Gpus(), readings)
    assert gpu.found == "H200, 8.0 GiB, 6.0 GiB free, driver 580.65"
    _, unknown = devices(Gpus(), {})
    assert unknown.found == "H200, driver 580.65"


def test_sensors_that_are_absent_are_absent_and_the_command_is_there():
    none = sensing({}, "NVML's bindings are not installed.")
    assert (none.there, none.found) == (False, "none")
    assert 'pip install "defer-edge[sensors]"' in none.hint
    some = sensing({"rail.VDD_IN.power_w": 6.18, "gpu.load": 0.0}, "")
    assert some.found == "gpu.load 0, rail.VDD_IN.power_w 6.18"
    assert not some.hint


@pytest.mark.parametrize(
    ("known", "there", "words"),
    [
        ((True, 0.0123), True, "off by at most 12.3 ms"),
        ((False, 16.0), False, "not synchronised"),
        (None, True, "does not say"),
    ],
)
def test_the_clock(known, there, words):
    found = clock(known)
    assert found.there is there
    assert words in found.found
    assert bool(found.hint) != there


def test_ports_that_are_taken_are_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (found,) = ports({"agent": range(port, port + 1)})
    assert not found.there
    assert str(port) in found.found
    assert "--listen" in found.hint
    (free,) = ports({"agent": range(port, port + 1)})
    assert free.there


@pytest.mark.integration
def test_doctor_has_a_row_for_every_engine_and_for_the_box():
    result = CliRunner().invoke(group, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    checks = json.loads(result.stdout)["checks"]
    found = {check["name"]: check for check in checks}
    assert len(found) == len(checks)
    assert {f"engine {name}" for name in names()} <= found.keys()
    assert {
        "processor",
        "sensors",
        "clock",
        "ports of agent",
        "ports of dispatcher",
        "memory",
    } <= found.keys()
    for check in checks:
        if check["name"].startswith("engine ") and check["state"] == "missing":
            assert check["hint"], check


@pytest.mark.integration
def test_a_vendors_library_that_breaks_does_not_break_the_doctor(monkeypatch):
    broken = type(sys)("pynvml")
    monkeypatch.setitem(sys.modules, "pynvml", broken)  # no name in it that anybody expects
    result = CliRunner().invoke(group, ["doctor", "--json"])
    found = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert found["device"]["state"] == "bad"
    assert found["store"]["state"] == "good"
