"""Log lines: as text, one line each whatever they quote, or as JSON objects, for what collects them."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final

NEWS: Final = "node_agent.news"
"""Logger of what happens seldom, is good news, and that an operator waits for."""

TEXT: Final = "%(asctime)s %(levelname)s %(threadName)s: %(message)s"

FORMATS: Final = ("text", "json")


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time (ISO 8601, UTC), level, logger, thread, message, and a traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging`."""
        told: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "thread": record.threadName,
            "message": record.getMessage(),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False, default=str)


def one_line(text: str) -> str:
    """A text with what is not printable, as line ends and escape sequences, written as Python's escapes."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class TextFormatter(logging.Formatter):
    """One line per record, so that nothing that a message quotes of a peer looks like another; then a traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name that `logging` calls
        """See `logging`."""
        return one_line(super().formatMessage(record))


def formatter(name: str, text: str = TEXT) -> logging.Formatter:
    """The formatter for `--log-format`: `text` with this pattern, or `json`."""
    return JsonFormatter() if name == "json" else TextFormatter(text)


def log_to_stderr(level: str, kind: str) -> None:
    """Sends this process's log to standard error; with warnings, news as well.

    Args:
        level: Least level, as `warning`.
        kind: One of `FORMATS`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(kind))
    logging.basicConfig(handlers=[handler], level=level.upper())
    if level == "warning":
        logging.getLogger(NEWS).setLevel(logging.INFO)
