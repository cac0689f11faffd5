"""Running `ip`, `tc` and `bridge`: batches of lines, never longer than a time limit, errors in one sentence."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from defer.errors import DeferError, Internal, MissingExtra, PermissionDenied

TIMEOUT_S = 20.0
INSTALL = {"ip": "iproute2", "tc": "iproute2", "bridge": "iproute2", "nsenter": "util-linux"}
"""Debian package of each tool."""


def batch(tool: str, lines: Sequence[str], namespace: str = "") -> None:
    """Runs lines of one tool, all or up to the first that fails.

    Args:
        tool: `ip`, `tc` or `bridge`.
        lines: Its arguments, a command per line.
        namespace: Network namespace to work in; empty for this process's.

    Raises:
        DeferError: A line failed; the message has the line and what the tool said.
    """
    if not lines:
        return
    where = ["-n", namespace] if namespace else []
    done = call([tool, *where, "-batch", "-"], "\n".join(lines) + "\n")
    if done.returncode != 0:
        raise _failure(tool, lines, done.stderr)


def query(tool: str, line: str, namespace: str = "") -> str:
    """What one command prints; errors as in `batch`."""
    where = ["-n", namespace] if namespace else []
    done = call([tool, *where, *line.split()])
    if done.returncode != 0:
        raise _failure(tool, [line], done.stderr)
    return done.stdout


def call(command: Sequence[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Runs a tool to its end.

    Raises:
        MissingExtra: It is not installed; the hint installs it.
        Internal: It did not end in time.
    """
    try:
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except FileNotFoundError as exc:
        package = INSTALL.get(command[0], command[0])
        raise MissingExtra(
            f"the testbed needs `{command[0]}`, which is not installed", hint=f"apt-get install {package}"
        ) from exc
    except subprocess.TimeoutExpired as exc:
        raise Internal(f"`{' '.join(command)}` did not end within {TIMEOUT_S:g} s") from exc


def _failure(tool: str, lines: Sequence[str], stderr: str) -> DeferError:
    said = [line.strip() for line in stderr.splitlines() if line.strip()]
    # The tool names the line that failed as "Command failed -:7".
    number = next((line.rpartition(":")[2] for line in said if line.startswith("Command failed")), "1")
    culprit = lines[int(number) - 1] if number.isdigit() and int(number) <= len(lines) else lines[0]
    reason = next((line for line in said if not line.startswith("Command failed")), "no reason given")
    text = f"`{tool} {culprit}` failed: {reason}"
    if "not permitted" in reason.lower() or "permission denied" in reason.lower():
        return PermissionDenied(text, hint="run as root; `defer testbed check` says what is missing")
    return Internal(text, hint="`defer testbed check` says what this machine can do")
