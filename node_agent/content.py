"""What may be the address of a file by content. Pure."""

from __future__ import annotations

import re

from node_agent.errors import InvalidFileError
from node_agent.messages import FileRef

PART = ".part"
"""Suffix of a file that is still arriving."""

SCRATCH = "scratch-"
"""What the names of files begin with that lie in a store for as long as a partition is being loaded."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SUFFIX = re.compile(r"\.[a-z0-9_]{1,16}")


def check_ref(ref: FileRef) -> None:
    """Checks that `ref` is a content address and so can be a file name.

    Raises:
        InvalidFileError: It is not.
    """
    if not _SHA256.fullmatch(ref.sha256):
        raise InvalidFileError(f"{ref.sha256[:80]!r} is not a sha256 in lower-case hexadecimal.")
    if not _SUFFIX.fullmatch(ref.suffix) or ref.suffix == PART:
        raise InvalidFileError(f"{ref.suffix[:80]!r} is not a suffix that a stored file can have.")
    if ref.nbytes < 0:
        raise InvalidFileError(f"File {ref.sha256[:12]}… is said to have {ref.nbytes} bytes.")
