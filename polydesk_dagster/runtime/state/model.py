"""What there is to know of an installation, as codes and values; instants are aware and UTC."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from polydesk_dagster.catalog import Service
from polydesk_dagster.values import Count, Reason, Several, Value


class Mode(StrEnum):
    """Whether a service starts by itself."""

    ON = "on"
    ON_DEMAND = "on_demand"
    """It never does: somebody presses a button."""
    NOT_LIVE = "not_live"
    """Nobody has let it yet."""
    PAUSED = "paused"
    """Somebody keeps it waiting until an instant."""
    SWITCHED_OFF = "switched_off"
    """Somebody switched its schedule or sensor off in Dagster's page."""


@dataclass(frozen=True, slots=True)
class Activity:
    """Whether a service starts by itself, and who said so."""

    mode: Mode
    since: datetime | None = None
    """When it was said, or when its pause ended; None where nobody said anything, or where only Dagster knows."""
    until: datetime | None = None
    """Of a pause: when it ends by itself."""
    actor: str | None = None
    """As the audit trail names people."""
    reason: str | None = None
    paused: Mapping[str, Activity] = field(default_factory=dict)
    """Clinics (codes) that somebody keeps waiting, each with who and until when; of a service that runs clinic by
    clinic."""
    resumed: Mapping[str, datetime] = field(default_factory=dict)
    """Clinics (codes) whose pause has ended, and when."""

    @property
    def works(self) -> bool:
        return self.mode is Mode.ON


@dataclass(frozen=True, slots=True)
class Look:
    """The last time that a service's schedule or sensor looked whether anything was due."""

    status: str
    """``SUCCESS`` (it asked for runs), ``SKIPPED`` (nothing was due) or ``FAILURE`` (the look itself failed)."""
    at: datetime
    skip_reason: str | None
    """Why nothing was due, as the tick says it on Dagster's page."""


@dataclass(frozen=True, slots=True)
class LastRun:
    """How a service's newest run of one clinic, or of the whole chain, ended. A preview is no run, except of a service
    that only looks."""

    clinic: str | None
    """Its code; None is the whole chain."""
    outcome: str
    """A value of ``outcome.Outcome``."""
    stopped: bool
    """Whether a guard stopped a part of it, for which a person must look."""
    at: datetime
    """When it started."""
    seconds: float
    counts: Mapping[str, int]
    """By the names of ``outcome.Counts``."""
    reasons: tuple[Mapping[str, object], ...]
    """As the run recorded them: ``code`` and what belongs to it."""
    dagster_run: str | None
    plan_id: int | None

    @property
    def bad(self) -> bool:
        """Whether somebody must look at it."""
        return self.stopped or self.outcome in {"failed", "refused"}


@dataclass(frozen=True, slots=True)
class Running:
    """A run that has not ended."""

    run_id: str
    status: str
    """As Dagster says it: ``QUEUED``, ``STARTING``, ``STARTED``…"""
    since: datetime


@dataclass(frozen=True, slots=True)
class Waiting:
    """Records of one kind that wait for a person."""

    code: str
    """``plan`` (stopped by a guard, and not applied), ``review`` (a patient's identity), ``quarantine`` (unreadable
    records), ``event`` (parked or dead events), ``message`` (nobody knows whether it arrived), ``orphan`` (bookings to
    place elsewhere)."""
    clinic: str | None
    count: int
    since: datetime | None
    """Of the oldest."""


class Condition(StrEnum):
    """How a service is, worst first."""

    FAILED = "failed"
    """A last run failed, was refused or was stopped in part by a guard."""
    OVERDUE = "overdue"
    """Its schedule should have looked again, and has not; or it has come to some clinics, and long not to others."""
    IDLE = "idle"
    """Its schedule looks, but it has not worked for longer than it should."""
    STANDING = "standing"
    """It should start by itself and somebody keeps it from doing so, or has not let it yet."""
    NEVER_RAN = "never_ran"
    WELL = "well"


BAD = frozenset({Condition.FAILED, Condition.OVERDUE, Condition.IDLE})
"""Conditions for which somebody must look."""


@dataclass(frozen=True, slots=True)
class ServiceState:
    """One service of the catalogue as it is now."""

    service: Service
    condition: Condition
    activity: Activity
    next_run: datetime | None
    """When it really starts by itself next, the end of a pause taken into account; None if it does not."""
    look: Look | None
    """None where it never looked in the last days, or where Dagster's storage cannot say."""
    runs: tuple[LastRun, ...]
    """The newest of each clinic and of the chain, without those that a newer run has made void and those of clinics
    that it does not serve any more; worst first, then by clinic."""
    running: tuple[Running, ...]
    waiting: tuple[Waiting, ...]
    """What its runs have left to a person, by kind and clinic."""
    expected_since: datetime | None = None
    """Since when it should start by itself: since it was let, or since there is a clinic that it serves; None where
    there is none."""
    behind: Mapping[str, datetime] = field(default_factory=dict)
    """Of a nightly service that goes from clinic to clinic those (codes) that it has not come to for two intervals
    while it came to others, each with its last run or since when it is expected."""

    @property
    def last(self) -> LastRun | None:
        """The worst of the last runs; None if it never ran."""
        return self.runs[0] if self.runs else None

    @property
    def last_at(self) -> datetime | None:
        """When it ran last, for whichever clinic."""
        return max((run.at for run in self.runs), default=None)

    @property
    def queued(self) -> tuple[Running, ...]:
        """Its runs that wait for a place."""
        return tuple(run for run in self.running if run.status == "QUEUED")

    @property
    def queued_since(self) -> datetime | None:
        """Since when it waits for a place while nothing of it works; None where it does not."""
        return min(run.since for run in self.queued) if self.queued and self.queued == self.running else None

    @property
    def bad(self) -> bool:
        return self.condition in BAD


