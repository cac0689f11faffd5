"""Owns a bed and waits, for tests that end it: prints the bed's tag and its pids when everything runs."""

import json
import sys
import time
from pathlib import Path

from benchmarks.testbed import AgentPlace, Options, Testbed, uniform


def stand_in(place: AgentPlace) -> list[str]:
    script = Path(__file__).with_name("stand_in.py")
    return [sys.executable, "-I", str(script), place.device.name, place.host, str(place.port)]


with Testbed(uniform(2, bandwidth=1e6, delay=0.001), Options(agent_command=stand_in)) as bed:
    sleeper = bed.start(["sleep", "1000"], "box-1")
    pids = [sleeper.pid, *(agent.pid for agent in bed.agents.values())]
    print(json.dumps({"tag": bed.layout.tag, "pids": pids}), flush=True)
    if "--raise" in sys.argv:
        raise RuntimeError("on purpose")
    time.sleep(60)
