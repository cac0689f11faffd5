"""What a dispatcher's command line still asks for after a restart, beside what was deployed and promoted since. Pure."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

from defer.dispatcher.bringup import Order
from defer.dispatcher.rollout import Split


@dataclass(frozen=True, slots=True)
class Commanded:
    """What is to be done about `--model`.

    Attributes:
        load: Whether it is to be brought up.
        told: Why it is not served, or gets no requests, in one sentence; empty where there is nothing to say.
    """

    load: bool
    told: str = ""


def commanded(order: Order, held: Order | None, split: Split | None, served: Collection[str]) -> Commanded:
    """Compare what the command line asks for with what is there.

    What was deployed or promoted last stays; a command line that has asked for the same before asks for nothing new.

    Args:
        order: What the command line asks for, with its digest.
        held: What is served under that name; None for nothing.
        split: What the name stands for, where there are versions.
        served: Deployments that are there.
    """
    name, again = order.name, f"defer deploy {order.model} --name {order.name}"
    if held is not None and order.digest == held.digest:
        return Commanded(load=False)
    if held is not None and held.source == "deploy" and order.digest == held.asked:
        when = f" on {time.strftime('%Y-%m-%d at %H:%M:%S', time.localtime(held.at))}" if held.at else ""
        return Commanded(
            load=False,
            told=f"{name} was replaced by a deploy{when}: that is served, and --model {order.model} is not loaded; "
            f"`{again}` brings it back",
        )
    if split is None or split.stable == name or split.stable not in served:
        return Commanded(load=True)
    takes = f"requests for {name} take {split.stable}"
    if held is None and name not in (split.before, split.canary):
        return Commanded(
            load=False,
            told=f"{takes}: --model {order.model} is not loaded; `{again} --version VERSION` brings it beside",
        )
    return Commanded(load=True, told=f"{takes}: --model {order.model} is loaded beside")
