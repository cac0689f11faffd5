"""sd_notify: what is said to the service manager, when, and that nothing happens without one."""

from __future__ import annotations

import os
import socket

import pytest

from node_agent.notify import Notifier, watchdog_seconds


@pytest.fixture
def manager(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        path = str(tmp_path / "notify")
        receiver.bind(path)
        receiver.settimeout(2)
        yield receiver, path


def said(receiver: socket.socket) -> list[str]:
    receiver.setblocking(False)
    found = []
    while True:
        try:
            found.append(receiver.recv(4096).decode())
        except BlockingIOError:
            return found


def test_ready_and_stopping(manager):
    receiver, path = manager
    notifier = Notifier({"NOTIFY_SOCKET": path})
    notifier.ready("serving on 127.0.0.1:7000")
    notifier.stopping()
    assert said(receiver) == ["READY=1\nSTATUS=serving on 127.0.0.1:7000", "STOPPING=1"]
    assert not notifier.watched


def test_the_abstract_namespace():
    name = f"defer-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert said(receiver) == ["READY=1"]


def test_signs_of_life_twice_per_interval_while_the_worker_goes_on(manager):
    receiver, path = manager
    notifier = Notifier({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "10000000"})
    assert notifier.watched
    sent = [notifier.alive(now, progress=int(now), item_age_s=0.1, limit_s=30) for now in range(16)]
    assert [now for now, each in enumerate(sent) if each] == [0, 5, 10, 15]
    assert said(receiver) == ["WATCHDOG=1"] * 4


def test_an_idle_worker_is_no_hang(manager):
    _, path = manager
    notifier = Notifier({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "1000000"})
    for now in (0, 100, 200):
        assert notifier.alive(now, progress=7, item_age_s=0.0, limit_s=30)


def test_a_worker_that_hangs_gives_no_sign_and_one_that_goes_on_does_again(manager):
    _, path = manager
    notifier = Notifier({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "1000000"})
    assert notifier.alive(0, progress=3, item_age_s=0.0, limit_s=30)
    assert not notifier.alive(40, progress=3, item_age_s=31, limit_s=30)
    assert not notifier.alive(80, progress=3, item_age_s=71, limit_s=30)
    assert notifier.alive(81, progress=4, item_age_s=0.2, limit_s=30)


def test_a_slow_item_is_no_hang_while_others_finish(manager):
    _, path = manager
    notifier = Notifier({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "1000000"})
    assert notifier.alive(0, progress=3, item_age_s=31, limit_s=30)
    assert notifier.alive(40, progress=4, item_age_s=31, limit_s=30)


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:1:2"}])
def test_without_a_manager_nothing_happens(environment):
    notifier = Notifier(environment)
    notifier.ready()
    notifier.stopping()
    assert not notifier.alive(0, 0, 0.0, 1.0)


def test_a_manager_that_is_gone_does_not_stop_the_agent(tmp_path):
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "1000000"})
    notifier.ready()
    assert not notifier.alive(0, 0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_interval(environment, seconds):
    assert watchdog_seconds(environment) == seconds
