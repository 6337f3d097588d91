"""Keep a clinic in step with its source: which list feeds which record kind, read through the port."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.changes import plans, step
from polydesk_dagster.changes import synchronise as engine_of_plans
from polydesk_dagster.changes.apply import is_stale
from polydesk_dagster.changes.kind import Kind
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.changes.stage import Page, Unreadable
from polydesk_dagster.clinic.patients import claims, differences
from polydesk_dagster.clinic.patients import identity as patients
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.sources.events import inbox
from polydesk_dagster.sources.kinds.agreements import AGREEMENT
from polydesk_dagster.sources.kinds.collaborators import COLLABORATOR
from polydesk_dagster.sources.kinds.municipalities import MUNICIPALITY
from polydesk_dagster.sources.kinds.prices import PRICE
from polydesk_dagster.sources.kinds.services import SERVICE
from polydesk_dagster.sources.port import Page as WirePage
from polydesk_dagster.sources.port import Source, Unchanged
from polydesk_dagster.values import Reason
from polydesk_dagster.wire import Rejected


def _service_of(raw: Any) -> str | None:
    name = raw.get("service_id") if isinstance(raw, dict) else None
    return name.strip() or None if isinstance(name, str) else None


KINDS: Mapping[str, Kind] = {
    "municipalities": MUNICIPALITY,
    "collaborators": COLLABORATOR,
    "services": SERVICE,
    "agreements": AGREEMENT,
    "prices": PRICE,
    "patients": patients.PATIENT,
}
"""The record kind that each list becomes."""

KEPT: Mapping[str, tuple[str, ...]] = {
    "services": ("preparation",),
    "collaborators": ("title", "fiscal_code", "specialties", "email", "ends_on"),
    "municipalities": ("other_name", "postal_codes"),
}
"""Fields that stay as we hold them where a source has no word for them."""

IDENTIFY: Mapping[str, Callable[[Any], str | None]] = {"prices": _service_of}
"""How an unreadable item of a list still says which record it is, where its own key does not."""


@dataclass(slots=True)
class _Reading:
    """The pages of one reading, as the engine takes them; remembers the list's ETag on the way."""

    kind: str
    pages: Iterable[WirePage[Any]]
    etag: str | None = field(default=None, init=False)

    def __iter__(self) -> Iterator[Page]:
        for page in self.pages:
            self.etag = page.etag if page.number == 1 else self.etag
            bad = [self._unreadable(rejected) for rejected in page.rejected]
            yield Page(page.number, page.records, bad, page.snapshot, page.total)

    def _unreadable(self, rejected: Rejected) -> Unreadable:
        key = rejected.key or IDENTIFY.get(self.kind, lambda _: None)(rejected.raw)
        return Unreadable(
            key,
            "invalid",
            Reason("record_wrong", {"record": rejected.position + 1, "why": rejected.reason}),
            rejected.raw,
        )


def synchronise(
    engine: sa.Engine,
    source: Source,
    feed: str,
    scope: Scope,
    *,
    as_of: datetime,
    actor: str = "dagster",
    preview: bool = False,
    first: bool = False,
) -> Report:
    """Read the list ``feed`` of ``source``, plan, and without ``preview`` apply.

    A list that has not changed since we were last in step with it is not read again. Where somebody else has written
    between comparing and applying (another clinic's import the same new patient), all of it is done once more.

    A preview that is the ``first`` half of a run, whose plan the other one applies, notes whom the source no longer
    means as applying does; ``applied`` tells of it. One that only looks notes nothing.

    Raises:
        TransientError, PermanentError: when it cannot be read whole; nothing has changed then.
    """
    noting = first or not preview
    report = _once(engine, source, feed, scope, as_of=as_of, actor=actor, preview=preview, noting=noting)
    if is_stale(report):
        report = _once(engine, source, feed, scope, as_of=as_of, actor=actor, preview=preview, noting=noting)
    return report if preview else applied(engine, report, feed, scope, as_of=as_of, read=as_of)


def applied(engine: sa.Engine, report: Report, feed: str, scope: Scope, *, as_of: datetime, read: datetime) -> Report:
    """What follows where a list that was ``read`` then has been applied with this ``report``: events that waited for
    what it names are due, and it is told whom the source no longer means."""
    if scope.clinic_id is None:
        return report
    with engine.begin() as connection:
        if report.counts.changed:
            connection.execute(sa.text(inbox.NAMED_NOW), {"clinic": scope.clinic_id, "as_of": as_of})
        if feed != "patients" or report.outcome is Outcome.REFUSED:
            return report
        return _with_claims(connection, report, scope.clinic, scope.clinic_id, read)


