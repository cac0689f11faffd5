"""What the file store asks of the file system: whose a directory is, and the hash of a file's first bytes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from pathlib import Path
from typing import Any

from node_agent.errors import StoreUnusableError

_READ_BYTES = 1 << 20


def lock(marker: Path) -> int:
    """Takes the directory of `marker` for this process; the kernel gives it back however the process ends.

    Returns:
        The descriptor that holds the lock until it is closed.

    Raises:
        StoreUnusableError: Another process has it.
    """
    descriptor = os.open(marker, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise StoreUnusableError(
            f"{marker.parent} is in use by another agent.",
            hint="Give this agent a store of its own with --store DIR, or a name of its own with --name.",
        ) from None
    return descriptor


def sha256_of(path: Path, nbytes: int) -> Any:
    """The hash object of the first `nbytes` of a file, to go on with."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        left = nbytes
        while left > 0 and (block := stream.read(min(left, _READ_BYTES))):
            digest.update(block)
            left -= len(block)
    return digest
