"""The demo chain's knowledge base: how to prepare for an exam, when the clinics are open, what the desk does."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def write(folder: Path) -> int:
    """Copy the documents into ``folder``, made if need be; a file already there is left as it is.

    Returns how many were written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for document in (resources.files("polydesk_dagster.demo") / "knowledge").iterdir():
        target = folder / document.name
        if not target.exists():
            target.write_bytes(document.read_bytes())
            written += 1
    return written
