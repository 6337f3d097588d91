"""Keep one clinic in step with its studiolab: which list feeds which record kind, read through the client."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.changes import synchronise as engine_of_plans
from polydesk_dagster.changes.apply import is_stale
from polydesk_dagster.changes.kind import Kind
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.changes.stage import Page, Unreadable
from polydesk_dagster.clinic.patients import claims
from polydesk_dagster.clinic.patients import identity as patients
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.sources.kinds.agreements import AGREEMENT
from polydesk_dagster.sources.kinds.collaborators import COLLABORATOR
from polydesk_dagster.sources.kinds.municipalities import MUNICIPALITY
from polydesk_dagster.sources.kinds.prices import PRICE
from polydesk_dagster.sources.kinds.services import SERVICE
from polydesk_dagster.sources.studiolab.client import Page as WirePage
from polydesk_dagster.sources.studiolab.client import Studiolab, Unchanged
from polydesk_dagster.values import Reason
from polydesk_dagster.wire import Rejected

Ask = Callable[[Studiolab, str | None], Iterator[WirePage[Any]]]


@dataclass(frozen=True, slots=True)
class Feed:
    """One list of studiolab: the record kind that it becomes, how it is asked for, and how an unreadable item still
    says which record it is."""

    kind: Kind
    ask: Ask
    identify: Callable[[Any], str | None] = lambda _: None


def _service_of(raw: Any) -> str | None:
    name = raw.get("service_id") if isinstance(raw, dict) else None
    return name.strip() or None if isinstance(name, str) else None


FEEDS = {
    "municipalities": Feed(MUNICIPALITY, lambda studiolab, etag: studiolab.municipalities(etag=etag)),
    "collaborators": Feed(COLLABORATOR, lambda studiolab, etag: studiolab.collaborators(etag=etag)),
    "services": Feed(SERVICE, lambda studiolab, etag: studiolab.services(etag=etag)),
    "agreements": Feed(AGREEMENT, lambda studiolab, etag: studiolab.agreements(etag=etag)),
    "prices": Feed(PRICE, lambda studiolab, etag: studiolab.prices(etag=etag), _service_of),
    "patients": Feed(patients.PATIENT, lambda studiolab, etag: studiolab.patient_items(etag=etag)),
}


@dataclass(slots=True)
class _Reading:
    """The pages of one reading, as the engine takes them; remembers the list's ETag on the way."""

    feed: Feed
    pages: Iterable[WirePage[Any]]
    etag: str | None = field(default=None, init=False)

    def __iter__(self) -> Iterator[Page]:
        for page in self.pages:
            self.etag = page.etag if page.number == 1 else self.etag
            bad = [self._unreadable(rejected) for rejected in page.rejected]
            yield Page(page.number, page.records, bad, page.snapshot, page.total)

    def _unreadable(self, rejected: Rejected) -> Unreadable:
        key = rejected.key or self.feed.identify(rejected.raw)
        return Unreadable(
            key,
            "invalid",
            Reason("record_wrong", {"record": rejected.position + 1, "why": rejected.reason}),
            rejected.raw,
        )


def synchronise(
    engine: sa.Engine,
    studiolab: Studiolab,
    feed: str,
    scope: Scope,
    *,
    as_of: datetime,
    actor: str = "dagster",
    preview: bool = False,
) -> Report:
    """Read the list ``feed``, plan, and without ``preview`` apply.

    A list that has not changed since we were last in step with it is not read again. Where somebody else has written
    between comparing and applying (another clinic's import the same new patient), all of it is done once more.

    Raises:
        TransientError, PermanentError: when it cannot be read whole; nothing has changed then.
    """
    report = _once(engine, studiolab, feed, scope, as_of=as_of, actor=actor, preview=preview)
    if is_stale(report):
        report = _once(engine, studiolab, feed, scope, as_of=as_of, actor=actor, preview=preview)
    return report


def _once(
    engine: sa.Engine,
    studiolab: Studiolab,
    feed: str,
    scope: Scope,
    *,
    as_of: datetime,
    actor: str,
    preview: bool,
) -> Report:
    this = FEEDS[feed]
    with engine.connect() as connection:
        etag = engine_of_plans.known_etag(connection, this.kind, scope, as_of=as_of)
        known = _known(connection, feed, scope)
    reading = _Reading(this, this.ask(studiolab, etag))
    differing: list[Mapping[str, Any]] = []
    pages: Iterable[Page] = patients.missing_only(reading, known, differing) if known else reading
    try:
        report = engine_of_plans.synchronise(
            engine,
            this.kind,
            scope,
            pages,
            as_of=as_of,
            actor=actor,
            preview=preview,
            etag=lambda: reading.etag,
        )
    except Unchanged:
        report = engine_of_plans.in_step(this.kind, scope)
    return report if feed != "patients" else _with_claims(engine, report, scope, differing, as_of, preview=preview)


def _with_claims(
    engine: sa.Engine,
    report: Report,
    scope: Scope,
    differing: Sequence[Mapping[str, Any]],
    as_of: datetime,
    *,
    preview: bool,
) -> Report:
    """``report`` with the links whose people the source no longer means: suspended now, or waiting from before."""
    if scope.clinic_id is None or preview or report.outcome is Outcome.REFUSED:
        return report
    with engine.begin() as connection:
        new = claims.check(connection, scope.clinic_id, differing, as_of)
        waiting = claims.suspended(connection, scope.clinic_id)
    counts = replace(report.counts, waiting=report.counts.waiting + waiting)
    if not new:
        return replace(report, counts=counts)
    said = Reason("links_suspended", {}, scope.clinic, new)
    return replace(report, outcome=Outcome.PARTIAL, counts=counts, reasons=(*report.reasons, said))


def _known(connection: sa.Connection, feed: str, scope: Scope) -> dict[str, int | None]:
    if feed != "patients" or scope.clinic_id is None:
        return {}
    return patients.linked(connection, scope.clinic_id)
