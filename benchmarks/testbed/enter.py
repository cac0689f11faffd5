"""Starting a process inside of a device: first its control groups, then its network, then the program itself.

One shell line and `nsenter`, each replaced by the next: the id of the process is that of the program, and no code
of ours runs between fork and exec of a process that may have threads.
"""

from __future__ import annotations

from collections.abc import Sequence

_SCRIPT = 'while [ "$1" != -- ]; do echo $$ > "$1" || exit 125; shift; done; shift; exec "$@"'


def entering(entrances: Sequence[str], namespace: str, command: Sequence[str]) -> list[str]:
    """The command line that runs `command` in control groups and in a network namespace.

    Only the network is another one: files, `/proc` and control groups look as everywhere on the machine.

    Args:
        entrances: Files of the control groups; the process writes its id there.
        namespace: Name of the network namespace.
        command: Program and arguments.
    """
    inside = ["nsenter", f"--net=/run/netns/{namespace}", "--", *command]
    return ["sh", "-c", _SCRIPT, "enter", *entrances, "--", *inside]


def thread_settings(threads: int) -> dict[str, str]:
    """Environment that gives BLAS and OpenMP libraries so many threads."""
    names = ("OMP", "OPENBLAS", "MKL", "BLIS", "VECLIB", "NUMEXPR")
    return {f"{name}_{'MAXIMUM' if name == 'VECLIB' else 'NUM'}_THREADS": str(threads) for name in names}
