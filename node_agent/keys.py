"""Key pairs and the folder that holds them: whose keys this process has, and whom it lets in.

    KEYS/                     0700
        secret/NAME.toml      0600   certificates of our own, with the secret key
        allowed/NAME.toml     0644   certificates of those who may talk to us, without it
        revoked/NAME-*.toml   0644   keys that are let in no more, whatever `allowed` says

A certificate is a TOML file with `version`, `name`, `role`, `public` and perhaps `secret`; keys are Curve25519 in Z85,
40 characters, as ZeroMQ writes them. A process reads `allowed` and `revoked` again when they change.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import threading
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args

import zmq
from zmq.utils import z85

from node_agent.errors import KeyFileError
from node_agent.quantities import is_name

Role = Literal["dispatcher", "agent", "client", "observer"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)

VERSION: Final = 1
MOST_BYTES: Final = 4096
"""A certificate has some 200."""

SECRET, ALLOWED, REVOKED = "secret", "allowed", "revoked"


@dataclass(frozen=True, slots=True)
class Certificate:
    """A public key, whose it is, and what its owner may do.

    Attributes:
        name: An agent's is its device name.
        role: `dispatcher`, `agent`, `client` or `observer`.
        public: Public key, Z85.
        secret: Secret key, Z85; empty in certificates of others. Never shown.
        made: When, ISO 8601.
    """

    name: str
    role: Role
    public: str
    secret: str = field(default="", repr=False)
    made: str = ""

    def without_secret(self) -> Certificate:
        """What others may see of it."""
        return Certificate(self.name, self.role, self.public, made=self.made)

    def text(self) -> str:
        """The certificate as a file."""
        lines = [f"version = {VERSION}", f'name = "{self.name}"', f'role = "{self.role}"']
        lines += [f'made = "{self.made}"'] if self.made else []
        lines.append(f'public = "{self.public}"')
        lines += [f'secret = "{self.secret}"'] if self.secret else []
        return "\n".join(lines) + "\n"


def new_pair() -> tuple[str, str]:
    """A fresh public and secret key, Z85.

    Raises:
        KeyFileError: This libzmq was built without CURVE.
    """
    if not zmq.has("curve"):
        raise KeyFileError(
            "The ZeroMQ library of this Python has no CURVE encryption.",
            hint="Install pyzmq from PyPI, whose wheels have it, or a libzmq built with libsodium.",
        )
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def parse_certificate(text: str, where: str) -> Certificate:
    """A certificate from a file's text.

    Args:
        text: TOML.
        where: The file, for messages.

    Raises:
        KeyFileError: It is none; the message never shows what is in it.
    """
    try:
        told = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise _broken(where, "it is not TOML") from None
    version = told.pop("version", None)
    if version != VERSION:
        raise _broken(where, f"its version is not {VERSION}")
    unknown = set(told) - {"name", "role", "public", "secret", "made"}
    if unknown:
        raise _broken(where, f"it has the unknown keys {', '.join(sorted(unknown))}")
    if not all(isinstance(value, str) for value in told.values()):
        raise _broken(where, "every value but the version is a string")
    name, role, public = (told.get(key, "") for key in ("name", "role", "public"))
    if not is_name(name):
        raise _broken(where, "`name` is missing, or no name")
    if role not in ROLES:
        raise _broken(where, f"`role` is none of {', '.join(ROLES)}")
    secret = told.get("secret", "")
    for key, value in (("public", public), ("secret", secret)):
        if (value or key == "public") and not _is_key(value):
            raise _broken(where, f"`{key}` is not a key of 40 characters in Z85")
    if secret and zmq.has("curve") and zmq.curve_public(secret.encode()).decode() != public:
        raise _broken(where, "`public` does not belong to `secret`")
    made = told.get("made", "")
    if len(made) > 40 or not all(letter.isalnum() or letter in "-:+." for letter in made):
        raise _broken(where, "`made` is no time")
    return Certificate(name, role, public, secret, made)


def _is_key(text: str) -> bool:
    try:
        return len(text) == 40 and len(z85.decode(text.encode("ascii"))) == 32
    except (ValueError, KeyError, UnicodeEncodeError, OverflowError):
        return False
    except Exception:  # struct.error, where five characters say more than 32 bits hold
        return False


def _broken(where: str, why: str) -> KeyFileError:
    return KeyFileError(
        f"{where} is no certificate: {why}.",
        hint="`defer keys make` writes certificates; copy the file from where it was made.",
    )


def read_certificate(path: Path, *, secret: bool = False) -> Certificate:
    """A certificate from a file.

    Args:
        path: The file.
        secret: It must hold the secret key, and nobody else may be able to read it.

    Raises:
        KeyFileError: It cannot be read, is no certificate, or others can read the secret.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror or error}.") from None
    if len(data) > MOST_BYTES:
        raise _broken(str(path), f"it has more than {MOST_BYTES} bytes")
    try:
        certificate = parse_certificate(data.decode(), str(path))
    except UnicodeDecodeError:
        raise _broken(str(path), "it is not text") from None
    if certificate.secret and mode & 0o077:
        raise KeyFileError(
            f"{path} holds a secret key, and others may read it (mode {mode:04o}).",
            hint=f"chmod 600 {path}, and if anyone else could have read it: defer keys rotate {certificate.name}",
        )
    if secret and not certificate.secret:
        raise KeyFileError(f"{path} holds no secret key.", hint="Name a file of the folder `secret`.")
    return certificate


