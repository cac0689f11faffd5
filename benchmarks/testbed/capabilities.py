"""What this machine can do of what a testbed needs, found by doing it in a namespace made for that."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.testbed import cgroups, commands, owner
from benchmarks.testbed.spec import Spec
from defer.errors import DeferError, MissingExtra, PermissionDenied

TUN = Path("/dev/net/tun")
_MODULES = "apt-get install linux-modules-extra-$(uname -r)"


@dataclass(frozen=True, slots=True)
class Ability:
    """One thing that was tried.

    Attributes:
        name: What.
        ok: Whether it works here.
        detail: What was found, or why not.
        fix: Command that gets it.
        needed: False where there is another way.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""
    needed: bool = True


def abilities() -> list[Ability]:
    """Tries everything; leaves nothing behind."""
    owner_is_root = os.geteuid() == 0
    found = [Ability("root", owner_is_root, f"user id {os.geteuid()}", "sudo -E defer testbed …")]
    found += [_tool(name) for name in commands.INSTALL]
    found.append(_groups())
    if all(one.ok for one in found):
        found += _network()
    return found


def missing(found: Sequence[Ability]) -> list[Ability]:
    """What is needed and does not work."""
    return [one for one in found if one.needed and not one.ok]


def require() -> None:
    """Checks what is cheap to check before a bed is made.

    Raises:
        PermissionDenied: Not root.
        MissingExtra: A tool or the control groups are missing.
    """
    if os.geteuid() != 0:
        raise PermissionDenied(
            "the testbed makes network namespaces and control groups, which only root may",
            hint="run it with sudo -E; `defer testbed check` says what else is missing",
        )
    for name in commands.INSTALL:
        tool = _tool(name)
        if not tool.ok:
            raise MissingExtra(f"the testbed needs `{name}`, which is not installed", hint=tool.fix)
    cgroups.hierarchy()


def delays_by_netem(spec: Spec) -> bool:
    """Whether the kernel shall delay packets, else the delay line does.

    Raises:
        MissingExtra: The file asks for netem and the kernel has none, or there is neither.
    """
    if spec.delay_by != "tun" and has_netem():
        return True
    if spec.delay_by == "netem":
        raise MissingExtra("this kernel has no netem", hint=f'{_MODULES}, or write delay_by = "auto"')
    if any(link.delay for link in spec.links) and not TUN.exists():
        raise MissingExtra(
            "nothing here can delay packets: no netem and no /dev/net/tun",
            hint="modprobe sch_netem || modprobe tun",
        )
    return False


@functools.cache
def has_netem() -> bool:
    """Whether the kernel has the netem queueing discipline."""
    with _Scratch() as scratch:
        return scratch.tries("tc", "qdisc add dev lo root netem delay 1ms") == ""


def _tool(name: str) -> Ability:
    path = shutil.which(name)
    return Ability(name, path is not None, path or "not found", f"apt-get install {commands.INSTALL[name]}")


def _groups() -> Ability:
    try:
        found = cgroups.hierarchy()
        group = found.group(owner.new_tag())
        try:
            group.make(delegate=True)
            group.below("one").make()
            group.below("one").limit_cpu(0.5, 0.01)
            group.below("one").limit_memory(1 << 24)
        finally:
            group.clear()
    except (DeferError, OSError) as exc:
        return Ability("control groups", False, str(exc), "see docs/testbed.md, control groups")
    return Ability("control groups", True, f"version {found.version}, below {found.roots['cpu']}")


class _Scratch:
    """A namespace to try things in."""

    def __init__(self) -> None:
        self.name = owner.new_tag()

    def __enter__(self) -> _Scratch:
        pid, started, _ = owner.parts(self.name)
        self._record = owner.Record(
            tag=self.name,
            pid=pid,
            started=started,
            pid_namespace=owner.pid_namespace(),
            namespaces=(self.name,),
            groups=(),
            directory=str(Path(tempfile.gettempdir()) / self.name),
        )
        self._record.save()
        try:
            commands.query("ip", f"netns add {self.name}")
        except BaseException:
            owner.dismantle(self._record)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        owner.dismantle(self._record)

    def tries(self, tool: str, *lines: str) -> str:
        """Empty when all lines work, else why not."""
        try:
            for line in lines:
                commands.query(tool, line, self.name)
        except DeferError as exc:
            return exc.message
        return ""


_TRIALS: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    "veth": [("ip", ("link add left type veth peer name right",))],
    "bridge device": [("ip", ("link add br0 type bridge", "link set left master br0"))],
    "ifb": [("ip", ("link add line type ifb", "link set line up"))],
    "htb": [
        (
            "tc",
            (
                "qdisc add dev line root handle 1: htb default 0",
                "class add dev line parent 1: classid 1:2 htb rate 1mbit",
                "qdisc replace dev line parent 1:2 pfifo limit 10",
            ),
        )
    ],
    "u32 and mirred": [
        (
            "tc",
            (
                "qdisc add dev left clsact",
                "filter add dev left ingress protocol ip prio 1 u32 match u32 0 0"
                " action mirred egress redirect dev line",
            ),
        )
    ],
}


def _network() -> list[Ability]:
    found = []
    try:
        with _Scratch() as scratch:
            found.append(Ability("network namespaces", True, "made one and removed it"))
            for name, steps in _TRIALS.items():
                reason = next(filter(None, (scratch.tries(tool, *lines) for tool, lines in steps)), "")
                found.append(Ability(name, not reason, reason or "works", _MODULES))
    except DeferError as exc:
        return [Ability("network namespaces", False, exc.message, "in a container: start it privileged")]
    netem = has_netem()
    found.append(
        Ability(
            "netem",
            netem,
            "works" if netem else "not in this kernel; /dev/net/tun delays",
            _MODULES,
            needed=False,
        )
    )
    tun = TUN.exists()
    found.append(
        Ability("/dev/net/tun", tun, "there" if tun else "not there", "modprobe tun", needed=not netem)
    )
    return found
