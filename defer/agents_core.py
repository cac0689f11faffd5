"""What the dispatcher knows of its agents and of the questions it has asked them: plain data in, plain data out.

`AgentsCore` holds no socket, thread or clock. Its methods take an event and the time (seconds on any monotonic clock)
and return instructions, which `defer.agents` executes. An agent is known by its device name.

States of an agent:

    connecting ── Welcome ──▶ alive ── silence or disconnect ──▶ lost ── Welcome, same boot ──▶ alive   ("back")
        │                                                          └──── Welcome, other boot ─▶ alive   ("restarted")
        └── Fault (protocol, refused) ──▶ refused

One that registers under the name of an agent that is known elsewhere, or alive as another process, is a rival: it is
taken where that one turns out to be gone, welcomed where both are the same process, and told why not where it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import msgspec

from defer.errors import AgentUnreachable
from defer.rivals import Rival, is_another
from node_agent import messages as m
from node_agent.errors import VersionError
from node_agent.versions import OURS, VersionRange, negotiate

HELLO_EVERY_S = 0.5
"""Seconds between greetings to an agent that does not answer."""

SILENCE_S = 0.4
SILENCE_LIMIT_S = 3.0
"""An agent that has sent nothing for this long is lost; a closed connection says so at once.

Longer, up to the limit, where its heartbeats come irregularly: four times the longest pause lately.
"""

PAUSES = 4.0
FADES = 0.98
"""What is left of the longest pause after each message."""

DOUBT_S = 0.25
"""After a connection of unknown owner closed on our socket, an agent that says nothing for this long was its owner."""

OWN_PAUSE_S = 0.3
"""Longer between two ticks means that this process stood still, and heard nobody."""

KEYS = "unauthorised"
"""Code of a refusal that ends by itself once keys are put right."""

State = Literal["connecting", "alive", "lost", "refused"]


@dataclass(frozen=True, slots=True)
class Liveness:
    """What is known of one agent; times are on the caller's monotonic clock.

    `pause` is the longest time between two of its messages lately.
    """

    name: str
    endpoint: str
    state: State = "connecting"
    version: int = 0
    boot: str = ""
    offer: m.Offer | None = None
    heartbeat: m.Heartbeat | None = None
    heard_at: float = 0.0
    pause: float = 0.0
    refusal: str = ""
    refusal_code: str = ""


@dataclass(frozen=True, slots=True)
class Send:
    """Send `message` to the agent, with `frame` behind it where there is one."""

    name: str
    message: m.ControlMessage
    frame: bytes | memoryview | None = None


@dataclass(frozen=True, slots=True)
class Settle:
    """The question `id` has its answer, or ended without one (`answer` None: `problem` says why)."""

    id: int
    answer: m.ControlMessage | None
    problem: Literal["", "lost", "timeout"] = ""


@dataclass(frozen=True, slots=True)
class Report:
    """The question `id` is being worked on."""

    id: int
    progress: m.Progress


@dataclass(frozen=True, slots=True)
class Notify:
    """Something happened to an agent that others may want to know."""

    kind: Literal["alive", "lost", "back", "restarted", "refused", "turned-away", "unknown"]
    name: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Adopt:
    """The agent has registered on the connection `via`."""

    name: str
    via: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer on the connection `via`, whoever the agent of its name is."""

    via: bytes
    message: m.ControlMessage


Instruction = Send | Settle | Report | Notify | Adopt | Reply


@dataclass(slots=True)
class _Question:
    name: str
    deadline: float


