"""Who may do what: roles, permissions, and the person that a request comes from. No SQL and no HTTP here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Role(StrEnum):
    """The roles that come through the door; patients have accounts too, but not here."""

    DESK = "desk"
    SPECIALIST = "specialist"
    MANAGER = "manager"
    SUPERUSER = "superuser"


class May(StrEnum):
    """One permission; every route names the one that it needs."""

    SEE = "see"
    """Look at services, outcomes, previews that exist."""
    PATIENTS = "patients"
    """Look at and work through what waits for a person, with patients' names and telephones."""
    RUN = "run"
    """Start, preview and pause the ordinary services."""
    APPLY = "apply"
    """Apply and undo plans."""
    EMERGENCY = "emergency"
    """The red buttons and the recovery of services."""
    USERS = "users"
    """Say who else comes in."""


PERMISSIONS: Mapping[Role, frozenset[May]] = {
    Role.DESK: frozenset({May.SEE, May.PATIENTS}),
    Role.SPECIALIST: frozenset({May.SEE}),
    Role.MANAGER: frozenset({May.SEE, May.PATIENTS, May.RUN, May.APPLY}),
    Role.SUPERUSER: frozenset(May),
}


@dataclass(frozen=True, slots=True)
class Person:
    """Whoever is logged in, as one request finds her."""

    id: int
    email: str
    name: str
    role: Role
    clinics: frozenset[str] | None
    """Codes of the clinics that she acts for; None: the whole chain."""
    held_since: datetime | None = None
    """Since when a restored copy keeps everything in, which every page says."""

    @property
    def signature(self) -> str:
        """How the audit trail names her."""
        return f"{self.role}:{self.email}"

    def may(self, permission: May) -> bool:
        return permission in PERMISSIONS[self.role]

    def acts_for(self, clinic: str | None) -> bool:
        """Whether she acts for a clinic's code; None is the whole chain."""
        return self.clinics is None or (clinic is not None and clinic in self.clinics)
