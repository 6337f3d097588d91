"""Clinics whose events cannot be read: for how long, why, and whether somebody should look or has to."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from polydesk_dagster.changes.why import read
from polydesk_dagster.runtime.state.integrations import leads_to
from polydesk_dagster.runtime.state.model import Finding, few
from polydesk_dagster.sources.integrations import SETTINGS
from polydesk_dagster.values import Count, Duration, Named, Reason, Value

AFTER = timedelta(minutes=5)
"""So long nobody is told of a clinic: news is read within as much, and who starts a server anew needs no more."""
LONG = timedelta(hours=1)
"""After so long one clinic alone is no warning any more: what is booked there in the meantime is unknown here."""
MANY = 10
"""Nor are two clinics and more, where they are one of so many: what stops them is hardly theirs."""
APART = 5
"""Up to so many clinics are told one by one; more of them together."""
MILD = frozenset({"events_withheld"})
"""What is a warning however long it lasts: a number that was counted and never used looks the same."""

# Whose address was changed since it was read last is looked at more closely: it may lead elsewhere.
STANDING = f"""
SELECT c.code AS clinic, c.name, i.vendor, i.source, {SETTINGS} AS settings, i.updated_at, e.stopped_at,
       e.stopped_reason, coalesce(e.failures, 0) AS failures, e.down_since, e.down_reason
FROM clinic c JOIN integration i ON i.clinic_id = c.id LEFT JOIN event_cursor e ON e.clinic_id = c.id
WHERE c.active AND i.active
  AND (e.stopped_at IS NOT NULL OR e.failures > 0
       OR (i.source IS NOT NULL AND i.updated_at > coalesce(e.read_at, '-infinity')))"""
LINKED = "SELECT count(*) FROM clinic c JOIN integration i ON i.clinic_id = c.id WHERE c.active AND i.active"


@dataclass(frozen=True, slots=True)
class Unread:
    """A clinic, since when its events are not read, and why."""

    since: datetime
    code: str
    name: str
    how: str
    """As what it is told: ``changed``, ``stopped``, ``silent_why`` or, where nobody noted why, ``silent``."""
    why: Reason | None

    @property
    def clinic(self) -> Named:
        return Named(self.code, self.name)


def unread(connection: sa.Connection, as_of: datetime, waiting: Collection[str] = ()) -> list[Unread]:
    """Clinics whose events have not been readable for :data:`AFTER`, the longest first; without those (codes) that
    somebody keeps ``waiting``."""
    rows = connection.execute(sa.text(STANDING))
    found = [each for row in rows if row.clinic not in waiting and (each := _unread(row)) is not None]
    return sorted((each for each in found if as_of - each.since >= AFTER), key=lambda each: (each.since, each.code))


def _unread(row: sa.Row[tuple[object, ...]]) -> Unread | None:
    if row.source is not None and leads_to(row) != row.source:
        return Unread(row.updated_at, row.clinic, row.name, "changed", Reason("source_changed", {}, row.clinic))
    if row.stopped_at is not None:
        return Unread(row.stopped_at, row.clinic, row.name, "stopped", read(row.stopped_reason))
    if not row.failures:
        return None
    why = read(row.down_reason)
    since = row.down_since or row.updated_at
    return Unread(since, row.clinic, row.name, "silent" if why is None else "silent_why", why)


def findings(connection: sa.Connection, as_of: datetime, waiting: Collection[str] = ()) -> Iterator[Finding]:
    """What there is to say of clinics that are not read: one by one, or together where they are more than
    :data:`APART`; that all is well with them, where any has a source."""
    linked = connection.scalar(sa.text(LINKED)) or 0
    found = unread(connection, as_of, waiting)
    if not found:
        if linked:
            yield Finding("studiolab_unread", ok=True, values={"clinics": Count("clinics", linked)})
        return
    grave = [each for each in found if each.why is None or each.why.code not in MILD]
    many = len(grave) > 1 and len(grave) * MANY >= linked
    if len(found) <= APART:
        for each in found:
            values: dict[str, Value] = {"clinic": each.clinic, "code": each.code, "why": each.why}
            values["lasting"] = Duration((as_of - each.since).total_seconds())
            warning = each not in grave or (not many and as_of - each.since < LONG)
            yield Finding("studiolab_unread", ok=False, subject=each.code, how=each.how, values=values, warning=warning)
        return
    first = found[0]
    values = {
        "clinics": Count("clinics", len(found)),
        "of": linked,
        "named": few([each.clinic for each in found], "other_clinics"),
        "first": first.clinic,
        "lasting": Duration((as_of - first.since).total_seconds()),
        "why": first.why,
    }
    warning = not grave or (not many and as_of - grave[0].since < LONG)
    yield Finding("studiolab_unread", ok=False, how="many", values=values, warning=warning)
