"""What all documents share: a version, a kind, reading with errors that say where, and writing atomically."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import msgspec

from defer.documents.files import STDOUT, name_of, read_bytes, write_bytes
from defer.errors import DeferError, FileProblem, InvalidDocument, OutputExists

VERSION = 1
"""Version of every document that this build writes; it reads this one."""


class Document(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Base of the documents. Each has a `KIND`, which its file repeats, so that files are not mixed up."""

    KIND: ClassVar[str]
    MADE_BY: ClassVar[str]
    """The command that writes such a document, for hints."""

    version: int = VERSION

    def problems(self) -> None:
        """Checks what types cannot say.

        Raises:
            InvalidDocument: Names the first contradiction, its place in the document, and what to do.
        """

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads the document from a file, or from standard input for `-`.

        Raises:
            InvalidDocument: Another kind or version, a missing or wrong field, a contradiction; says where.
            FileMissing, PermissionDenied, FileProblem: From the file system.
        """
        return decode(cls, read_bytes(path), name_of(path))

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Writes the document, whole or not at all.

        Args:
            path: A new file, an earlier document of the same kind, or `-` for standard output.
            force: Overwrite whatever is there.

        Raises:
            OutputExists: The file exists and is not a document of this kind.
            DiskFull, PermissionDenied, FileProblem: From the file system.
        """
        self.check_target(path, force=force)
        write_bytes(path, encode(self))

    @classmethod
    def check_target(cls, path: str | Path, *, force: bool = False) -> None:
        """Refuses a path that `save` would refuse; for commands that work long before they save.

        Raises:
            OutputExists: The file exists and is not a document of this kind.
            FileProblem: The directory does not exist.
        """
        target = Path(path)
        if str(path) != STDOUT and not target.resolve().parent.is_dir():
            raise FileProblem(
                "its directory does not exist", where=str(path), hint="create it, or write elsewhere"
            )
        occupied = not force and str(path) != STDOUT and target.is_file() and target.stat().st_size > 0
        if occupied and _kind_of(target) != cls.KIND:
            raise OutputExists(
                f"exists and is not a {cls.KIND} document",
                where=str(path),
                hint="choose another name, or overwrite it with --force",
            )


D = TypeVar("D", bound=Document)


def encode(document: Document) -> bytes:
    """The document as JSON: two spaces, one final newline, keys in order of definition."""
    return msgspec.json.format(msgspec.json.encode(as_plain(document)), indent=2) + b"\n"


def as_plain(document: Document) -> dict[str, Any]:
    """The document as plain data, which says of what kind it is."""
    return {"kind": document.KIND, **msgspec.to_builtins(document)}


def decode(kind: type[D], data: bytes, where: str) -> D:
    """A document from JSON.

    Args:
        kind: Which document is expected.
        data: JSON in UTF-8.
        where: Name of the file, for messages.

    Raises:
        InvalidDocument: Not JSON, another kind or version, a missing or wrong field, or a contradiction.
    """
    try:
        plain = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidDocument(f"not JSON: {exc}", where=where, hint=f"`{kind.MADE_BY}` writes one") from exc
    if not isinstance(plain, dict) or "kind" not in plain:
        raise InvalidDocument(
            f"not a {kind.KIND} document: it has no key 'kind'",
            where=where,
            hint=f"`{kind.MADE_BY}` writes one",
        )
    if plain["kind"] != kind.KIND:
        raise InvalidDocument(
            f"this is a {plain['kind']!s:.40} document, a {kind.KIND} document is needed",
            where=where,
            hint=f"`{kind.MADE_BY}` writes one",
        )
    return convert(kind, {key: value for key, value in plain.items() if key != "kind"}, where)


def convert(kind: type[D], plain: Any, where: str) -> D:
    """A document from plain data, checked; errors as in `decode`."""
    version = plain.get("version", VERSION) if isinstance(plain, dict) else VERSION
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        raise InvalidDocument(
            f"unknown version {version!r} of the {kind.KIND} document; this defer reads version {VERSION}",
            where=where,
            hint="upgrade defer" if newer else f"write `version = {VERSION}`",
        )
    try:
        document = msgspec.convert(plain, kind)
        document.problems()
    except msgspec.ValidationError as exc:
        raise _explained(kind, str(exc), where) from exc
    except DeferError as exc:
        exc.where = f"{where}: {exc.where}" if exc.where else where
        raise
    return document


