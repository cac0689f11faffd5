"""The servers that `benchmarks.gateway` compares: ours, MLServer and Ray Serve, each one worker on one core."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ports import free_ports
from benchmarks.processes import serving
from defer.local_agents import local_agents

ROOT = Path(__file__).resolve().parent.parent
MLSERVER = ROOT / ".cache" / "gateway-bench" / "mlserver"
RAY = ROOT / ".cache" / "ray-venv"
HERE = Path(__file__).resolve().parent

MLSERVER_PACKAGES = ("mlserver==1.7.1", "onnxruntime", "uvloop<0.22")
"""Its workers do not start with a newer uvloop."""

READY_S = 120.0


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server answers, and how.

    Attributes:
        name: As the table shows it.
        protocol: `http`, `grpc` or `zmq`.
        address: HOST:PORT.
        path: Where a model is asked over HTTP, with `{model}` for its name.
    """

    name: str
    protocol: str
    address: str
    path: str = "/v2/models/{model}/infer"


Start = Callable[[Path, Path], AbstractContextManager[tuple[Server, ...]]]
"""Starts a server of the models in a folder; the second folder is for what it writes."""


@contextmanager
def ours(models: Path, work: Path) -> Iterator[tuple[Server, ...]]:
    """A dispatcher with its gateway, and one agent."""
    with ExitStack() as stack:
        (agent,) = stack.enter_context(local_agents(["box"], work))
        cluster = work / "cluster.toml"
        cluster.write_text(
            '[dispatcher]\nlisten = "127.0.0.1:0"\n[network]\nbandwidth = "10 Gbit/s"\ndelay = "0.05 ms"\n'
            f'[[device]]\nname = "box"\naddress = "{agent.address}"\nspeed = "10 GFLOP/s"\n'
        )
        http, grpc = (f"127.0.0.1:{free_ports(1)}" for _ in range(2))
        ready = stack.enter_context(
            serving(cluster, "--state", str(work / "state"), "--http", http, "--grpc", grpc)
        )
        for file in sorted(models.glob("*.onnx")):
            plan = work / f"{file.stem}.json"
            _defer("plan", str(file), "--cluster", str(cluster), "-o", str(plan))
            where = ("--dispatcher", ready["ready"], "--plan", str(plan))
            _defer("deploy", str(file), "--name", file.stem, *where)
        yield (
            Server("defer", "http", http),
            Server("defer", "grpc", grpc),
            Server("defer's ZeroMQ client", "zmq", ready["ready"]),
        )


def _defer(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "defer", *words], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        raise SystemExit(f"defer {words[0]} failed: {done.stderr.strip()}")


def mlserver(workers: int, name: str) -> Start:
    """MLServer; its models run in so many workers, or in the server's own process where there are none."""

    @contextmanager
    def started(models: Path, work: Path) -> Iterator[tuple[Server, ...]]:
        check = "import mlserver, onnxruntime, uvloop; assert uvloop.__version__ < '0.22'"
        python = environment(MLSERVER, check, *MLSERVER_PACKAGES)
        http, grpc, metrics = (free_ports(1) for _ in range(3))
        settings = {
            "debug": False,
            "host": "127.0.0.1",
            "http_port": http,
            "grpc_port": grpc,
            "metrics_port": metrics,
            "metrics_endpoint": None,
            "grpc_max_message_length": 64 << 20,
            "parallel_workers": workers,
            "gzip_enabled": False,
        }
        (work / "settings.json").write_text(json.dumps(settings))
        for file in models.glob("*.onnx"):
            folder = work / file.stem
            folder.mkdir(exist_ok=True)
            chosen = {"name": file.stem, "implementation": "peer_mlserver.Onnx"}
            (folder / "model-settings.json").write_text(json.dumps(chosen))
        command = [str(python.with_name("mlserver")), "start", str(work)]
        more = {"MODELS": str(models), "PYTHONPATH": str(HERE)}
        with _running(command, more, work / "mlserver.log"):
            _wait(f"http://127.0.0.1:{http}/v2/health/ready", work / "mlserver.log")
            yield (
                Server(name, "http", f"127.0.0.1:{http}", "/binary/{model}/infer"),
                Server(name, "grpc", f"127.0.0.1:{grpc}"),
            )

    return started


@contextmanager
def ray_serve(models: Path, work: Path) -> Iterator[tuple[Server, ...]]:
    """Ray Serve: its HTTP proxy and one replica."""
    python = environment(RAY, "import ray.serve, numpy, onnxruntime", "ray[serve]", "numpy", "onnxruntime")
    port = free_ports(1)
    more = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_SERVE_LOG_TO_STDERR": "0"}
    command = [str(python), str(HERE / "peer_ray.py"), str(port), str(models)]
    with _running(command, more, work / "ray.log"):
        _wait(f"http://127.0.0.1:{port}/-/healthz", work / "ray.log")
        yield (Server("Ray Serve", "http", f"127.0.0.1:{port}"),)


def environment(folder: Path, check: str, *packages: str) -> Path:
    """The interpreter of an environment with these packages; installed where they are not there yet."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    if subprocess.run([python, "-c", check], check=False, capture_output=True).returncode:
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


@contextmanager
def _running(command: Sequence[str], more: Mapping[str, str], log: Path) -> Iterator[None]:
    """A server as a process group of its own, gone with all of it at the end."""
    with log.open("w") as said:
        process = subprocess.Popen(
            command,
            env={**os.environ, **more},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _wait(url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        # An HTTP error is an OSError, too.
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.2)
    raise SystemExit(f"{url} does not answer: {' '.join(log.read_text().splitlines()[-3:])}")
