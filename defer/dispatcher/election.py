"""Which of several dispatchers acts: a lease on one record, and nothing that two machines' clocks must agree on. Pure.

                    lease free, or unchanged for `lease_s`              written
    following ─────────────────────────────────────────────▶ claiming ─────────▶ leading ──▶ following
        ▲                                                        │                  │ not renewed for `act_s`,
        └──────────────── somebody else was first ───────────────┘                  │ or somebody else holds it
                                                                                    └─▶ StepDown

The record has a revision that grows with each write, and is written only where the revision is still the one that was
read. Whoever leads writes it again and again, and acts no longer than `act_s` after it *began* the last write that is
known to have succeeded. Whoever follows takes it over when it has seen the same revision for `lease_s`, which began
after that write. So with `act_s < lease_s` no two act at the same time, whatever the network does and whatever the
clocks show, as long as they run at nearly the same rate; the difference is what they may drift apart in `lease_s`, and
what a message that is being sent takes.

Each leader has a higher term than all before. Times are seconds on a clock that also runs while a machine sleeps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import msgspec


class Lease(msgspec.Struct, frozen=True):
    """What the record says.

    Attributes:
        term: Number of the leadership: none is given twice.
        holder: Who leads, by a name that differs for each start of a process.
        address: Where it is reached, for messages.
        released: It has stopped in order: whoever wants may follow at once.
    """

    term: int
    holder: str
    address: str
    released: bool = False


@dataclass(frozen=True, slots=True)
class Timing:
    """How fast a leader is replaced, against how long it may be out of the store's reach. Seconds.

    Attributes:
        lease_s: A lease that stays as it is for this long is taken over.
        act_s: A leader acts no longer than this after it began its last successful renewal.
        renew_s: A leader renews this often.
        read_s: Whoever follows looks this often.
    """

    lease_s: float = 1.8
    act_s: float = 1.5
    renew_s: float = 0.3
    read_s: float = 0.12

    @classmethod
    def of(cls, lease_s: float) -> Timing:
        """Everything in proportion to the lease."""
        return cls(lease_s, lease_s * 5 / 6, lease_s / 6, min(1.0, lease_s / 15))


@dataclass(frozen=True, slots=True)
class Read:
    """The record was read: its revision, 0 where there is none."""

    revision: int
    lease: Lease | None


@dataclass(frozen=True, slots=True)
class Written:
    """The write that was asked for succeeded, and gave this revision."""

    revision: int


@dataclass(frozen=True, slots=True)
class Refused:
    """It was refused: the record's revision is another one."""


