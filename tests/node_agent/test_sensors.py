"""Sensors on trees of files like a Jetson's and a server's; what is absent is absent."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from node_agent.sensors import Sensors
from node_agent.sensors_nvml import Nvml


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


class NVMLError(Exception):
    pass


def library(**answers):
    """A stand-in for pynvml with two GPUs; an answer that is an exception is raised."""

    def ask(name, default):
        def answer(*_):
            value = answers.get(name, default)
            if isinstance(value, Exception):
                raise value
            return value

        return answer

    calls = []
    found = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=ask("init", None),
        nvmlShutdown=lambda: calls.append("shutdown"),
        nvmlDeviceGetCount=ask("count", 2),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=ask("name", "NVIDIA Something"),
        nvmlSystemGetDriverVersion=ask("driver", "580.65"),
        nvmlDeviceGetMemoryInfo=ask("memory", SimpleNamespace(total=8 << 30, used=1 << 30)),
        nvmlDeviceGetUtilizationRates=ask("rates", SimpleNamespace(gpu=37, memory=5)),
        nvmlDeviceGetTemperature=ask("temperature", 51),
        nvmlDeviceGetPowerUsage=ask("power", 71_250),
        nvmlDeviceGetTotalEnergyConsumption=ask("energy", 5_000),
    )
    found.calls = calls
    return found


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    return Nvml()


def test_an_empty_machine_says_nothing_at_all(tmp_path, no_gpu):
    assert Sensors(tmp_path, no_gpu).read() == {}
    assert "not installed" in no_gpu.missing
    no_gpu.close()


def test_a_jetson(tmp_path, no_gpu):
    chip = "sys/class/hwmon/hwmon3"
    write(
        tmp_path,
        {
            f"{chip}/name": "ina3221\n",
            f"{chip}/in1_label": "VDD_IN\n",
            f"{chip}/in1_input": "4984\n",
            f"{chip}/curr1_input": "1240\n",
            f"{chip}/in2_label": "VDD_CPU_GPU_CV\n",
            f"{chip}/in2_input": "5000\n",
            f"{chip}/curr2_input": "300\n",
            f"{chip}/in3_label": "VDD SOC\n",  # a rail whose current is not there
            f"{chip}/in3_input": "5000\n",
            f"{chip}/in7_label": "sum of shunt voltages\n",
            f"{chip}/in7_input": "9\n",
            f"{chip}/curr7_input": "9\n",
            "sys/class/hwmon/hwmon0/name": "pwmfan\n",
            "sys/class/hwmon/hwmon0/in1_label": "fan\n",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "48531\n",
            "sys/class/thermal/thermal_zone1/type": "cv0-thermal\n",  # off: reading it fails, so the file is empty
            "sys/class/thermal/thermal_zone1/temp": "",
            "sys/class/thermal/thermal_zone2/type": "gpu-thermal\n",
            "sys/class/thermal/thermal_zone2/temp": "-274000\n",
            "sys/devices/platform/17000000.gpu/load": "873\n",
        },
    )
    assert Sensors(tmp_path, no_gpu).read() == {
        "rail.VDD_IN.power_w": pytest.approx(6.18016),
        "rail.VDD_CPU_GPU_CV.power_w": pytest.approx(1.5),
        "thermal.cpu.temperature_c": pytest.approx(48.531),
        "gpu.load": pytest.approx(0.873),
    }


def test_an_idle_gpu_is_zero_and_not_absent(tmp_path, no_gpu):
    write(tmp_path, {"sys/devices/gpu.0/load": "0\n"})
    assert Sensors(tmp_path, no_gpu).read() == {"gpu.load": 0.0}


def test_a_server_with_rapl(tmp_path, no_gpu):
    zone = "sys/class/powercap/intel-rapl:0"
    write(
        tmp_path,
        {
            f"{zone}/name": "package-0\n",
            f"{zone}/energy_uj": "1234567890\n",
            "sys/class/powercap/intel-rapl:0:0/name": "core\n",
            "sys/class/powercap/intel-rapl:0:0/energy_uj": "17\n",
            "sys/class/powercap/intel-rapl:1/name": "psys\n",
            "sys/class/powercap/intel-rapl:1/energy_uj": "words\n",
        },
    )
    assert Sensors(tmp_path, no_gpu).read() == {"rapl.package-0.energy_j": pytest.approx(1234.56789)}


def test_a_counter_that_may_not_be_read_is_absent(tmp_path, no_gpu, monkeypatch):
    write(tmp_path, {"sys/class/powercap/intel-rapl:0/name": "package-0\n"})
    real = Path.read_text

    def read_text(self, *arguments, **options):
        if self.name == "energy_uj":
            raise PermissionError(13, "only root since CVE-2020-8694")
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert Sensors(tmp_path, no_gpu).read() == {}


def test_gpus_by_nvml(tmp_path):
    nvml = Nvml(library())
    found = Sensors(tmp_path, nvml).read()
    assert found["gpu1.memory_total_bytes"] == 8 << 30
    assert found["gpu0.memory_used_bytes"] == 1 << 30
    assert found["gpu0.utilization"] == pytest.approx(0.37)
    assert found["gpu0.temperature_c"] == 51
    assert found["gpu0.power_w"] == pytest.approx(71.25)
    assert found["gpu0.energy_j"] == pytest.approx(5.0)
    assert nvml.names() == ["NVIDIA Something"] * 2
    assert nvml.driver() == "580.65"


def test_a_question_that_a_gpu_does_not_answer_is_left_out():
    refusal = NVMLError("Not Supported")
    found = Nvml(library(count=1, memory=refusal, power=refusal, energy=refusal)).read()
    assert found == {"gpu0.utilization": pytest.approx(0.37), "gpu0.temperature_c": 51}


def test_no_driver():
    nvml = Nvml(library(init=NVMLError("NVML Shared Library Not Found")))
    assert nvml.missing == "NVML cannot be used: NVML Shared Library Not Found."
    assert nvml.read() == {}
    assert nvml.driver() == ""
    nvml.close()


def test_nvml_is_let_go_once():
    lib = library()
    nvml = Nvml(lib)
    nvml.close()
    nvml.close()
    assert lib.calls == ["shutdown"]
    assert nvml.read() == {}


def test_this_machine_answers_without_an_error():
    sensors = Sensors()
    for name, value in sensors.read().items():
        assert name
        assert isinstance(value, float)
    sensors.close()
