"""What ``polydesk up`` learns from what it has prepared in a process apart; nothing heavy is imported for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FRESH = "fresh"
"""How the welcome is told that the demo was loaded just now."""


@dataclass(frozen=True, slots=True)
class Playing:
    """A simulator to start."""

    name: str
    command: Sequence[str]
    port: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the processes are started with."""

    environment: Mapping[str, str]
    played: Sequence[Playing]
    told: Sequence[str]
    """What there is to say of the simulators, a line each."""
    fresh: bool
    """Whether the demo was loaded just now, so that its first night is to be run."""
