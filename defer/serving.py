"""What a dispatcher is started with, whoever starts it: its cluster, and its keys."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import msgspec

from defer.access import security_for
from defer.connecting import agent_hosts
from defer.documents.address import parse_address
from defer.documents.cluster import Cluster, Replan
from defer.errors import UsageError
from node_agent.security import Security

MOST_PORT = 65_533
"""A dispatcher takes its port and the two after it."""


def cluster_to_serve(
    cluster: str | Path | Cluster,
    *,
    listen: str | None = None,
    replan: Replan | None = None,
    said: str = "--listen",
) -> Cluster:
    """The cluster of a dispatcher.

    Args:
        cluster: It, or its file.
        listen: `host:port` to listen at in place of what it says.
        replan: Which plans are replaced while it serves, in place of what it says.
        said: How the caller calls `listen`.

    Raises:
        FileMissing, InvalidDocument, InvalidCluster: It cannot be read, or has nothing to serve with.
        UsageError: There are no two ports after the one to listen at.
    """
    if not isinstance(cluster, Cluster):
        cluster = Cluster.load(cluster)
    dispatcher = cluster.dispatcher
    if replan is not None:
        dispatcher = msgspec.structs.replace(dispatcher, replan=replan)
    if listen is not None:
        dispatcher = msgspec.structs.replace(dispatcher, listen=listen)
    cluster = msgspec.structs.replace(cluster, dispatcher=dispatcher)
    address = parse_address(dispatcher.listen, "dispatcher.listen" if listen is None else said)
    if address.port > MOST_PORT:
        raise UsageError(f"port {address.port} leaves no room for the two data ports after it")
    cluster.check_serving()
    return cluster


def hosts_of(cluster: Cluster) -> list[str]:
    """Where a dispatcher listens, and whom it dials."""
    return [parse_address(cluster.dispatcher.listen).host, *agent_hosts(cluster)]


def security_to_serve(
    cluster: Cluster, *, keys: str | Path | None = None, insecure: bool = False
) -> Security:
    """A dispatcher's keys; without them neither it nor its agents may be beyond this machine, unless it is said.

    Args:
        cluster: Its devices.
        keys: As in `defer.access.security_for`.
        insecure: As in `defer.access.security_for`.

    Raises:
        InvalidKey, PermissionDenied: As `defer.access.security_for`.
    """
    return security_for(("dispatcher",), hosts_of(cluster), keys=keys, insecure=insecure)


_BRIEF = "defer-serve-"

_YOUNG_S = 60.0
"""A brief state younger than this may be about to be locked."""


def brief_state(stack: ExitStack) -> Path:
    """A directory for a dispatcher that keeps nothing: deleted with the stack, or by the next one if it was killed."""
    for old in Path(tempfile.gettempdir()).glob(f"{_BRIEF}*"):
        if _left_behind(old):
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_BRIEF))
    stack.callback(_remove, folder, os.getpid())
    return folder


def _remove(folder: Path, process: int) -> None:
    """Delete a brief state in the process that made it; a child that ends must not."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def _left_behind(folder: Path) -> bool:
    """Whether nobody holds a brief state any more."""
    try:
        found = folder.lstat()
        if (
            found.st_uid != os.getuid()
            or not stat.S_ISDIR(found.st_mode)
            or time.time() - found.st_mtime < _YOUNG_S
        ):
            return False
        with contextlib.suppress(FileNotFoundError), (folder / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody holds it, or has just deleted it
        return False
    return True
