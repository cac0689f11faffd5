"""Every test ends with the threads and child processes that it began with."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures.thread import _threads_queues
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from node_agent.engines.onnxruntime_cpu import QUIET

# An example's milliseconds say how busy the machine is, nothing else. The same examples in every run: a change is not
# refused over what another one brought; new ones are looked for on purpose.
settings.register_profile(
    "defer",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=not os.environ.get("DEFER_EXPLORE"),
)
settings.load_profile("defer")

os.environ.pop("COLUMNS", None)  # of the processes that share the tests: a narrow table shortens words
os.environ.setdefault(*QUIET)  # for tests that import ONNX Runtime by themselves

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background jobs ignore it, and so would every child that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)

if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as nohup has it

GRACE_S = 10.0
"""A thread that was told to end may need a moment; one that was not told never ends."""


def _children(thread: int | str) -> set[int]:
    """Process ids of the children that a thread started, or all threads (`*`); empty where /proc does not say."""
    found: set[int] = set()
    for listing in Path("/proc/self/task").glob(f"{thread}/children"):
        with suppress(OSError):  # the thread has ended meanwhile
            found.update(int(pid) for pid in listing.read_text().split())
    return found


def _threads(*, pooled: bool) -> set[threading.Thread]:
    """Python's threads but two that stay: of the timeout plugin, and pyzmq's own for frames that are not copied.

    Args:
        pooled: Those of executors as well. They start when first needed, which in a cluster that several tests share
            is during any of them.
    """
    return {
        thread
        for thread in threading.enumerate()
        if not thread.name.startswith("pytest-timeout")
        and type(thread).__name__ != "GarbageCollectorThread"
        and (pooled or thread not in _threads_queues)
    }


def _executors() -> set[threading.Thread]:
    """Threads of executors alone: a module may keep others for all its tests, as gRPC does until it is collected."""
    return _threads(pooled=True) - _threads(pooled=False)


@pytest.fixture(scope="session", autouse=True)
def nothing_unclosed() -> Iterator[None]:
    """Fail the last test if a file or a socket was never closed.

    They warn when they are collected, which may be after the last test: then it is a traceback below the summary, and
    in a process that pytest-xdist started nothing at all.
    """
    yield
    gc.collect()


@pytest.fixture(scope="module", autouse=True)
def no_executor_left_behind() -> Iterator[None]:
    """Fail the module that leaves a thread of an executor running, or a process that any thread started."""
    threads, children = _executors(), _children("*")
    yield
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline and (_executors() - threads or _children("*") - children):
        time.sleep(0.01)
    left = [thread.name for thread in _executors() - threads]
    assert not left, f"threads left running: {left}"
    orphans = _children("*") - children
    assert not orphans, f"processes left running: {orphans}"


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail the test that leaves a thread running, or a process that it started.

    What other threads start belongs to whoever started them: a cluster that a module's tests share.
    """
    own = os.getpid()
    threads, children = _threads(pooled=False), _children(own)
    yield
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline and (_threads(pooled=False) - threads or _children(own) - children):
        time.sleep(0.01)
    left = [thread.name for thread in _threads(pooled=False) - threads]
    assert not left, f"threads left running: {left}"
    orphans = _children(own) - children
    assert not orphans, f"processes left running: {orphans}"
