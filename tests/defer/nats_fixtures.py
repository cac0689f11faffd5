"""A real nats-server for tests; those that need one are skipped where it is not installed."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.ports import free_ports

needs_nats = pytest.mark.skipif(
    shutil.which("nats-server") is None or find_spec("nats") is None,
    reason="needs nats-server (apt-get install nats-server) and nats-py (the extra ha)",
)


class NatsServer:
    """A server with JetStream on a free port of this machine."""

    def __init__(self, folder: Path, config: str = "") -> None:
        self._folder, self._config = folder, config
        self.port = free_ports(1)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}/t"

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / "nats.conf"
        file.write_text(
            f'listen: "127.0.0.1:{self.port}"\njetstream {{ store_dir: "{self._folder / "js"}" }}\n{self._config}'
        )
        with (self._folder / "nats.log").open("ab") as log:
            self.process = subprocess.Popen(["nats-server", "-c", str(file)], stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert time.monotonic() < deadline, (self._folder / "nats.log").read_text()
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(number)
            process.wait(10)


class NatsCluster:
    """Several servers with JetStream that keep each record together."""

    def __init__(self, folder: Path, count: int = 3) -> None:
        first = free_ports(count)
        routes = ", ".join(f'"nats-route://127.0.0.1:{first + at}"' for at in range(count))
        self.servers = {
            f"n{at}": NatsServer(
                folder / f"n{at}",
                f'server_name: "n{at}"\n'
                f'cluster {{ name: "t", listen: "127.0.0.1:{first + at}", routes: [{routes}] }}\n',
            )
            for at in range(count)
        }

    @property
    def url(self) -> str:
        """Of the state that they keep."""
        return f"nats://{','.join(f'127.0.0.1:{each.port}' for each in self.servers.values())}/t"


@contextmanager
def nats_cluster(folder: Path) -> Iterator[NatsCluster]:
    cluster = NatsCluster(folder)
    try:
        for server in cluster.servers.values():
            server.start()
        yield cluster
    finally:
        for server in cluster.servers.values():
            server.stop()


@contextmanager
def nats_server(folder: Path, config: str = "") -> Iterator[NatsServer]:
    server = NatsServer(folder, config)
    try:
        server.start()
        yield server
    finally:
        server.stop()
