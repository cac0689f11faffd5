"""Log lines as JSON objects, one each, for what collects them."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final

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


def formatter(name: str, text: str = TEXT) -> logging.Formatter:
    """The formatter for `--log-format`: `text` with this pattern, or `json`."""
    return JsonFormatter() if name == "json" else logging.Formatter(text)


def log_to_stderr(level: str, kind: str) -> None:
    """Sends this process's log to standard error.

    Args:
        level: Least level, as `warning`.
        kind: One of `FORMATS`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(kind))
    logging.basicConfig(handlers=[handler], level=level.upper())