def _kind_of(path: Path) -> str:
    try:
        plain = msgspec.json.decode(read_bytes(path))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return str(plain.get("kind", "")) if isinstance(plain, dict) else ""


_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>.*)`)?$", re.DOTALL)
_FIELD = re.compile(r"unknown field `(?P<name>.*)`")
_MISSING = re.compile(r"missing required field `(?P<name>.*)`")


def _explained(kind: type[Document], text: str, where: str) -> InvalidDocument:
    """Msgspec's sentence in the words of someone who edits the file."""
    found = _AT.match(text)
    what, path = (found["what"], found["path"] or "") if found else (text, "")
    place = path.removeprefix("$").removeprefix(".")
    located = f"{where}: {place}" if place else where
    if unknown := _FIELD.search(what):
        known = _fields(kind, place)
        close = difflib.get_close_matches(unknown["name"], known, 1)
        return InvalidDocument(
            f"unknown key {unknown['name']!r}" + (f", did you mean {close[0]!r}?" if close else ""),
            where=located,
            hint=f"known keys here: {', '.join(known)}" if known else f"see `defer schema {kind.KIND}`",
        )
    if missing := _MISSING.search(what):
        return InvalidDocument(
            f"the key {missing['name']!r} is missing", where=located, hint=f"see `defer schema {kind.KIND}`"
        )
    return InvalidDocument(
        _sentence(kind, what, place), where=located, hint=f"see `defer schema {kind.KIND}`"
    )


_UNKNOWN = re.compile(r"Invalid enum value '?(?P<value>.*?)'?$")
_MISTYPED = re.compile(r"Expected `(?P<wanted>[^`]*)`, got `(?P<got>[^`]*)`")
_WORDS = {
    "str": "text in quotes",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "object": "a table",
    "array": "a list",
}
_FOUND = _WORDS | {"str": "text", "null": "nothing"}


def _sentence(kind: type[Document], what: str, place: str) -> str:
    """What is wrong with a value, without the names that Python has for types."""
    if unknown := _UNKNOWN.search(what):
        known = _choices(kind, place)
        close = difflib.get_close_matches(unknown["value"], known, 1)
        among = f": it may be {', '.join(known)}" if known else ""
        return f"{unknown['value']!r} is not known here{among}" + (
            f"; did you mean {close[0]!r}?" if close else ""
        )
    found = _MISTYPED.search(what)
    if found is None:
        return what.replace("`", "").replace("Expected ", "expected ", 1)
    wanted = [_WORDS.get(name, name) for name in found["wanted"].split(" | ") if name != "null"]
    got = _FOUND.get(found["got"], found["got"])
    example = _example(kind, place) if found["wanted"].startswith("str") else ""
    return f"expected {' or '.join(wanted)}{example}, got {got}"


def _choices(kind: type[Document], place: str) -> list[str]:
    """The words that a value at a path may be; empty where it may be any."""
    current: Any = msgspec.inspect.type_info(kind)
    for part in filter(None, re.split(r"[.\[]", place)):
        current = _inside(current, part)
    return [str(value) for value in getattr(current, "values", ())]


def _example(kind: type[Document], place: str) -> str:
    """How a text with a unit at a path is written; empty where it is just text."""
    current: Any = msgspec.inspect.type_info(kind)
    for part in filter(None, re.split(r"[.\[]", place)):
        current = _inside(current, part)
    extra = getattr(current, "extra_json_schema", None) or {}
    examples = extra.get("examples", ())
    return f' with a unit, such as "{examples[0]}"' if examples else ""


def _fields(kind: type[Document], place: str) -> list[str]:
    """Keys that are known at a path such as `link[0]`, by walking the types."""
    current: Any = msgspec.inspect.type_info(kind)
    for part in filter(None, re.split(r"[.\[]", place)):
        current = _inside(current, part)
    return [field.encode_name for field in getattr(current, "fields", ())]


def _inside(info: Any, part: str) -> Any:
    for field in getattr(info, "fields", ()):
        if field.encode_name == part:
            return _some(field.type)
    return _some(getattr(info, "item_type", None) or getattr(info, "value_type", None))


def _some(info: Any) -> Any:
    """The type that is not None of an optional one."""
    options = getattr(info, "types", ())
    return next((option for option in options if not isinstance(option, msgspec.inspect.NoneType)), info)
