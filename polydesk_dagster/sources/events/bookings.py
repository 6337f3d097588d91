"""What appointments and acceptances do to our bookings: the newest state of each, its slot and its seat.

The statements read the session's ``news`` where the verdict is ``apply``; ``effects`` says which are.
"""

from __future__ import annotations

from polydesk_dagster.sources.events.settling import NEWEST, Run, found

# The newest state of each appointment in the batch, beside what we hold of it.
BOOKINGS = """
CREATE TEMP TABLE IF NOT EXISTS booking (
    target text PRIMARY KEY, event_id uuid, sequence bigint, patient_id bigint, service_id bigint, specialist_id bigint,
    agenda_id bigint, starts_at timestamptz, ends_at timestamptz, status text, occurred_at timestamptz, moves integer,
    appointment_id bigint, old_slot bigint, seated boolean
) ON COMMIT DELETE ROWS"""

WANTS_SEAT = "b.status = 'booked' AND b.seated IS NOT TRUE"

FOLD = f"""
WITH b AS (
INSERT INTO booking
SELECT DISTINCT ON (t.target) t.target, t.event_id, t.sequence, t.patient_id, t.service_id, t.specialist_id,
       t.agenda_id, t.starts_at, t.ends_at, t.status, t.occurred_at,
       count(*) FILTER (WHERE t.starts_at <> t.before) OVER (PARTITION BY t.target), t.appointment_id, t.slot_id,
       t.agenda_id = t.old_agenda AND t.starts_at = t.old_start AND t.ends_at = t.old_end
           AND EXISTS (SELECT FROM seat WHERE seat.appointment_id = t.appointment_id)
FROM (SELECT n.*, a.id AS appointment_id, a.slot_id, a.agenda_id AS old_agenda, a.starts_at AS old_start,
             a.ends_at AS old_end,
             coalesce(lag(n.starts_at) OVER (PARTITION BY n.target ORDER BY n.sequence), a.starts_at, n.starts_at)
                 AS before
      FROM news n LEFT JOIN appointment a ON a.clinic_id = :clinic AND a.external_id = n.target
      WHERE n.verdict = 'apply' AND n.facet = 'appointment') t
ORDER BY t.target, t.sequence DESC RETURNING *)
SELECT count(b.appointment_id) AS known, count(*) FILTER (WHERE {WANTS_SEAT}) AS wanting FROM b"""

RELEASE = f"""
DELETE FROM seat s USING booking b
WHERE s.appointment_id = b.appointment_id AND (b.status = 'cancelled' OR ({WANTS_SEAT}))"""

# A slot that only studiolab's booking had made goes with it; generation may then make its own again.
RETIRE_LEFT = """
UPDATE slot s SET state = 'retired', manual = false
FROM booking b, event_slot e
WHERE s.id = b.old_slot AND e.slot_id = s.id AND s.state <> 'retired'
  AND NOT EXISTS (SELECT FROM seat WHERE seat.slot_id = s.id)"""

OVERLAPPING = f"""s.agenda_id = b.agenda_id AND {WANTS_SEAT} AND s.starts_at < b.ends_at
              AND s.starts_at > b.starts_at - interval '8 hours' AND s.ends_at > b.starts_at"""

EXPIRED_HOLDS = f"""
DELETE FROM seat USING booking b, slot s
WHERE {OVERLAPPING} AND seat.slot_id = s.id AND seat.held_until <= :as_of"""

RETIRE_IN_THE_WAY = f"""
UPDATE slot s SET state = 'retired' FROM booking b
WHERE {OVERLAPPING} AND s.starts_at <> b.starts_at AND s.state <> 'retired'
  AND NOT EXISTS (SELECT FROM seat WHERE seat.slot_id = s.id)"""

# Of two bookings over each other the earlier event has its place; one whose rival falls here is looked at again, as all
# are where somebody's time is taken by another slot.
TAKEN = f"""
WITH taken AS MATERIALIZED (
    SELECT DISTINCT b.event_id FROM booking b JOIN slot s
        ON {OVERLAPPING} AND s.starts_at <> b.starts_at AND s.state <> 'retired'),
clash AS MATERIALIZED (
    SELECT DISTINCT agenda_id
    FROM (SELECT b.agenda_id, b.starts_at, max(b.ends_at) OVER (
                     PARTITION BY b.agenda_id ORDER BY b.starts_at GROUPS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
                     AS busy_until
          FROM booking b WHERE {WANTS_SEAT}) w
    WHERE w.starts_at < w.busy_until),
rival AS (
    SELECT b.event_id, o.event_id AS first FROM clash JOIN booking b USING (agenda_id) JOIN booking o
        ON o.agenda_id = b.agenda_id AND o.status = 'booked' AND o.seated IS NOT TRUE AND o.sequence < b.sequence
       AND o.starts_at <> b.starts_at AND o.starts_at < b.ends_at AND o.ends_at > b.starts_at
    WHERE {WANTS_SEAT})
SELECT event_id FROM taken
UNION ALL
SELECT DISTINCT event_id FROM rival
WHERE NOT EXISTS (SELECT FROM taken) AND first NOT IN (SELECT event_id FROM rival)"""