@dataclass(frozen=True, slots=True)
class Failed:
    """It is not known what became of the read or the write."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Resign:
    """The leader stops in order; it must do nothing any more when it says so."""


Event = Read | Written | Refused | Failed | Tick | Resign


@dataclass(frozen=True, slots=True)
class ReadLease:
    """Read the record; ends with `Read` or `Failed`."""


@dataclass(frozen=True, slots=True)
class WriteLease:
    """Write the record where its revision is `revision`; ends with `Written`, `Refused` or `Failed`."""

    lease: Lease
    revision: int


@dataclass(frozen=True, slots=True)
class Lead:
    """This process acts from now on."""

    term: int


@dataclass(frozen=True, slots=True)
class StepDown:
    """It acts no more; said at most once for each `Lead`."""

    reason: str


Instruction = ReadLease | WriteLease | Lead | StepDown
State = Literal["following", "claiming", "leading"]


class Election:
    """One candidate.

    At most one read or write is under way: each is asked for by an instruction, and ends with an event.

    Args:
        holder: Name of this start of this process; no other has it.
        address: Where it is reached.
        timing: See there.
    """

    def __init__(self, holder: str, address: str, timing: Timing | None = None) -> None:
        self.timing = timing or Timing()
        self.state: State = "following"
        self.until = -math.inf
        """Until when this process may act; only ever later while it leads."""
        self.lease: Lease | None = None
        """What the record said when it was last read or written."""
        self._holder, self._address = holder, address
        self._revision = 0
        self._since = math.inf  # when the revision was first seen
        self._busy = False
        self._began = -math.inf  # when what is under way was asked for
        self._next = -math.inf
        self._term = 0
        self._claimed = 0
        self._unsure = False  # while it leads: whether the last write was taken

    @property
    def term(self) -> int:
        """The term under which this process leads, or led last; 0 before the first."""
        return self._term

    def acts(self, now: float) -> bool:
        """Whether this process may act."""
        return self.state == "leading" and now < self.until

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take in one event at `now`, and say what to do."""
        if isinstance(event, Resign):
            return self._resign(now)
        if not isinstance(event, Tick):
            self._busy = False
        lost = self._expired(now)
        match event:
            case Read(revision, lease):
                return [*lost, *self._read(revision, lease, now)]
            case Written(revision):
                return [*lost, *self._written(revision, now)]
            case Refused():
                return [*lost, *self._refused(now)]
            case Failed():
                return [*lost, *self._failed(now)]
            case Tick():
                return [*lost, *self._due(now)]

    def next_wake(self, now: float) -> float:
        """When `Tick` is due; infinity never comes, as something is always under way or due."""
        due = now + self.timing.read_s if self._busy else max(self._next, now)
        return min(due, self.until) if self.state == "leading" else due

    # ------------------------------------------------------------------------------------------------- inside

    def _expired(self, now: float) -> list[Instruction]:
        if self.state != "leading" or now < self.until:
            return []
        return self._step_down(f"the lease was not renewed for {self.timing.act_s:g} s")

    def _step_down(self, reason: str) -> list[Instruction]:
        self.state, self.until, self._unsure = "following", -math.inf, False
        # What is under way may still make this process the holder: the lease is waited out like another's.
        self._revision, self._since, self._next = 0, math.inf, -math.inf
        return [StepDown(reason)]

    def _due(self, now: float) -> list[Instruction]:
        if self._busy or now < self._next:
            return []
        self._busy, self._began = True, now
        if self.state == "leading" and not self._unsure:
            return [WriteLease(Lease(self._term, self._holder, self._address), self._revision)]
        return [ReadLease()]

    def _read(self, revision: int, lease: Lease | None, now: float) -> list[Instruction]:
        if self.state == "leading":
            return self._looked_again(revision, lease, now)
        if revision != self._revision or self._since == math.inf:
            self._revision, self._since = revision, now
        self.lease = lease
        free = lease is None or lease.released
        if not free and now - self._since < self.timing.lease_s:
            self._next = now + self.timing.read_s
            return []
        self.state, self._busy, self._began = "claiming", True, now
        self._claimed = max(self._term, lease.term if lease is not None else 0) + 1
        return [WriteLease(Lease(self._claimed, self._holder, self._address), revision)]

    def _written(self, revision: int, now: float) -> list[Instruction]:
        if self.state == "following":  # it came too late: the lease is ours, and nobody may act on it
            self._revision, self._since, self._next = revision, now, now
            return []
        claimed = self.state == "claiming"
        until = self._began + self.timing.act_s
        if claimed:
            self._term = self._claimed
        self._revision = revision
        self.lease = Lease(self._term, self._holder, self._address)
        if until <= now:  # the answer took longer than it is worth
            self._next = now
            if claimed:
                self.state, self._since = "following", now
                return []
            return self._step_down("the store answers too slowly")
        self.state, self.until, self._next = "leading", until, self._began + self.timing.renew_s
        return [Lead(self._term)] if claimed else []

    def _refused(self, now: float) -> list[Instruction]:
        self._next = now
        if self.state == "leading":
            self._unsure = True  # perhaps it was our own write before, whose answer was lost
        else:
            self.state = "following"
        return []

    def _failed(self, now: float) -> list[Instruction]:
        self._next = now + self.timing.read_s
        if self.state == "leading":
            self._unsure = True
        else:
            self.state = "following"
        return []

    def _looked_again(self, revision: int, lease: Lease | None, now: float) -> list[Instruction]:
        if lease is None or (lease.holder, lease.term, lease.released) != (self._holder, self._term, False):
            return self._step_down("another dispatcher has taken the lease")
        self._revision, self._unsure, self._next = revision, False, now
        return []

    def _resign(self, now: float) -> list[Instruction]:
        led = self.state == "leading"
        self.state, self.until = "following", -math.inf
        if not led or self._busy:
            return []
        self._busy, self._began = True, now
        return [WriteLease(Lease(self._term, self._holder, self._address, released=True), self._revision)]
