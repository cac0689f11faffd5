"""The gateway beside MLServer and Ray Serve: rates and latencies of an elementwise add and of ResNet-50.

All servers run the same ONNX files in ONNX Runtime, with one worker, all of their processes on one core; the load runs
on another, from `benchmarks.gateway_load`, in the same binary encoding: the protocol's binary extension over HTTP, raw
contents over gRPC. They take turns within one run. MLServer and Ray Serve are installed by pip in environments of their
own below .cache. MLServer's HTTP endpoint takes tensors as JSON only, so it is given an endpoint in the binary encoding
(`benchmarks.peer_mlserver`), beside its own gRPC. A row of its own shows it without a worker, in one process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.gateway_servers import Server, Start, mlserver, ours, ray_serve
from benchmarks.runner import Options, Outcome, Row, Target, main

SIZES = {"4 KiB": 4 << 10, "600 KiB": 600 << 10, "6 MiB": 6 << 20}
CLIENTS = (1, 8, 64)
RESNET = "ResNet-50"
RESNET_SHAPE = (1, 3, 224, 224)
RESNET_CLIENTS = (1, 8)

STARTS: Mapping[str, Start] = {
    "defer": ours,
    "mlserver": mlserver(1, "MLServer"),
    "mlserver-alone": mlserver(0, "MLServer, no worker"),
    "ray": ray_serve,
}
PROTOCOLS = ("http", "grpc", "zmq")
PEERS = ("MLServer", "Ray Serve")

MARK = "DEFER_BENCHMARK"
"""A variable of the servers' environment, by which their processes are known."""

LEAST = 1.5
"""Times the best peer's rate that ours is to be with 600 KiB."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own arguments."""
    parser.add_argument("--servers", nargs="*", choices=list(STARTS), default=list(STARTS))
    parser.add_argument("--protocols", nargs="*", choices=PROTOCOLS, default=PROTOCOLS)
    parser.add_argument("--sizes", nargs="*", choices=[*SIZES, RESNET], default=[*SIZES, RESNET])
    parser.add_argument("--clients", nargs="*", type=int, default=list(CLIENTS))
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn (default 2)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default 3)")
    parser.add_argument(
        "--urgent", action="store_true", help="before all else on a machine that has other work, too (root)"
    )


def measure(options: Options) -> Outcome:
    """A row per body, number of clients and server."""
    arguments = options.arguments
    rounds, seconds = (1, 0.3) if options.quick else (arguments.rounds, arguments.seconds)
    sizes = [size for size in arguments.sizes if not (options.quick and size == RESNET)]
    found: dict[tuple[str, int, str, str], list[dict[str, float]]] = {}
    serving, loading = cores()
    with tempfile.TemporaryDirectory(prefix="defer-gateway-") as folder:
        models = Path(folder) / "models"
        save(models, sizes)
        runs = [run for size in sizes for run in _runs(size, arguments.clients, seconds)]
        for turn in range(rounds):
            for key in arguments.servers:
                work = Path(folder) / f"{key}-{turn}"
                work.mkdir()
                with ExitStack() as stack, options.console.status(f"turn {turn + 1} of {rounds}: {key}"):
                    with pinned(serving), marked(work.name):
                        servers = stack.enter_context(STARTS[key](models, work))
                    processes = of_mark(work.name)
                    if arguments.urgent:
                        for process in processes:
                            urgent(process)
                    for server in (each for each in servers if each.protocol in arguments.protocols):
                        for run, figures in zip(
                            runs,
                            _load(server, runs, loading, processes, before=arguments.urgent),
                            strict=True,
                        ):
                            case = str(run["size"]), int(str(run["clients"])), server.name, server.protocol
                            found.setdefault(case, []).append(figures)
    rows: list[Row] = [
        {
            "body": size,
            "clients": clients,
            "server": server,
            "protocol": protocol,
            "requests/s": median(each["rate"] for each in turns),
            "p50 ms": median(each["p50"] for each in turns) * 1e3,
            "p99 ms": median(each["p99"] for each in turns) * 1e3,
            "processor ms": median(each["cpu"] for each in turns) * 1e3,
        }
        for (size, clients, server, protocol), turns in sorted(
            found.items(), key=lambda item: ([*SIZES, RESNET].index(item[0][0]), item[0][1], item[0][3])
        )
    ]
    return Outcome(rows, list(targets(found)), list(notes(found)))


Found = Mapping[tuple[str, int, str, str], Sequence[Mapping[str, float]]]