@dataclass(slots=True)
class AgentsCore:
    """The dispatcher's side of every control connection.

    Args:
        name: How the dispatcher introduces itself.
        realm: Name of the state that it shares with others; empty for none.
        term: By which it leads them: agents obey the highest.
    """

    name: str
    realm: str = ""
    term: int = 0
    agents: dict[str, Liveness] = field(default_factory=dict)
    _questions: dict[int, _Question] = field(default_factory=dict)
    _next_id: int = 1
    _next_hello: dict[str, float] = field(default_factory=dict)
    _rivals: dict[str, Rival] = field(default_factory=dict)
    _doubted: float | None = None
    _ticked: float | None = None

    # -------------------------------------------------------------------------------------------- connections

    def dial(self, name: str, endpoint: str, now: float) -> list[Instruction]:
        """Start greeting the agent at `endpoint`."""
        self.agents[name] = Liveness(name, endpoint, heard_at=now)
        return self._greet(name, now)

    def registered(self, hello: m.Hello, now: float, via: bytes = b"", at: str = "") -> list[Instruction]:
        """An agent that dials out has said who it is.

        It is welcomed, and greeted so that it answers like any other: also when it is known to be alive, because it
        says `Hello` on a new connection, on which it knows nobody yet.

        Args:
            hello: What it said.
            now: When, s.
            via: The connection on which it said so; empty where whoever executes knows it by its name.
            at: Where the cluster file has the device of that name; empty for one that registers.
        """
        known = self.agents.get(hello.name)
        elsewhere = at or (known.endpoint if known is not None else "")
        try:
            version = negotiate(OURS, VersionRange(hello.minimum, hello.version), f"agent {hello.name!r}")
        except VersionError as error:
            if not elsewhere and (known is None or known.state != "alive"):
                self.agents[hello.name] = Liveness(
                    hello.name, "", "refused", heard_at=now, refusal=str(error), refusal_code=error.code
                )
            fault = m.Fault(hello.id, error.code, str(error), error.hint)
            answer = Reply(via, fault) if via else Send(hello.name, fault)
            return [answer, Notify("refused", hello.name, str(error))]
        if via and (elsewhere or (known is not None and is_another(known, hello))):
            held = self._rivals.get(hello.name)
            since = held.since if held is not None and held.via == via else now
            rival = self._rivals[hello.name] = Rival(hello, via, version, elsewhere, since)
            return self._settle_rival(rival, now)
        self._rivals.pop(hello.name, None)
        return self._take_in(hello, version, via, now)

    def forget(self, name: str) -> list[Instruction]:
        """Stop talking to an agent; open questions to it end as lost."""
        self.agents.pop(name, None)
        self._next_hello.pop(name, None)
        return self._drop_questions(name)

    def connected(self, name: str, now: float) -> list[Instruction]:
        """The connection to the agent stands: greet at once instead of at the next turn."""
        known = self.agents.get(name)
        if known is not None and known.state == "refused" and known.refusal_code == KEYS:
            known = self.agents[name] = replace(known, state="connecting", refusal="", refusal_code="")
        return self._greet(name, now) if known is not None and known.state in ("connecting", "lost") else []

    def barred(self, name: str, why: str) -> list[Instruction]:
        """Keys keep the agent from us; one that was known before stays lost."""
        known = self.agents.get(name)
        if known is None or known.state != "connecting":
            return []
        self.agents[name] = replace(known, state="refused", refusal=why, refusal_code=KEYS)
        return [Notify("refused", name, why)]

    def disconnected(self, name: str, now: float, why: str = "its connection closed") -> list[Instruction]:
        """The connection to the agent closed: its process ended or the link went, where nothing else is said."""
        return self._lose(name, why, now)

    def hung_up(self, now: float) -> None:
        """Somebody who had dialled us is gone; who, the socket does not tell."""
        self._doubted = now

    # ---------------------------------------------------------------------------------------------- questions

    def ask(
        self,
        name: str,
        build: Callable[[int], m.ControlMessage],
        deadline: float,
        frame: bytes | memoryview | None = None,
    ) -> tuple[int, list[Instruction]]:
        """Ask an agent something; `build` makes the message with the id it is given."""
        number = self._take_id()
        liveness = self.agents.get(name)
        if liveness is None or liveness.state != "alive":
            return number, [Settle(number, None, "lost")]
        self._questions[number] = _Question(name, deadline)
        return number, [Send(name, build(number), frame)]

    def received(self, name: str, message: m.ControlMessage, now: float) -> list[Instruction]:
        """A message came from the agent."""
        known = self.agents.get(name)
        if known is None:
            return []
        # What is between a loss and the return is no pause of an agent that lives.
        last = min(now - known.heard_at, SILENCE_LIMIT_S / PAUSES) if known.state == "alive" else 0.0
        known = self.agents[name] = replace(known, heard_at=now, pause=max(last, FADES * known.pause))
        match message:
            case m.Heartbeat():
                self.agents[name] = replace(known, heartbeat=message)
                # A heartbeat of another start of the process, or one after silence: it must be greeted anew.
                stale = known.state == "lost" or (known.boot and known.boot != message.boot)
                return self._greet(name, now) if stale and now >= self._next_hello.get(name, 0) else []
            case m.Welcome():
                return self._welcomed(known, message)
            case m.Fault() if message.id not in self._questions and known.state == "connecting":
                self.agents[name] = replace(
                    known, state="refused", refusal=message.message, refusal_code=message.code
                )
                return [Notify("refused", name, message.message)]
            case m.Progress():
                return [Report(message.id, message)] if message.id in self._questions else []
            case _:
                if self._questions.pop(message.id, None) is None:
                    return []  # an answer after its deadline
                return [Settle(message.id, message)]

    def tick(self, now: float) -> list[Instruction]:
        """Let time pass: greet again, end what waited too long, notice silence."""
        instructions: list[Instruction] = []
        self._stood_still(now)
        for rival in list(self._rivals.values()):
            instructions += self._settle_rival(rival, now)
        for name, liveness in list(self.agents.items()):
            silent = now - liveness.heard_at
            if liveness.state == "alive" and silent > max(SILENCE_S, PAUSES * liveness.pause):
                instructions += self._lose(name, f"it has been silent for {silent:.2g} s", now)
            elif liveness.state == "alive" and self._hung_up(liveness, now):
                instructions += self._lose(name, "its connection closed", now)
            elif liveness.state in ("connecting", "lost") and now >= self._next_hello.get(name, 0):
                instructions += self._greet(name, now)
        for number, question in list(self._questions.items()):
            if now >= question.deadline:
                del self._questions[number]
                instructions.append(Settle(number, None, "timeout"))
        return instructions

    # ------------------------------------------------------------------------------------------------- inside

    def _take_in(self, hello: m.Hello, version: int, via: bytes, now: float) -> list[Instruction]:
        known = self.agents.get(hello.name)
        if known is None or known.state == "refused":
            self.agents[hello.name] = Liveness(hello.name, "", heard_at=now)
        adopt: list[Instruction] = [Adopt(hello.name, via)] if via else []
        welcome = m.Welcome(hello.id, version, self.name, "")
        return [*adopt, Send(hello.name, welcome), *self._greet(hello.name, now)]

    def _settle_rival(self, rival: Rival, now: float) -> list[Instruction]:
        hello = rival.hello
        known = self.agents.get(hello.name)
        verdict = rival.verdict(known, now)
        if verdict == "wait":
            return []
        del self._rivals[hello.name]
        if verdict == "take":
            return self._take_in(hello, rival.version, rival.via, now)
        if verdict == "same":
            welcome = m.Welcome(hello.id, rival.version, self.name, "")
            return [Adopt(hello.name, rival.via), Reply(rival.via, welcome)]
        refusal = rival.refusal(known)
        return [Reply(rival.via, refusal), Notify("turned-away", hello.name, refusal.message)]

    def _stood_still(self, now: float) -> None:
        """What this process did not hear while it was stopped itself, nobody failed to say."""
        late = 0.0 if self._ticked is None else now - self._ticked
        self._ticked = now
        if late > OWN_PAUSE_S:
            for name, liveness in self.agents.items():
                self.agents[name] = replace(liveness, heard_at=max(liveness.heard_at, now - OWN_PAUSE_S))
            # Nor is an agent that had ended alive because of that, when another comes by its name.
            self._rivals = {name: replace(rival, since=now) for name, rival in self._rivals.items()}

    def _hung_up(self, liveness: Liveness, now: float) -> bool:
        """Whether an agent that had dialled us was the one whose connection closed."""
        if self._doubted is None or liveness.endpoint or now < self._doubted + DOUBT_S:
            return False
        return liveness.heard_at <= self._doubted

    def _take_id(self) -> int:
        number, self._next_id = self._next_id, self._next_id + 1
        return number

    def _greet(self, name: str, now: float) -> list[Instruction]:
        self._next_hello[name] = now + HELLO_EVERY_S
        hello = m.Hello(self._take_id(), m.PROTOCOL_MINIMUM, m.PROTOCOL_VERSION, self.name, "dispatcher")
        hello = msgspec.structs.replace(hello, realm=self.realm, term=self.term)
        return [Send(name, hello)]

    def _welcomed(self, known: Liveness, welcome: m.Welcome) -> list[Instruction]:
        if welcome.offer is None and known.offer is None:
            why = "a dispatcher listens there, not an agent; correct its address in the cluster file"
            self.agents[known.name] = replace(
                known, state="refused", refusal=why, refusal_code="agent-unreachable"
            )
            return [Notify("refused", known.name, why)]
        if welcome.name != known.name:
            why = f"the agent there is called {welcome.name!r}; start it with --name {known.name}"
            self.agents[known.name] = replace(
                known, state="refused", refusal=why, refusal_code="unknown-device"
            )
            return [Notify("refused", known.name, why)]
        fresh = not known.boot
        same = known.boot == welcome.boot
        self.agents[known.name] = replace(
            known,
            state="alive",
            version=welcome.version,
            boot=welcome.boot,
            offer=welcome.offer or known.offer,
        )
        if fresh:
            return [Notify("alive", known.name)]
        if not same:
            # What the old process held is gone, and so are its answers.
            return [*self._drop_questions(known.name), Notify("restarted", known.name)]
        return [Notify("back", known.name)] if known.state == "lost" else []

    def _lose(self, name: str, why: str, now: float) -> list[Instruction]:
        known = self.agents.get(name)
        if known is None or known.state != "alive":
            return []
        self.agents[name] = replace(known, state="lost")
        self._next_hello[name] = now + HELLO_EVERY_S
        return [*self._drop_questions(name), Notify("lost", name, why)]

    def _drop_questions(self, name: str) -> list[Instruction]:
        dropped = [number for number, question in self._questions.items() if question.name == name]
        for number in dropped:
            del self._questions[number]
        return [Settle(number, None, "lost") for number in dropped]


def with_id(message: m.ControlMessage, number: int) -> m.ControlMessage:
    """`message` with its id set; callers of the pool write 0 and never see ids."""
    changed: m.ControlMessage = msgspec.structs.replace(message, id=number)
    return changed


def unreachable(name: str, endpoint: str, timeout: float) -> AgentUnreachable:
    """The error for an agent that has not been heard of for `timeout` seconds."""
    if endpoint:
        return AgentUnreachable(
            f"agent {name!r} did not answer at {endpoint} within {timeout:g} s",
            hint=f"start it there with `defer agent --name {name} --listen {endpoint.removeprefix('tcp://')}`, "
            "or correct its address in the cluster file",
        )
    return AgentUnreachable(
        f"agent {name!r} has not dialled in within {timeout:g} s",
        hint=f"start it on its box with `defer agent --name {name} --dial tcp://THIS_HOST:PORT`",
    )
