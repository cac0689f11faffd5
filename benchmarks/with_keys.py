"""A pipeline whose every connection has keys, beside the same one without: what encryption takes."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.chains import run_load
from benchmarks.processes import serving
from benchmarks.testbed import Options as BedOptions
from benchmarks.testbed import Testbed, node_agent_command
from benchmarks.testbed.agents import AgentPlace
from benchmarks.testbed.spec import Spec
from defer import keys

CLIENT = "client"


def rates_with_keys(spec: Spec, model: Path, plan: Path, load: Sequence[str], work: Path) -> list[float]:
    """Results per second in each turn.

    Args:
        spec: The devices.
        model: An ONNX file.
        plan: What was measured without keys, to compare the same stages.
        load: The command of `benchmarks.load`, without what it is to load.
        work: An empty directory, for keys and state.
    """
    folder = work / "keys"
    keys.make(folder, spec.dispatcher, "dispatcher")
    keys.make(folder, CLIENT, "client")
    for device in spec.devices:
        if device.name != spec.dispatcher:
            keys.make(folder, device.name, "agent")

    def secret(name: str) -> list[str]:
        return ["--keys", str(folder / "secret" / f"{name}.toml")]

    def agent(place: AgentPlace) -> Sequence[str]:
        command = list(node_agent_command(place))
        at = command.index("--insecure")
        return [*command[:at], *secret(place.device.name), *command[at + 1 :]]

    with ExitStack() as stack:
        bed = stack.enter_context(Testbed(spec, BedOptions(agent_command=agent)))

        def start(command: Sequence[str]) -> subprocess.Popen[str]:
            return bed.start(command, None, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

        more = ["--model", str(model), "--plan", str(plan), "--state", str(work / "state"), "--wait", "60"]
        ready = stack.enter_context(
            serving(bed.cluster_file, *more, *secret(spec.dispatcher), start=start, timeout=600.0)
        )
        return run_load([*load, "--defer", ready["ready"], *secret(CLIENT)], bed)["defer"]
