"""Files that a command writes for whoever types it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import typer

from polydesk_dagster.commands.show import say
from polydesk_dagster.failure import failure


@contextmanager
def private_file(path: Path) -> Iterator[TextIO]:
    """A file for whole rows, patients included: where it is new, nobody but its owner may read it."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        message = say("command.cannot_write", file=str(path), error=failure(error, "unknown"))
        raise typer.BadParameter(message) from None