MAKE_SLOTS = f"""
WITH made AS (
    INSERT INTO slot AS s (agenda_id, starts_at, ends_at, local_date, capacity, manual)
    SELECT b.agenda_id, b.starts_at, max(b.ends_at), CAST(b.starts_at AT TIME ZONE c.time_zone AS date), g.capacity,
           true
    FROM booking b JOIN agenda g ON g.id = b.agenda_id JOIN clinic c ON c.id = g.clinic_id
    WHERE {WANTS_SEAT}
    GROUP BY b.agenda_id, b.starts_at, c.time_zone, g.capacity
    ON CONFLICT (agenda_id, starts_at) DO UPDATE
        SET state = CASE s.state WHEN 'retired' THEN 'free' ELSE s.state END, manual = true,
            ends_at = CASE s.state WHEN 'retired' THEN excluded.ends_at ELSE greatest(s.ends_at, excluded.ends_at) END
        WHERE s.state = 'retired' OR excluded.ends_at > s.ends_at
    RETURNING s.id)
INSERT INTO event_slot SELECT id FROM made ON CONFLICT DO NOTHING"""

BOOK = f"""
INSERT INTO appointment AS a (clinic_id, agenda_id, slot_id, service_id, specialist_id, patient_id, external_id,
                              starts_at, ends_at, start_version, status, channel, cancelled_at, created_at, updated_at)
SELECT :clinic, b.agenda_id, CASE WHEN {WANTS_SEAT} THEN s.id ELSE b.old_slot END, b.service_id, b.specialist_id,
       b.patient_id, b.target, b.starts_at, b.ends_at, 1 + b.moves, b.status, 'studiolab',
       CASE WHEN b.status = 'cancelled' THEN b.occurred_at END, b.occurred_at, :as_of
FROM booking b LEFT JOIN slot s ON s.agenda_id = b.agenda_id AND s.starts_at = b.starts_at AND s.state <> 'retired'
ON CONFLICT (clinic_id, external_id) DO UPDATE
SET agenda_id = excluded.agenda_id, slot_id = excluded.slot_id, service_id = excluded.service_id,
    specialist_id = excluded.specialist_id, patient_id = excluded.patient_id, starts_at = excluded.starts_at,
    ends_at = excluded.ends_at, start_version = a.start_version + excluded.start_version - 1,
    status = CASE WHEN excluded.status = 'booked' AND a.accepted_at IS NOT NULL THEN 'accepted'
                  ELSE excluded.status END,
    cancelled_at = excluded.cancelled_at, updated_at = excluded.updated_at"""

# Who is left standing is said.
SEAT = f"""
WITH seated AS (
INSERT INTO seat (slot_id, unit, appointment_id)
SELECT w.slot_id, f.unit, w.appointment_id
FROM (SELECT a.slot_id, a.id AS appointment_id, row_number() OVER (PARTITION BY a.slot_id ORDER BY b.sequence) AS turn
      FROM booking b JOIN appointment a ON a.clinic_id = :clinic AND a.external_id = b.target
      WHERE {WANTS_SEAT}) w
JOIN slot s ON s.id = w.slot_id
CROSS JOIN LATERAL (
    SELECT u.unit, row_number() OVER (ORDER BY u.unit) AS turn FROM generate_series(1, s.capacity) u(unit)
    WHERE NOT EXISTS (SELECT FROM seat WHERE seat.slot_id = s.id AND seat.unit = u.unit)) f
WHERE f.turn = w.turn RETURNING appointment_id)
SELECT b.event_id FROM booking b JOIN appointment a ON a.clinic_id = :clinic AND a.external_id = b.target
WHERE {WANTS_SEAT} AND NOT EXISTS (SELECT FROM seat WHERE seat.appointment_id = a.id)
  AND NOT EXISTS (SELECT FROM seated WHERE seated.appointment_id = a.id)"""

# Whose appointment is nobody's is said.
ACCEPT = f"""
WITH accepted AS (
UPDATE appointment a
SET accepted_at = CASE n.status WHEN 'accepted' THEN n.moment END,
    accepted_desk = CASE n.status WHEN 'accepted' THEN n.desk END,
    status = CASE WHEN n.status = 'accepted' AND a.status = 'booked' THEN 'accepted'
                  WHEN n.status = 'cancelled' AND a.status = 'accepted' THEN 'booked' ELSE a.status END,
    updated_at = :as_of
FROM {NEWEST.format(facet="acceptance")} n
WHERE a.clinic_id = :clinic AND a.external_id = n.target)
SELECT n.event_id FROM news n
WHERE n.verdict = 'apply' AND n.facet = 'acceptance'
  AND NOT EXISTS (SELECT FROM appointment a WHERE a.clinic_id = :clinic AND a.external_id = n.target)"""


def book(run: Run) -> dict[str, list[object]]:
    """Carry out the appointments that apply; returns the events that cannot be, by problem."""
    run("DELETE FROM booking")
    folded = run(FOLD).one()
    if folded.known:
        run(RELEASE)
        run(RETIRE_LEFT)
    if folded.wanting:
        run(EXPIRED_HOLDS)
        run(RETIRE_IN_THE_WAY)
        if taken := found("time_taken", run(TAKEN)):
            return taken
        run(MAKE_SLOTS)
    run(BOOK)
    return found("time_full", run(SEAT)) if folded.wanting else {}


def accept(run: Run) -> dict[str, list[object]]:
    """The same for acceptances."""
    return found("appointment_unknown", run(ACCEPT))