def write_certificate(path: Path, certificate: Certificate) -> None:
    """Writes a certificate, all of it or nothing; one with a secret is never readable by others.

    Raises:
        KeyFileError: It cannot be written.
    """
    try:
        make_folder(path.parent, private=bool(certificate.secret))
        number, temporary = tempfile.mkstemp(prefix=".", suffix=".new", dir=path.parent)  # 0600
        try:
            with os.fdopen(number, "w") as file:
                file.write(certificate.text())
                file.flush()
                os.fsync(file.fileno())
                if not certificate.secret:
                    os.fchmod(file.fileno(), 0o644)
            Path(temporary).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise
    except OSError as error:
        raise KeyFileError(
            f"{path} cannot be written: {error.strerror or error}.",
            hint="Name another folder with --keys DIR.",
        ) from None


def make_folder(folder: Path, *, private: bool) -> None:
    """Makes a folder of keys, and the one it is in, both 0700; one that is there stays as it is."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(exist_ok=True, mode=0o700)
    if private:
        folder.chmod(0o700)


@dataclass(frozen=True, slots=True)
class AllowList:
    """Who may talk to this process, at one moment.

    Attributes:
        by_key: Certificates by public key.
        revoked: Public keys that are let in no more.
        problems: What could not be read; nobody is let in by it.
    """

    by_key: Mapping[str, Certificate] = field(default_factory=dict)
    revoked: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()

    def named(self, name: str) -> Certificate | None:
        """The certificate of that name."""
        return next((each for each in self.by_key.values() if each.name == name), None)

    def of_role(self, role: Role) -> tuple[Certificate, ...]:
        """All of that role."""
        return tuple(each for each in self.by_key.values() if each.role == role)


class Keyring:
    """A folder of keys as a process sees it; safe to use from several threads.

    Args:
        folder: See the module. It must exist.

    Raises:
        KeyFileError: There is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise KeyFileError(
                f"There is no folder of keys at {folder}.",
                hint="`defer keys make NAME --role ROLE` makes one, and --keys DIR names another.",
            )
        self._lock = threading.Lock()
        self._seen: tuple[object, ...] = ()
        self._allowed = AllowList()
        self.refresh()

    def __repr__(self) -> str:
        return f"Keyring({str(self.folder)!r})"

    @property
    def allowed(self) -> AllowList:
        """Who may talk to this process, as of the last `refresh`."""
        return self._allowed

    def refresh(self) -> tuple[str, ...]:
        """Reads what has changed; the problems that are new."""
        with self._lock:
            seen = tuple(_signature(self.folder / name) for name in (ALLOWED, REVOKED))
            if seen == self._seen:
                return ()
            before = self._allowed.problems
            self._seen = seen
            self._allowed = _read_allowed(self.folder)
            return tuple(each for each in self._allowed.problems if each not in before)

    def own(self) -> tuple[Certificate, ...]:
        """The certificates with a secret key, by name.

        Raises:
            KeyFileError: One cannot be used.
        """
        return tuple(read_certificate(path, secret=True) for path in certificate_files(self.folder / SECRET))


def certificate_files(folder: Path) -> list[Path]:
    """The certificates in a folder, by name; none where there is no folder."""
    try:
        return sorted(path for path in folder.glob("*.toml") if not path.name.startswith("."))
    except OSError:
        return []


def _signature(folder: Path) -> tuple[object, ...]:
    """Changes whenever a certificate in the folder is added, taken away or written."""
    told: list[object] = []
    for path in certificate_files(folder):
        with contextlib.suppress(OSError):
            status = path.stat()
            told.append((path.name, status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(told)


def _read_allowed(folder: Path) -> AllowList:
    problems: list[str] = []
    revoked = frozenset(each.public for each in _read_all(folder / REVOKED, problems))
    if problems:
        # Who was to be kept out is not known: nobody is let in.
        return AllowList(revoked=revoked, problems=tuple(problems))
    by_key: dict[str, Certificate] = {}
    names: set[str] = set()
    for each in _read_all(folder / ALLOWED, problems):
        if each.public in revoked:
            continue
        if each.name in names or each.public in by_key:
            problems.append(
                f"{folder / ALLOWED}: {each.name} or its key is there twice; the first one counts."
            )
            continue
        names.add(each.name)
        by_key[each.public] = each.without_secret()
    return AllowList(by_key, revoked, tuple(problems))


def _read_all(folder: Path, problems: list[str]) -> Iterable[Certificate]:
    for path in certificate_files(folder):
        try:
            yield read_certificate(path)
        except KeyFileError as error:
            if path.exists():  # not taken away meanwhile
                problems.append(str(error))
