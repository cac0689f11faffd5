"""What differs between TensorRT's major versions, as one table; everything else is one code path.

Read from the Python bindings themselves (10.3.0, 10.13.3, 10.16.1 and 11.4.0; see tests/node_agent/engines/api) and
NVIDIA's guide for moving from 10.x to 11.x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from node_agent.errors import EngineMissingError

OLDEST = (10, 3)
"""Oldest version that this build runs on: JetPack 6's. It is the first whose parser reports subgraphs."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one major version is spoken to.

    Attributes:
        major: The version.
        network_flag: Member of `NetworkDefinitionCreationFlag` that makes a network strongly typed; empty where
            every network is.
        library: The shared library that the bindings load.
        jetpack: JetPack versions that ship it; empty for none.
    """

    major: int
    network_flag: str
    library: str
    jetpack: str

    def network_flags(self, trt: Any) -> int:
        """The argument of `Builder.create_network`."""
        if not self.network_flag:
            return 0
        return 1 << int(getattr(trt.NetworkDefinitionCreationFlag, self.network_flag))


DIALECTS = (
    Dialect(10, "STRONGLY_TYPED", "libnvinfer.so.10", "6 and 7"),
    Dialect(11, "", "libnvinfer.so.11", ""),
)
"""By major version, the oldest first. 11.x dropped weak typing: builder precision flags, calibrators, dynamic ranges."""


def parse_version(text: str) -> tuple[int, int, int]:
    """(major, minor, patch) of a version like 10.3.0.30 or 10.14.1.48.post1.

    Raises:
        EngineMissingError: It is no version.
    """
    parts = text.split(".")
    try:
        major, minor, patch = (int(part) for part in (*parts, "0", "0")[:3])
    except ValueError:
        raise EngineMissingError(
            f"TensorRT states the version {text!r}, which cannot be read.", hint="Install it again."
        ) from None
    return major, minor, patch


def dialect(version: str) -> Dialect:
    """How to speak to a version; a major version newer than all known ones is spoken to as the newest.

    Raises:
        EngineMissingError: It is too old.
    """
    major, minor, _ = parse_version(version)
    if (major, minor) < OLDEST:
        raise EngineMissingError(
            f"TensorRT {version} is too old.",
            hint=f"Install {'.'.join(map(str, OLDEST))} or newer (JetPack 6 has it).",
        )
    return max((each for each in DIALECTS if each.major <= major), key=lambda each: each.major)
