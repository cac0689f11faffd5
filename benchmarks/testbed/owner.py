"""Who owns a testbed, and what a dead owner left.

Before a bed makes anything, it writes down everything that it is going to make, under a name with its process id
and that process's start time. Its own teardown works off that record, and so does the next bed on this machine
when the owner is gone: a process id alone may belong to somebody else by then, the start time tells.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from pathlib import Path

import msgspec

from benchmarks.testbed import cgroups, commands
from defer.errors import DeferError

RECORDS = Path("/run/defer-testbed")
PREFIX = "dtb"
_sequence = itertools.count()


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What a bed makes outside of its own memory.

    Attributes:
        tag: Its name: prefix, process id and start time of the owner, and a number.
        pid: Owner.
        started: Start time of the owner in clock ticks since boot.
        pid_namespace: Where that process id means something.
        namespaces: Network namespaces.
        groups: Control groups, each with all below it.
        directory: Scratch directory.
    """

    tag: str
    pid: int
    started: int
    pid_namespace: str
    namespaces: tuple[str, ...]
    groups: tuple[str, ...]
    directory: str

    @property
    def path(self) -> Path:
        """The record's file."""
        return RECORDS / f"{self.tag}.json"

    def save(self) -> None:
        """Writes the record, whole or not at all."""
        RECORDS.mkdir(mode=0o700, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(self))
        part.replace(self.path)


def new_tag() -> str:
    """A name that no other bed has or had since the machine started."""
    return f"{PREFIX}-{os.getpid()}-{started_at(os.getpid())}-{next(_sequence)}"


def parts(tag: str) -> tuple[int, int, int]:
    """Process id and start time of a tag's owner, and its number."""
    _, pid, started, number = tag.split("-")
    return int(pid), int(started), int(number)


def scratch(tag: str) -> Path:
    """Where a bed keeps its files."""
    return Path(tempfile.gettempdir()) / tag


def started_at(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold anything; the numbers come after the last one.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def pid_namespace() -> str:
    """Names the process-id namespace of this process."""
    return str(Path("/proc/self/ns/pid").readlink())


def dismantle(record: Record) -> list[str]:
    """Removes everything that a record names; what is gone already is no fault.

    Returns:
        What could not be removed, a sentence each; the record is kept then, for the next try.
    """
    cleared = {group: cgroups.clear(Path(group)) for group in record.groups}
    problems = [f"control group {group} is still in use" for group, done in cleared.items() if not done]
    existing = {line.split()[0] for line in commands.query("ip", "netns list").splitlines() if line.strip()}
    for namespace in record.namespaces:
        if namespace in existing:
            try:
                commands.query("ip", f"netns del {namespace}")
            except DeferError as exc:
                if Path(f"/run/netns/{namespace}").exists():
                    problems.append(exc.message)
    directory = Path(record.directory)
    # The record is a file in a place of root's; still, nothing is ever deleted that is not named like a bed.
    if directory.name == record.tag and directory.is_dir() and not directory.is_symlink():
        shutil.rmtree(directory, ignore_errors=True)
    if not problems:
        record.path.unlink(missing_ok=True)
    return problems


def reap() -> list[str]:
    """Removes what dead owners left; returns the tags of their beds."""
    found = []
    for path in sorted(RECORDS.glob(f"{PREFIX}-*.json")) if RECORDS.is_dir() else []:
        try:
            record = msgspec.json.decode(path.read_bytes(), type=Record)
        except (FileNotFoundError, msgspec.DecodeError):
            continue  # another process was faster, or this is nothing of ours
        if record.pid_namespace != pid_namespace() or started_at(record.pid) == record.started:
            continue
        dismantle(record)
        found.append(record.tag)
    return found
