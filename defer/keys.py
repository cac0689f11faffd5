"""Making, authorising, rotating and revoking keys in a folder of keys; its layout is in `node_agent.keys`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from defer.errors import FileMissing, FileProblem, InvalidKey, OutputExists, UsageError
from defer.translating import translate
from node_agent.errors import AgentError
from node_agent.keys import (
    ALLOWED,
    REVOKED,
    SECRET,
    Certificate,
    Role,
    certificate_files,
    new_pair,
    read_certificate,
    write_certificate,
)
from node_agent.quantities import NAME_RULE, is_name

State = Literal["own", "allowed", "own, not allowed", "revoked"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A key in a folder, as `defer keys list` shows it; never the secret."""

    name: str
    role: Role
    state: State
    public: str
    made: str


def make(folder: Path, name: str, role: Role) -> Path:
    """Makes a key pair: the secret in `secret`, its public certificate in `allowed`.

    Returns:
        The public certificate, for those who are to let its owner in.

    Raises:
        OutputExists: There is a key of that name.
        UsageError: Not a name.
        InvalidKey: The folder cannot be written, or this ZeroMQ has no CURVE.
    """
    _check_name(name)
    for part in (SECRET, ALLOWED):
        if _path(folder, part, name).exists():
            raise OutputExists(
                f"there is a key of {name!r} already",
                where=str(_path(folder, part, name)),
                hint=f"defer keys rotate {name} replaces it"
                if part == SECRET
                else f"defer keys revoke {name} takes it away",
            )
    certificate = _fresh(name, role)
    _write(_path(folder, SECRET, name), certificate)
    return _write(_path(folder, ALLOWED, name), certificate.without_secret())


def authorise(folder: Path, file: Path, *, role: Role | None = None, replace: bool = False) -> Certificate:
    """Lets the owner of a public certificate in.

    Args:
        folder: Of keys.
        file: The certificate.
        role: What its owner may be, whatever the certificate says; None to take its word.
        replace: Another key of that name is revoked, and one that was revoked is let in again.

    Raises:
        FileMissing: There is no such file, or no such folder of keys: one that is new lets nobody in anywhere.
        InvalidKey: It is no public certificate.
        UsageError: There is another key of that name, or this one was revoked, and `replace` was not said.
    """
    if not file.is_file():
        raise FileMissing(
            "no such file", where=str(file), hint="it is NAME.toml of the folder `allowed` where it was made"
        )
    told = _read(file)
    if told.secret:
        raise InvalidKey(
            f"{file} holds a secret key, which nobody but its owner may have",
            hint=f"hand over {told.name}.toml of the folder `allowed` instead; if this one travelled, rotate it",
        )
    _check_folder(folder)
    certificate = Certificate(told.name, role or told.role, told.public, made=told.made)
    known = {entry.public: path for path, entry in _entries(folder, REVOKED)}
    target = _path(folder, ALLOWED, certificate.name)
    other = _read(target) if target.exists() else None
    if not replace:
        if certificate.public in known:
            raise UsageError(
                f"this key of {certificate.name!r} was revoked", hint="--replace lets it in again"
            )
        if other is not None and other.public != certificate.public:
            raise UsageError(
                f"{certificate.name!r} has another key here",
                hint="--replace revokes that one and takes this one",
            )
    if other is not None and other.public != certificate.public:
        _write(_revoked_path(folder, other), other)
    _write(target, certificate)
    if certificate.public in known:
        _remove(known[certificate.public])
    return certificate


def rotate(folder: Path, name: str) -> Path:
    """Gives an own key a new pair, and revokes the old one.

    Returns:
        The new public certificate, for those who let its owner in.

    Raises:
        InvalidKey: There is no own key of that name, or it cannot be used.
    """
    old = _own(folder, name)
    certificate = _fresh(name, old.role)
    # In this order: whatever breaks off between, the old key is never all that is let in while it is gone.
    _write(_path(folder, SECRET, name), certificate)
    public = _write(_path(folder, ALLOWED, name), certificate.without_secret())
    _write(_revoked_path(folder, old), old.without_secret())
    return public


