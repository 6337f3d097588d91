"""Places that a plan keeps for whoever loses hers by it, and until when.

The plan of a closure, or of turns that were edited, has a row for each booking that it touches: applied, the slots are
taken away and every place is kept, all or none; who booked meanwhile, and what was taken, is a reason to look again.
Taken back, the slots return and nothing is kept any more, as long as nobody has taken hers. What such a plan could not
know, because a night or the central server took the slot away, is ``offers``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime, timedelta

import sqlalchemy as sa

from polydesk_dagster.changes.kind import Moved
from polydesk_dagster.clinic.calendar.replacing import Touched
from polydesk_dagster.outcome import Report

TERM = timedelta(hours=48)
"""How long a patient may think it over; the schema allows no more than a week."""
BEFORE = timedelta(hours=12)
"""The place is free again this long before it begins at the latest: somebody else may want it."""
SHORTEST = timedelta(hours=2)
"""Who would have less than this to answer is telephoned instead."""

_DAY = "'DD/MM/YYYY HH24:MI'"


def _sql(span: timedelta) -> str:
    return f"interval '{span.total_seconds():g} seconds'"


_WANTED = """
    CREATE TEMP TABLE offer_wanted ON COMMIT DROP AS
    SELECT * FROM unnest(CAST(:bookings AS bigint[]), CAST(:slots AS bigint[]), CAST(:agendas AS bigint[]),
                         CAST(:starts AS timestamptz[]), CAST(:names AS text[]))
                  WITH ORDINALITY w (id, slot_id, agenda_id, place_at, agenda, n)"""

FOUND = f"""
    SELECT w.id, w.slot_id, w.agenda_id, w.place_at, w.n, a.starts_at, term.until,
           concat(c.code, ', ', g.name, ', ', to_char(a.starts_at AT TIME ZONE c.time_zone, {_DAY}),
                  ' → ' || w.agenda || ', ' || to_char(w.place_at AT TIME ZONE c.time_zone, {_DAY})) AS what,
           CASE WHEN a.patient_id IS NULL OR a.status = 'unverified' THEN 'nobody_to_offer_to'
                WHEN a.status <> 'booked' THEN 'is_here_already'
                WHEN w.place_at IS NULL THEN 'no_place_found'
                WHEN term.until < CAST(:as_of AS timestamptz) + {_sql(SHORTEST)} THEN 'too_soon_to_offer' END AS why
    FROM offer_wanted w JOIN appointment a ON a.id = w.id JOIN agenda g ON g.id = a.agenda_id
    JOIN clinic c ON c.id = a.clinic_id
    CROSS JOIN LATERAL (SELECT least(CAST(:as_of AS timestamptz) + {_sql(TERM)}, w.place_at - {_sql(BEFORE)},
                                     a.starts_at) AS until) term"""
"""SQL: the bookings that :func:`want` was told of, each with its place, until when it can be kept, and why not."""


def want(connection: sa.Connection, touched: Collection[Touched]) -> None:
    """Says to :data:`FOUND`, for this transaction, which bookings and places it is about."""
    connection.execute(sa.text("DROP TABLE IF EXISTS offer_wanted"))
    places = [each.place for each in touched]
    given = {
        "bookings": [each.appointment_id for each in touched],
        "slots": [place and place.slot_id for place in places],
        "agendas": [place and place.agenda_id for place in places],
        "starts": [place and place.starts_at for place in places],
        "names": [place and place.agenda for place in places],
    }
    connection.execute(sa.text(_WANTED), given)


CARRIED = {
    "what": "text",
    "booking": "bigint",
    "booked_at": "timestamptz",
    "place_agenda": "bigint",
    "place_at": "timestamptz",
    "offered_until": "timestamptz",
}
"""What the rows of such a plan carry."""
NONE = ", ".join(f"CAST(NULL AS {type_}) AS {name}" for name, type_ in CARRIED.items())
"""SQL: the same of a row that is about no booking."""

ROWS = f"""
    SELECT CASE WHEN w.why IS NULL THEN 'link' ELSE 'conflict' END AS action,
           coalesce(w.why, 'place_to_keep') AS reason, w.what, w.id AS booking,
           w.starts_at AS booked_at, w.agenda_id AS place_agenda, w.place_at, w.until AS offered_until
    FROM ({FOUND}) w ORDER BY w.n"""
"""SQL: a row of such a plan for each booking that it touches."""

_LOST_BY = """
    SELECT DISTINCT t.appointment_id FROM {lost} o JOIN seat t ON t.slot_id = o.slot_id
    WHERE t.appointment_id IS NOT NULL"""

_UNSEEN = "SELECT count(*) FROM ({lost} EXCEPT SELECT booking FROM {rows} r WHERE booking IS NOT NULL) unseen"

# One after the other, each seeing the places that those before it have taken.
_KEEP = """
    SELECT w.ordinal, NOT has_lost(w.booking) AS settled
    FROM (SELECT r.*, s.id AS slot FROM {rows} r
          LEFT JOIN slot s ON s.agenda_id = r.place_agenda AND s.starts_at = r.place_at
          WHERE r.action = 'link' ORDER BY r.ordinal OFFSET 0) w
    WHERE offer_place(w.booking, w.slot, :as_of, w.offered_until) IS NULL"""


def keep(connection: sa.Connection, rows: str, as_of: datetime, lost: str, standing: str) -> None:
    """Keep the places of the applied ``rows``, in the caller's transaction.

    ``lost`` is SQL, orphans as ``slot_id`` that the plan has made; ``standing`` says over ``r`` which rows are named
    where somebody has booked there since whom nobody has seen.

    Raises:
        Moved: where a place cannot be had or a booking needs none any more, or there are more bookings than were seen.
    """
    unseen = _UNSEEN.format(lost=_LOST_BY.format(lost=lost), rows=rows)
    if connection.scalar(sa.text(unseen)):
        raise Moved("moved", standing, "'booked_meanwhile'")
    failed = connection.execute(sa.text(_KEEP.format(rows=rows)), {"as_of": as_of}).all()
    for settled, why in ((True, "changed_since_preview"), (False, "place_gone")):
        if ordinals := [row.ordinal for row in failed if row.settled is settled]:
            raise Moved("moved", f"r.ordinal IN ({', '.join(map(str, ordinals))})", f"'{why}'")


def once(connection: sa.Connection, rows: str, report: Report | None) -> Report | None:
    """``report``, what taking the slots away came to, without the bookings that wait as rows of the plan already."""
    if report is None:
        return None
    of_plan = connection.scalar(sa.text(f"SELECT count(*) FROM {rows} r WHERE action = 'conflict'")) or 0
    counts = replace(report.counts, waiting=max(0, report.counts.waiting - int(of_plan)))
    return replace(report, counts=counts)


_OF_ROW = "h.offered_to = r.booking AND h.expires_at = r.offered_until"

UNLESS_TAKEN = (
    # Whoever takes hers just now is waited for.
    """SELECT count(*) FROM (SELECT a.id FROM appointment a WHERE a.id IN (SELECT booking FROM {rows} r)
                             ORDER BY a.id FOR NO KEY UPDATE) locked""",
    f"""UPDATE {{rows}} r
        SET action = 'conflict',
            reason = CASE WHEN EXISTS (SELECT FROM hold h WHERE {_OF_ROW} AND h.state = 'confirmed')
                          THEN 'place_was_taken' ELSE 'whole_or_nothing' END
        WHERE r.action <> 'conflict'
          AND EXISTS (SELECT FROM {{rows}} r JOIN hold h ON {_OF_ROW} AND h.state = 'confirmed')""",
)
"""Of a plan that takes one of these back: nothing, once a patient has taken her place."""

GIVE_BACK = f"""
    SELECT withdraw_offers(ARRAY(SELECT r.booking FROM {{rows}} r JOIN hold h ON {_OF_ROW} AND h.ended_at IS NULL
                                 WHERE r.action = 'link' ORDER BY 1), :as_of)"""
