"""`defer serve` with tables that are full within minutes: `python -m benchmarks.soak.dispatcher ARGUMENTS`.

What is kept of answered requests is bounded by limits that take an hour to reach. Until then memory and the database
grow as they should, and a leak would hide behind that. So answers of durable requests are kept for a minute here, and
fewer ids and connections that are gone; nothing else differs from `defer serve`.
"""

from __future__ import annotations

import sys
from functools import partial

from defer.cli import main as command
from defer.dispatcher import conveyor, events, links
from defer.dispatcher.durable import Durable, Retention

KEPT_S = 60.0
SPENT = 2048
ANSWERS = 256
PEERS = 64


def main() -> None:
    """Serve."""
    vars(conveyor)["Durable"] = partial(Durable, Retention(seconds=KEPT_S))
    vars(events)["Limits"] = partial(events.Limits, spent=SPENT, answers=ANSWERS)
    links.PEERS = PEERS
    sys.argv[0] = "defer"
    command()


if __name__ == "__main__":
    main()
