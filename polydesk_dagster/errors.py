"""What can go wrong with the world outside, sorted by whether trying again can help; and how an error that nobody
expected is told without what it quotes."""

from __future__ import annotations

import traceback
from pathlib import Path

from polydesk_dagster.values import Reason, Value, to_json


class PolydeskError(Exception):
    """An expected failure, as a reason fit for an operator: its sentence names the thing, the value and the remedy."""

    def __init__(self, code: str, /, *, clinic: str | None = None, **values: Value) -> None:
        self.reason = Reason(code, values, clinic)
        super().__init__(code)

    def __str__(self) -> str:
        """For logs: the code and its values. People are told ``reason``."""
        values = ", ".join(f"{name}={to_json(value)}" for name, value in self.reason.values.items())
        return f"{self.reason.code} ({values})" if values else self.reason.code


class TransientError(PolydeskError):
    """Trying again later may help: 408, 425, 429, 5xx, a connection that failed or was cut."""

    def __init__(
        self, code: str, /, *, clinic: str | None = None, retry_after: float | None = None, **values: Value
    ) -> None:
        super().__init__(code, clinic=clinic, **values)
        self.retry_after = retry_after
        """Seconds that the other side asked us to wait, already bounded; None if it did not say."""


class PermanentError(PolydeskError):
    """Trying again cannot help; a person must change something. Never retried."""


PASSING = frozenset({
    "remote_later", "remote_unreachable", "remote_silent", "remote_cut", "remote_truncated", "remote_html",
    "remote_unreadable", "remote_too_slow", "list_unsteady", "list_incomplete", "list_keeps_changing",
    "source_folder_unreadable", "token_later", "database_busy", "refused_memory", "refused_restarting",
})  # fmt: skip
"""Codes of what passes by itself when a source is read, and of what PostgreSQL refuses for the moment alone: the record
of how a run ended has no more than the code."""


class ConfigurationError(PermanentError):
    """The environment of this installation is wrong or half filled in."""


def in_brief(error: BaseException) -> str:
    """Its type, and for the database its SQLSTATE and constraint, but never its message: that may quote a row."""
    diagnosis = getattr(getattr(error, "orig", error), "diag", None)
    sqlstate, constraint = getattr(diagnosis, "sqlstate", None), getattr(diagnosis, "constraint_name", None)
    words = [type(error).__name__, sqlstate and f"SQLSTATE {sqlstate}", constraint and f"vincolo {constraint}"]
    return ", ".join(word for word in words if word)


def where(error: BaseException) -> str:
    """An error in brief, and its place in the code."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"  {Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
    return "\n".join([in_brief(error), *lines])
