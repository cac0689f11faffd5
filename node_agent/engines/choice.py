"""Which engine runs a partition: the fastest that gives the CPU's results; and what happens when one fails.

`choose` decides on what was measured. The engines below it measure. An engine that fails, or is wrong, costs one
sentence of explanation and never the deployment: the CPU takes over.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from node_agent.dtypes import RAW_BITS
from node_agent.engines.base import Arrays, Engine, Partition, Session, overlapping
from node_agent.engines.fallback import FALLBACK, may_fall_back
from node_agent.errors import AgentError, LoadFailedError
from node_agent.messages import EngineInfo, TensorSpec
from node_agent.samples import samples

TOLERANCE = 0.02
"""Greatest relative error (L2) against the CPU on the same graph. TF32 and another order of sums give about 1e-3."""

_RUNS = 5
_BUDGET_S = 0.5


@dataclass(frozen=True, slots=True)
class Trial:
    """One engine tried on one partition.

    Attributes:
        engine: Its name.
        seconds: Best time of one run; None if it did not run.
        error: Greatest relative error of an output against the reference; None if there is no reference.
        failure: Why it did not run.
    """

    engine: str
    seconds: float | None = None
    error: float | None = None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine to use, and a sentence for each that is not used and why."""

    engine: str
    reasons: tuple[str, ...]


def choose(trials: Sequence[Trial], tolerance: float = TOLERANCE) -> Choice | None:
    """The fastest engine that is right; None if none ran.

    Args:
        trials: In order of preference, which breaks ties.
        tolerance: See `TOLERANCE`. The reference is right by definition.
    """
    right = [trial for trial in trials if _is_right(trial, tolerance)]
    if not right:
        return None
    best = min(right, key=lambda trial: trial.seconds or 0.0)
    reasons = []
    for trial in trials:
        if trial is best:
            continue
        if trial.seconds is None:
            reasons.append(f"{trial.engine} failed: {trial.failure}")
        elif not _is_right(trial, tolerance):
            reasons.append(
                f"{trial.engine} is wrong: it differs by {trial.error:.2g} from the CPU, {tolerance:g} is allowed"
            )
        else:
            reasons.append(
                f"{trial.engine} is slower: {1000 * trial.seconds:.3g} ms to {1000 * (best.seconds or 0.0):.3g} ms"
            )
    return Choice(best.engine, tuple(reasons))


def _is_right(trial: Trial, tolerance: float) -> bool:
    if trial.seconds is None:
        return False
    return trial.error is None or trial.error <= tolerance


