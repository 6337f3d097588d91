"""Log lines as objects, for whoever collects them: one a line, with the instant and the process that wrote it."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from datetime import UTC, datetime


class Structured(logging.Formatter):
    """``at`` (RFC 3339, UTC), ``process``, ``level`` and ``message``; a line that is an object already, as Dagster's
    are, keeps its own fields under ``event``."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line = record.getMessage()
        told: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "process": self._process,
            "level": record.levelname.lower(),
            "message": line,
        }
        with suppress(ValueError):
            if line.startswith("{") and isinstance(event := json.loads(line), dict):
                told |= {"message": event.pop("event", ""), "level": event.pop("level", told["level"]), "event": event}
        return json.dumps(told, ensure_ascii=False, default=str)
