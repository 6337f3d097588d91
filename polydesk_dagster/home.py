"""The home of an installation is nobody else's: its folder, and whatever a process of ours writes."""

from __future__ import annotations

import os
from pathlib import Path

from polydesk_dagster.errors import ConfigurationError

_OWN = 0o700
_PASS_THROUGH = 0o711
"""As root the database runs under another account, which passes through to its own folder and sees nothing else."""


def keep_to_ourselves() -> None:
    """At the entry of every process: whatever it and its children write is for its account alone."""
    os.umask(0o077)


def make(home: Path) -> Path:
    """The folder, made if it is not there, and closed to everybody else even if it was open before.

    Raises:
        ConfigurationError: if it belongs to another account.
    """
    home.mkdir(parents=True, exist_ok=True)
    found, ours = home.stat(), os.geteuid()
    if found.st_uid != ours:
        raise ConfigurationError("home_of_another", home=str(home))
    mode = _PASS_THROUGH if ours == 0 else _OWN
    if found.st_mode & 0o777 != mode:
        home.chmod(mode)
    return home