def _once(
    engine: sa.Engine,
    source: Source,
    feed: str,
    scope: Scope,
    *,
    as_of: datetime,
    actor: str,
    preview: bool,
    noting: bool,
) -> Report:
    kind = _kind(feed, source)
    with engine.connect() as connection:
        ours = step.written(connection, kind, scope)
        etag = step.known_etag(connection, kind, scope, ours=ours, source=source.epoch)
        known = _known(connection, feed, scope)
    reading = _Reading(feed, source.list(feed, etag=etag))

    def again() -> Iterable[Page]:
        nonlocal reading
        reading = _Reading(feed, source.list(feed))
        return reading

    deleted = source.deleted if feed in source.capabilities.deleted else lambda _: ()
    evidence = engine_of_plans.Evidence(again, lambda: tuple(deleted(feed)))
    differing: list[Mapping[str, Any]] = []
    unseen = patients.Unseen(known)
    pages: Iterable[Page] = patients.missing_only(reading, known, differing, unseen) if known else reading
    try:
        report = engine_of_plans.synchronise(
            engine,
            kind,
            scope,
            pages,
            as_of=as_of,
            actor=actor,
            preview=preview,
            etag=lambda: None if feed == "patients" else reading.etag,  # kept with what is noted of who they are
            ours=ours,
            source=source.epoch,
            evidence=evidence,
        )
    except Unchanged:
        report, unseen.unchanged = step.in_step(kind, scope), True
    if feed == "patients" and noting and scope.clinic_id is not None:
        etag = etag if unseen.unchanged else reading.etag
        _note(engine, source, report, scope, scope.clinic_id, differing, unseen, as_of, etag)
    return report


def _note(
    engine: sa.Engine,
    source: Source,
    report: Report,
    scope: Scope,
    clinic_id: int,
    differing: Sequence[Mapping[str, Any]],
    unseen: patients.Unseen,
    as_of: datetime,
    etag: str | None,
) -> None:
    """Suspend the links of those whom the source no longer means, and note who is gone from it; not by a list that a
    guard has stopped."""
    merged = [(pair.gone, pair.into) for pair in source.merged()] if source.capabilities.merged else []
    with engine.begin() as connection:
        if report.plan_id is not None and plans.load(connection, report.plan_id).failed_guards:
            return
        claims.check(connection, clinic_id, differing, as_of)
        claims.merged(connection, clinic_id, merged, as_of)
        if unseen.names is not None and not unseen.unchanged:
            differences.missing(connection, clinic_id, unseen.names, as_of)
        if unseen.unchanged:
            step.absorb(connection, KINDS["patients"], scope, etag)
        else:
            step.keep(connection, KINDS["patients"], scope, report.plan_id, etag)


def _with_claims(
    connection: sa.Connection, report: Report, clinic: str | None, clinic_id: int, read: datetime
) -> Report:
    """``report`` with the links whose people the source no longer means: suspended by the list that was ``read`` then,
    or waiting from before."""
    waiting, new = claims.suspended(connection, clinic_id, read)
    counts = replace(report.counts, waiting=report.counts.waiting + waiting)
    if gone := differences.gone(connection, clinic_id, read):
        said_gone = Reason("patients_gone_at_source", {}, clinic, gone)
        report = replace(report, reasons=(*report.reasons, said_gone))
    said = tuple(Reason(code, {}, clinic, many) for code, many in new.items() if many)
    outcome = Outcome.PARTIAL if said else report.outcome
    return replace(report, outcome=outcome, counts=counts, reasons=(*report.reasons, *said))


def _kind(feed: str, source: Source) -> Kind:
    kind, silent = KINDS[feed], source.capabilities.untold.get(feed, frozenset())
    untold = tuple(name for name in KEPT.get(feed, ()) if name in silent)
    return replace(kind, source=replace(kind.source, untold=untold)) if untold and kind.source is not None else kind


def _known(connection: sa.Connection, feed: str, scope: Scope) -> dict[str, int | None]:
    if feed != "patients" or scope.clinic_id is None:
        return {}
    return patients.linked(connection, scope.clinic_id)
