"""A share of the requests is run once more without lossy codecs, and the results are compared.

Beside a deployment with lossy codecs its reference is loaded: the same partitions, which agents hold once however many
deployments use them, with every codec lossless. It takes no requests of clients.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field

import msgspec

from defer.accuracy import Metric, deviation
from defer.dispatcher import events as e
from defer.dispatcher.shell import DataShell
from defer.documents.plan import Plan
from defer.errors import DeferError
from node_agent.codecs import CODECS, is_lossless
from node_agent.errors import AgentError
from node_agent.frames import unpack

logger = logging.getLogger("defer.dispatcher")

REFERENCE_S = 60.0
"""Seconds in which the reference must answer."""


@dataclass(slots=True)
class Tally:
    """What the comparisons of one deployment found.

    Attributes:
        reference: Epoch of its lossless reference.
        metric: See `defer.accuracy.Budget`.
        compared: Requests.
        failed: Requests for which the reference gave no result.
        worst: Largest deviation.
        total: Sum of the deviations.
    """

    reference: int
    metric: Metric
    compared: int = 0
    failed: int = 0
    worst: float = 0.0
    total: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def mean(self) -> float:
        """Mean deviation."""
        return self.total / self.compared if self.compared else 0.0


def loses(codec: str) -> bool:
    """Whether a codec may change values, as far as this build knows."""
    return codec not in CODECS or not is_lossless(codec)


def reference_of(plan: Plan) -> Plan | None:
    """The same plan without lossy codecs; None where it has none."""
    if not any(loses(transfer.codec) for transfer in plan.transfers):
        return None
    exact = tuple(
        msgspec.structs.replace(transfer, codec="raw", wire_bytes=transfer.nbytes)
        if loses(transfer.codec)
        else transfer
        for transfer in plan.transfers
    )
    return msgspec.structs.replace(plan, transfers=exact, accuracy=None)


class Sampler:
    """Compares sampled requests, one at a time: where the last one is still under way, a sample is passed over.

    Args:
        shell: The data thread.
    """

    def __init__(self, shell: DataShell) -> None:
        self.tallies: dict[int, Tally] = {}
        self._shell = shell
        self._busy = threading.Lock()

    def compare(self, sampled: e.Sampled) -> None:
        """Run a request on its deployment's reference and note how far the result was off; blocks."""
        tally = self.tallies.get(sampled.epoch)
        if tally is None or not self._busy.acquire(blocking=False):
            return
        try:
            self._compare(sampled, tally)
        except (DeferError, AgentError, TimeoutError) as error:
            logger.info("a sampled request was not compared: %s", error)
            with tally.lock:
                tally.failed += 1
        finally:
            self._busy.release()

    def _compare(self, sampled: e.Sampled, tally: Tally) -> None:
        asked = self._shell.canary(tally.reference, sampled.infer.tensors, sampled.frames, REFERENCE_S)
        headers, frames, _ = asked.result(REFERENCE_S + 5)
        exact = unpack(headers, frames)
        got = unpack(sampled.result.tensors, sampled.outputs)
        off = deviation(tally.metric, {name: exact[name] for name in got}, got)
        with tally.lock:
            tally.compared += 1
            tally.total += off
            tally.worst = max(tally.worst, off)
