"""An emulated edge cluster on one Linux machine; needs root. See docs/testbed.md.

Real agents in network namespaces, with CPU shares, memory limits, and links of given bandwidth and delay.
"""

from benchmarks.testbed.agents import Agent, AgentPlace, node_agent_command
from benchmarks.testbed.bed import Options, Testbed
from benchmarks.testbed.document import load, loads
from benchmarks.testbed.owner import reap
from benchmarks.testbed.spec import Device, Link, Spec, uniform

__all__ = [
    "Agent",
    "AgentPlace",
    "Device",
    "Link",
    "Options",
    "Spec",
    "Testbed",
    "load",
    "loads",
    "node_agent_command",
    "reap",
    "uniform",
]