def revoke(folder: Path, name: str) -> tuple[Certificate, ...]:
    """Lets the owner of a name in no more, by any key that is known of it.

    Raises:
        UsageError: Nobody of that name is let in.
    """
    paths = [path for path, entry in _entries(folder, ALLOWED) if entry.name == name]
    if not paths:
        raise UsageError(
            f"nobody called {name!r} is authorised in {folder}", hint="`defer keys list` shows who is"
        )
    revoked = []
    for path in paths:
        certificate = _read(path)
        # First the note that keeps it out: a copy that comes back, or a crash now, lets nobody in.
        _write(_revoked_path(folder, certificate), certificate)
        _remove(path)
        revoked.append(certificate)
    return tuple(revoked)


def listing(folder: Path) -> tuple[Entry, ...]:
    """Every key in a folder.

    Raises:
        FileMissing: There is no such folder.
        InvalidKey: A file in it is no certificate.
    """
    _check_folder(folder)
    own = {entry.public for _, entry in _entries(folder, SECRET)}
    allowed = {entry.public for _, entry in _entries(folder, ALLOWED)}
    revoked = {entry.public for _, entry in _entries(folder, REVOKED)}

    def state(public: str) -> State:
        if public in revoked:
            return "revoked"
        if public in own:
            return "own" if public in allowed else "own, not allowed"
        return "allowed"

    found: dict[str, Entry] = {}
    for part in (SECRET, ALLOWED, REVOKED):
        for _, each in _entries(folder, part):
            found.setdefault(
                each.public, Entry(each.name, each.role, state(each.public), each.public, each.made)
            )
    return tuple(sorted(found.values(), key=lambda entry: (entry.state == "revoked", entry.role, entry.name)))


def _fresh(name: str, role: Role) -> Certificate:
    try:
        public, secret = new_pair()
    except AgentError as error:
        raise translate(error) from error
    return Certificate(name, role, public, secret, datetime.now(UTC).isoformat(timespec="seconds"))


def _own(folder: Path, name: str) -> Certificate:
    path = _path(folder, SECRET, name)
    if not path.is_file():
        raise InvalidKey(
            f"{folder} holds no secret key of {name!r}",
            hint="rotate a key where it was made, then authorise the new certificate here with --replace",
        )
    return _read(path, secret=True)


def _path(folder: Path, part: str, name: str) -> Path:
    return folder / part / f"{name}.toml"


def _revoked_path(folder: Path, certificate: Certificate) -> Path:
    mark = hashlib.sha256(certificate.public.encode()).hexdigest()[:8]
    return folder / REVOKED / f"{certificate.name}-{mark}.toml"


def _entries(folder: Path, part: str) -> Iterator[tuple[Path, Certificate]]:
    for path in certificate_files(folder / part):
        yield path, _read(path).without_secret()


def _check_folder(folder: Path) -> None:
    if folder.is_dir() and any((folder / part).is_dir() for part in (SECRET, ALLOWED, REVOKED)):
        return
    why = "this is no folder of keys" if folder.is_dir() else "there is no folder of keys"
    hint = f"`defer keys make NAME --role ROLE --keys {folder}` makes one; else correct --keys"
    raise FileMissing(why, where=str(folder), hint=hint)


def _check_name(name: str) -> None:
    if not is_name(name):
        raise UsageError(f"{name!r:.80} is not a name", hint=NAME_RULE)


def _read(path: Path, *, secret: bool = False) -> Certificate:
    try:
        return read_certificate(path, secret=secret)
    except AgentError as error:
        raise translate(error) from error


def _write(path: Path, certificate: Certificate) -> Path:
    try:
        write_certificate(path, certificate)
    except AgentError as error:
        raise translate(error) from error
    return path


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise FileProblem(error.strerror or str(error), where=str(path)) from error
