"""Small probes of links while they serve: a few hundred kilobytes, beside what travels. Blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from defer.agents import AgentPool
from defer.errors import AgentFault
from defer.hops import Place
from node_agent.link import new_context
from node_agent.messages import ControlMessage, LinkMeasured, MeasureLink, PeerRef
from node_agent.prober import measure_link

NBYTES: Final = 256 << 10
"""Bytes of the largest message of a probe; a slow link gets smaller ones."""

BUDGET_S: Final = 0.1
"""Seconds that a probe takes about, so that what is served hardly waits."""

ANSWER_S: Final = 30.0
"""A link of which nothing comes back for so long is not measured; that it is broken, others notice."""


def probe(
    pool: AgentPool, source: str, target: str, places: Mapping[str, Place], home: str, dispatcher: Place
) -> LinkMeasured | None:
    """Time one direction of a link; None where its sender cannot dial its receiver, or one of them is not there.

    Args:
        pool: Connections to the agents.
        source: The sending device.
        target: The receiving device.
        places: Where agents are reached on the data plane, as far as they are connected.
        home: The dispatcher's device.
        dispatcher: Where its data socket answers probes.

    Raises:
        AgentFault, AgentError: The sender could not reach the receiver.
        AgentUnreachable: The sender did not answer.
    """
    peer = dispatcher if target == home and target not in places else places.get(target)
    if peer is None or peer.dials:
        return None
    question = MeasureLink(0, PeerRef(peer.name, peer.data), NBYTES, BUDGET_S)
    if source not in places:
        if source != home:
            return None
        with new_context(pool.security) as context:
            return measure_link(context, question)
    answer: ControlMessage = pool.ask(source, question, timeout=ANSWER_S)
    if not isinstance(answer, LinkMeasured):
        raise AgentFault(f"agent {source!r} answered {type(answer).__name__} to MeasureLink")
    return answer