def relative_error(got: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """‖got − expected‖ / ‖expected‖; infinite where shapes differ or `got` is not finite where `expected` is."""
    if got.shape != expected.shape:
        return float("inf")
    if expected.dtype.kind not in "fc":
        # Integers and truth values: the share that differs.
        return float(np.mean(got != expected)) if expected.size else 0.0
    finite = np.isfinite(expected)
    if not np.isfinite(got[finite]).all():
        return float("inf")
    difference = np.linalg.norm(
        (got[finite].astype(np.float64) - expected[finite].astype(np.float64)).ravel()
    )
    size = np.linalg.norm(expected[finite].astype(np.float64).ravel())
    if size == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return float(difference / size)


def options_by_engine(options: Mapping[str, str], known: Collection[str]) -> dict[str, dict[str, str]]:
    """What each engine is told where `auto` chooses among them.

    Args:
        options: Named `ENGINE.OPTION`, because what one engine knows another refuses.
        known: Names of the engines.

    Returns:
        Options by engine, without the engine's name.

    Raises:
        LoadFailedError: An option names no engine.
    """
    found: dict[str, dict[str, str]] = {name: {} for name in known}
    for key, value in options.items():
        engine, dot, option = key.partition(".")
        if engine not in found or not (dot and option):
            raise LoadFailedError(
                f"With engine auto, option {key}={value} {_nobody(engine if dot else '', option, known)}",
                hint=f"Write it as ENGINE.OPTION, for example tensorrt.slots; engines are {', '.join(known)}.",
            )
        found[engine][option] = value
    return found


def _nobody(engine: str, option: str, known: Collection[str]) -> str:
    """What is wrong with the name of an option that no engine gets."""
    if not engine or not option:
        return "names no engine."
    close = difflib.get_close_matches(engine, known, 1)
    return f"names no engine that there is: {engine!r}" + (f"; did you mean {close[0]!r}?" if close else ".")


class ChosenSession:
    """A session that knows which engine it is on and why.

    Attributes:
        engine: The engine's name.
        notes: One sentence for each engine that was not taken.
    """

    def __init__(self, inner: Session, engine: str, notes: Sequence[str] = ()) -> None:
        self._inner = inner
        self.run = inner.run
        """See `Session.run`."""
        several = overlapping(inner)
        if several is not None:
            self.slots, self.submit, self.collect = several.slots, several.submit, several.collect
        self.outputs: Sequence[TensorSpec] = inner.outputs
        self.engine = engine
        self.notes = tuple(notes)

    def close(self) -> None:
        """See `Session.close`."""
        self._inner.close()


def chosen(session: Session, engine: str, notes: Sequence[str] = ()) -> ChosenSession:
    """A session that an engine has made; one in parts says by itself what its parts are on."""
    if isinstance(session, ChosenSession):
        return ChosenSession(session, session.engine, (*notes, *session.notes))
    return ChosenSession(session, engine, notes)


class Fastest:
    """Tries every engine that is installed on the partition itself, and takes the fastest that is right.

    Args:
        engines: By name, in order of preference.
        reference: Name of the one that is right by definition, and needs no trial when it is alone.
        known: Every engine that options may name, installed or not; those of `engines` by default.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        reference: str,
        tolerance: float = TOLERANCE,
        known: Collection[str] = (),
    ) -> None:
        self._engines = engines
        self._known = known or tuple(engines)
        self._reference = reference
        self._tolerance = tolerance

    def info(self) -> EngineInfo:
        """The preferred engine that is installed; the reference's own word if none is."""
        found = [engine.info() for engine in self._engines.values()]
        return next((info for info in found if not info.missing), self._engines[self._reference].info())

    def load(self, partition: Partition) -> Session:
        """See `Engine.load`. Each engine gets the options that name it, see `options_by_engine`."""
        options = options_by_engine(partition.options, self._known)
        missing = {name: engine.info().missing for name, engine in self._engines.items()}
        installed = {name: engine for name, engine in self._engines.items() if not missing[name]}
        if set(installed) <= {self._reference}:
            alone = replace(partition, options=options[self._reference])
            return ChosenSession(self._engines[self._reference].load(alone), self._reference)
        feeds = samples(_bound(partition))
        sessions: dict[str, Session] = {}
        trials: list[Trial] = []
        try:
            expected: Arrays | None = None
            # The reference runs first, and is listed where it was preferred.
            for name in sorted(installed, key=lambda name: name != self._reference):
                tried = replace(partition, options=options[name])
                trial, outputs = _try(name, installed[name], tried, feeds, expected, sessions)
                trials.append(trial)
                if name == self._reference:
                    expected = outputs
            order = list(installed)
            trials.sort(key=lambda trial: order.index(trial.engine))
            choice = choose(trials, self._tolerance)
            if choice is None:
                failures = " ".join(f"{trial.engine}: {trial.failure}" for trial in trials)
                raise LoadFailedError(f"No engine runs partition {partition.graph.name}. {failures}")
            return chosen(sessions.pop(choice.engine), choice.engine, choice.reasons)
        finally:
            for session in sessions.values():
                session.close()


class WithFallback:
    """The engine that was asked for; the reference where it cannot run the partition, with the reason.

    Option `fallback=no` makes its failure the deployment's.
    """

    def __init__(self, name: str, engine: Engine, reference_name: str, reference: Engine) -> None:
        self._name = name
        self._engine = engine
        self._reference_name = reference_name
        self._reference = reference

    def info(self) -> EngineInfo:
        """The engine's own."""
        return self._engine.info()

    def load(self, partition: Partition) -> Session:
        """See `Engine.load`."""
        options = dict(partition.options)
        fallback = may_fall_back(options)
        options.pop(FALLBACK, None)
        try:
            session = self._engine.load(replace(partition, options=options))
        except Exception as error:
            if not fallback:
                raise
            # The engine's own options mean nothing to the CPU.
            inner = self._reference.load(replace(partition, options={}))
            note = f"{self._name} failed: {_said(error)}"
            return ChosenSession(inner, self._reference_name, (note,))
        return chosen(session, self._name)


def _said(error: Exception) -> str:
    """One line of what an engine raised; what is not ours names its type, because its text may say little."""
    if isinstance(error, AgentError):
        return f"{error} {error.hint}".rstrip()
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _bound(partition: Partition) -> list[TensorSpec]:
    """The inputs with usual sizes in place of free dimensions."""
    usual = partition.usual
    return [
        TensorSpec(spec.name, spec.dtype, tuple(usual.get(spec.name, spec.shape)))
        for spec in partition.inputs
    ]


def _try(
    name: str,
    engine: Engine,
    partition: Partition,
    feeds: Arrays,
    expected: Arrays | None,
    sessions: dict[str, Session],
) -> tuple[Trial, Arrays | None]:
    """Loads and times one engine; what is loaded lands in `sessions`."""
    try:
        session = sessions[name] = engine.load(partition)
        outputs = session.run(feeds)
        seconds = _best_time(session, feeds)
    except Exception as failure:
        return Trial(name, failure=_said(failure)), None
    raw = {spec.name for spec in session.outputs if spec.dtype in RAW_BITS}
    error: float | None = None
    if expected is not None:
        known = [key for key in outputs if key in expected and key not in raw]
        error = max((relative_error(outputs[key], expected[key]) for key in known), default=0.0)
    return Trial(name, seconds, error), outputs


def _best_time(session: Session, feeds: Arrays) -> float:
    best = float("inf")
    end = time.perf_counter() + _BUDGET_S
    for _ in range(_RUNS):
        start = time.perf_counter()
        session.run(feeds)
        now = time.perf_counter()
        best = min(best, now - start)
        if now >= end:
            break
    return best
