"""Names, sizes and addresses as people write them. Pure."""

from __future__ import annotations

import re

_UNITS = {
    "": 1,
    "b": 1,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


NAME_RULE = "use 1 to 63 letters, digits, '-', '_' and '.', a letter or digit first"
"""What a device may be called, in the cluster file and by its agent."""


def is_name(text: str) -> bool:
    """Whether a device may be called so."""
    return 0 < len(text) <= 63 and all(c.isalnum() or c in "-_." for c in text) and text[0].isalnum()


def parse_name(text: str) -> str:
    """A device's name.

    Raises:
        ValueError: Not a name; the message says the rule.
    """
    if not is_name(text):
        raise ValueError(f"{text!r:.80} is not a name; {NAME_RULE}.")
    return text


def show_size(nbytes: float) -> str:
    """Bytes for people: a binary unit, three digits where there is no whole number of at most four."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while nbytes >= 1024 and power < len(units) - 1:
        nbytes, power = nbytes / 1024, power + 1
    return f"{nbytes:.3g} {units[power]}" if nbytes < 999.5 else f"{nbytes:.0f} {units[power]}"


def parse_size(text: str) -> int:
    """Bytes of a size such as `4 GiB`, `500MB` or `1048576`.

    Raises:
        ValueError: Not a size, or none above zero; the message says what one looks like.
    """
    found = _SIZE.fullmatch(text)
    unit = None if found is None else _UNITS.get(found[2].lower())
    if found is None or unit is None or not 1 <= float(found[1]) * unit < float("inf"):
        raise ValueError(f"{text!r} is not a size; write one like '4 GiB', '500 MB' or '1048576'.")
    return int(float(found[1]) * unit)


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`; an IPv6 host stands in brackets.

    Raises:
        ValueError: Not an address; the message says what one looks like.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit() or int(port) > 65533:
        raise ValueError(f"{text!r} is not HOST:PORT with a port up to 65533, such as 127.0.0.1:7700.")
    return host, int(port)


def parse_endpoint(text: str) -> str:
    """An endpoint to dial: `tcp://HOST:PORT`, or `HOST:PORT`.

    Raises:
        ValueError: Not an endpoint.
    """
    host, port = parse_address(text.removeprefix("tcp://"))
    if port == 0:
        raise ValueError(f"{text!r} has port 0, which nobody listens on.")
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