@dataclass(frozen=True, slots=True)
class Queue:
    """Runs that work, and runs that wait for a place, the first of them since when."""

    working: int
    waiting: int
    since: datetime


LONG_QUEUED = timedelta(minutes=1)
"""The queue gives free places away every second."""


def full_queue(states: Iterable[ServiceState], now: datetime) -> Queue | None:
    """What stands in the queue where that moves on no more; None while it does."""
    runs = [run for state in states for run in state.running]
    waiting = [run.since for run in runs if run.status == "QUEUED"]
    if not waiting or now - min(waiting) < LONG_QUEUED:
        return None
    return Queue(len(runs) - len(waiting), len(waiting), min(waiting))


class Link(StrEnum):
    """How a clinic's integration with studiolab is, worst first."""

    CHANGED = "changed"
    """It leads elsewhere than before: a person must say whether that is the same system."""
    TOKEN_MISSING = "token_missing"  # noqa: S105 - the name of a state
    STOPPED = "stopped"
    """Its news cannot be followed any more: a person must reconcile."""
    UNREACHABLE = "unreachable"
    """It did not answer when it was looked at last."""
    CLINIC_OFF = "clinic_off"
    """The integration is on, but the clinic is not active."""
    OFF = "off"
    ABSENT = "absent"
    """Never configured."""
    NOT_ASKED = "not_asked"
    """On, and nobody has looked at it yet."""
    WELL = "well"


BROKEN = frozenset({Link.TOKEN_MISSING, Link.CHANGED, Link.STOPPED, Link.UNREACHABLE})
"""Links for which somebody must look."""


@dataclass(frozen=True, slots=True)
class IntegrationState:
    """A clinic, and how its studiolab is."""

    clinic: str
    name: str
    time_zone: str
    language: str
    active: bool
    """Whether the clinic itself is."""
    agendas: int
    """Active ones."""
    link: Link
    base_url: str | None
    """Where it leads; None where there is no integration. Of a source without an address, its name."""
    token_env: str | None
    """The name of the variable that holds its token, never the token."""
    since: datetime | None
    """Since when it is stopped or does not answer."""
    asked_again_at: datetime | None
    """Until when it is left in peace."""
    failures: int
    """Looks that failed in a row."""
    why: Reason | None
    """It is stopped, or does not answer; None: not known."""
    read_at: datetime | None
    """When its news was read last."""
    quiet_since: datetime | None = None
    """When its news was read last, or its integration changed."""
    slowed: int = 1
    """Minutes that are left between two looks because it answers slowly, or said that it is asked too often."""
    listed_at: datetime | None = None
    """When a list of its was read well last."""
    tells: bool = True
    """Whether it tells news; else only its lists are read."""


class Answer(StrEnum):
    """What a system came to when it was asked over the wire."""

    WELL = "well"
    REFUSED = "refused"
    """It answered and did not let us in: a person must change something."""
    SILENT = "silent"
    """It did not answer, or answered that it cannot now."""


@dataclass(frozen=True, slots=True)
class SystemState:
    """A system outside of which the installation makes use."""

    code: str
    """``central``, ``sms``, ``mail``, ``embeddings``, ``database``, or ``studiolab`` with its ``clinic``."""
    clinic: str | None
    configured: bool
    played: bool
    """Not configured, and played by a simulator while the installation is up."""
    needed: bool
    """Whether something cannot work without it."""
    answer: Answer | None = None
    """None: it was not asked."""
    why: Reason | None = None
    """Of an answer that is not well; no secret is in it."""
    seconds: float | None = None
    """How long it took to answer."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; ``code`` is stable English and names the runbook's row."""

    code: str
    ok: bool
    subject: str | None = None
    """The service, daemon or run that it is about."""
    how: str | None = None
    """Which of the ways to be well or not; None where there is one of each."""
    values: Mapping[str, Value] = field(default_factory=dict)
    """What its sentence says; see ``told.state.told_of_finding``."""
    warning: bool = False
    """It is not well, but the installation is: somebody should look, and nobody has to be woken."""


NAMED = 5
"""Clinics that a finding names; of more it says how many."""


def few(whose: Sequence[Value], others: str) -> Value:
    """``whose`` as one value that is not long: the first few, and how many ``others`` (a noun) there are."""
    if len(whose) == 1:
        return whose[0]
    rest = len(whose) - NAMED
    return Several((*whose[:NAMED], *((Count(others, rest),) if rest > 0 else ())))