def targets(found: Found) -> Iterator[Target]:
    """Ours over the best peer, turn by turn, with 600 KiB."""
    for protocol in ("http", "grpc"):
        for clients in sorted({clients for size, clients, *_ in found if size == "600 KiB"}):
            mine = found.get(("600 KiB", clients, "defer", protocol))
            peers = [turns for name in PEERS if (turns := found.get(("600 KiB", clients, name, protocol)))]
            if mine and peers:
                best = [max(each["rate"] for each in turn) for turn in zip(*peers, strict=True)]
                ratio = median(one["rate"] / other for one, other in zip(mine, best, strict=True))
                name = f"600 KiB, {clients} clients, {protocol}: rate over the best peer's"
                yield Target(name, ratio, LEAST, "least")


def notes(found: Found) -> Iterator[str]:
    """What the gateway costs beside the ZeroMQ client."""
    for size, clients, server, protocol in found:
        if (server, protocol) != ("defer", "http"):
            continue
        direct = found.get((size, clients, "defer's ZeroMQ client", "zmq"))
        if direct and clients == 1:
            http, zmq = (
                median(each["p50"] for each in turns)
                for turns in (found[size, clients, server, protocol], direct)
            )
            yield f"{size}, one client: p50 over HTTP is {1e3 * (http - zmq):+.2f} ms against the ZeroMQ client"


def cores() -> tuple[int, int]:
    """The servers' core, and the load's."""
    own = sorted(os.sched_getaffinity(0))
    return own[0], own[-1]


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """What is started meanwhile runs on this core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def marked(mark: str) -> Iterator[None]:
    """What is started meanwhile can be found again, and what it starts."""
    os.environ[MARK] = f"{os.getpid()}-{mark}"
    try:
        yield
    finally:
        del os.environ[MARK]


def of_mark(mark: str) -> list[int]:
    """The processes that were started under a mark, and all that they started: some hide their environment."""
    wanted = f"{MARK}={os.getpid()}-{mark}".encode()
    marked, children = [], dict[int, list[int]]()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            number = int(entry.name)
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(number)
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                marked.append(number)
    found: dict[int, None] = {}
    while marked:
        number = marked.pop()
        if number not in found:
            found[number] = None
            marked += children.get(number, [])
    return list(found)


def urgent(process: int) -> None:
    """Let a process and its session run before others: each session has a share of its own, whatever its nice value."""
    os.setpriority(os.PRIO_PROCESS, process, -15)
    with contextlib.suppress(OSError):
        Path(f"/proc/{process}/autogroup").write_text("-15")


def _runs(size: str, clients: Sequence[int], seconds: float) -> Iterator[dict[str, object]]:
    if size == RESNET:
        for count in RESNET_CLIENTS:
            yield {
                "size": size,
                "model": "resnet50",
                "input": "input",
                "shape": RESNET_SHAPE,
                "clients": count,
                "seconds": 4 * seconds,
                "room": 1 << 20,
                "checked": False,
            }
        return
    for count in clients:
        yield {
            "size": size,
            "model": f"add-{SIZES[size]}",
            "input": "x",
            "shape": (1, SIZES[size] // 4),
            "clients": count,
            "seconds": seconds,
            "room": SIZES[size] + (64 << 10),
            "checked": True,
        }


def _load(
    server: Server, runs: Sequence[Mapping[str, object]], core: int, processes: Sequence[int], *, before: bool
) -> list[dict[str, float]]:
    asked = {
        "protocol": server.protocol,
        "address": server.address,
        "processes": processes,
        "runs": [{**run, "path": server.path.format(model=run["model"])} for run in runs],
    }
    command = ["taskset", "-c", str(core), sys.executable, "-m", "benchmarks.gateway_load", json.dumps(asked)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            if before:
                urgent(process.pid)
            out, error = process.communicate(timeout=600)
        finally:
            process.kill()
    if process.returncode:
        raise SystemExit(f"the load on {server.name} ({server.protocol}) failed: {error.strip()[-600:]}")
    figures: list[dict[str, float]] = json.loads(out)
    return figures


def save(folder: Path, sizes: Sequence[str]) -> None:
    """Writes the models: x + 1 for each size, and ResNet-50."""
    import models

    folder.mkdir()
    for size in sizes:
        if size == RESNET:
            models.save("resnet50", folder / "resnet50.onnx")
            continue
        shape = [1, SIZES[size] // 4]
        graph = helper.make_graph(
            [helper.make_node("Add", ["x", "one"], ["y"])],
            "add",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            initializer=[numpy_helper.from_array(np.array([1], np.float32), "one")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, folder / f"add-{SIZES[size]}.onnx")


if __name__ == "__main__":
    main("gateway", measure, __doc__, add_arguments=add_arguments)
