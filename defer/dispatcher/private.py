"""What a dispatcher keeps is for its own user: models and their weights, in directories 0700 and files 0600."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from defer.errors import FileProblem

FOLDERS: Final = ("files", "models", "parts", "profiles")
"""What lies in a state directory and is wholly the dispatcher's."""


def make_private(state: Path) -> None:
    """Make a state directory, or tighten what an earlier process left in it.

    A directory that was there and holds nothing of a dispatcher's keeps its own mode: it may be for others too. So does
    what belongs to another user.

    Raises:
        FileProblem: It cannot be made there.
        OSError: The system does not allow it, or has no room.
    """
    if not state.is_dir():
        try:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (FileNotFoundError, NotADirectoryError, FileExistsError) as error:
            why = "something else is there" if state.exists() else "no directory can be made there"
            raise FileProblem(
                why, where=str(state), hint="choose another directory for the state with --state"
            ) from error
    elif (state / "lock").exists():
        _tighten(state, 0o700)
        for path in state.iterdir():
            if path.is_file() and (path.name == "lock" or path.name.startswith("dispatcher.db")):
                _tighten(path, 0o600)
    for name in FOLDERS:
        folder = state / name
        if not folder.is_dir() or folder.is_symlink():
            continue
        _tighten(folder, 0o700)
        for path in folder.rglob("*"):
            if not path.is_symlink():
                _tighten(path, 0o700 if path.is_dir() else 0o600)


def _tighten(path: Path, mode: int) -> None:
    with suppress(OSError):  # another's, gone meanwhile, or a file system without modes
        if path.stat().st_mode & 0o077:
            path.chmod(mode)
