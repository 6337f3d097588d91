"""Agendas each of whose days is as the rules want it, while nothing that those follow from has changed: only their new
days are derived.

An agenda's days follow from its rules and those of whom it is for, from the closures that may reach it, from the hours
of its clinic, and from its slots. The first three have a digest; whoever writes slots says so in ``agenda_touched``.
Bookings and holds count only where a day is not as the rules want it: such an agenda is never settled, nor is one of
which there is something to tell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import timedelta

import sqlalchemy as sa

from polydesk_dagster.clinic.calendar import agendas, days, effective, expansion

WHOLE_AGAIN = timedelta(days=28)
"""All days of an agenda are looked at again after so long, whatever is known: a neighbour's mistake does not stay."""

_PROGRAM = (
    agendas.AGENDAS + agendas.PROBLEMS + agendas.OVERLAPS + effective.CLOSED_HOURS + expansion.RULE_DAYS
    + expansion.SHIFTED + expansion.WANTED + days.DIGEST
)  # fmt: skip
PROGRAM = int.from_bytes(hashlib.sha256(_PROGRAM.encode()).digest()[:8], "big", signed=True)
"""A program that derives differently takes nothing for settled that another has."""

_TOUCHED = """
    CREATE TEMP TABLE derive_touched ON COMMIT DROP AS
    SELECT agenda_id, written, max(latest) AS latest FROM agenda_touched
    WHERE agenda_id = ANY(:agendas) GROUP BY agenda_id, written
"""

# A slot that began a day before may still reach into what lies ahead.
_DERIVED = f"""
    CREATE TEMP TABLE derive_agenda ON COMMIT DROP AS
    WITH clinic_wide AS (
        SELECT k.id, k.horizon_days, hash_record_extended(
                   ROW(k.time_zone, k.region, k.municipality_code, k.horizon_days,
                       (SELECT bit_xor(hash_record_extended(c, 0)) FROM closure c
                        WHERE c.lifted_at IS NULL AND {effective.MAY_REACH})), :program) AS digest
        FROM clinic k WHERE k.id = ANY(:clinic_ids)
    ), present AS (
        SELECT a.id, coalesce(a.horizon_days, w.horizon_days) AS horizon_days,
               hash_record_extended(
                   ROW(w.digest, hash_record_extended(a, 0),
                       (SELECT bit_xor(hash_record_extended(t, 0)) FROM agenda_rule t WHERE t.agenda_id = a.id),
                       s.active, s.deleted_at, s.ends_on, v.active, v.deleted_at, r.active), 0) AS digest
        FROM clinic_wide w JOIN agenda a ON a.clinic_id = w.id
        LEFT JOIN specialist s ON s.id = a.specialist_id
        LEFT JOIN service v ON v.id = a.service_id
        LEFT JOIN resource r ON r.id = a.resource_id
        WHERE a.id = ANY(:agendas)
    )
    SELECT p.id, p.horizon_days, p.digest, g.derived_through AS through, g.settled_at, g.settled_slots, 0 AS kept,
           NOT :whole AND coalesce(p.digest = g.settled_digest, false) AND g.settled_at <= :as_of
           AND g.derived_through IS NOT NULL
           AND :as_of < g.whole_at + CAST(:whole_again AS interval) - p.id % 7 * interval '1 day'
           AND NOT EXISTS (SELECT FROM derive_touched t
                           WHERE t.agenda_id = p.id AND t.latest >= g.settled_at - interval '1 day') AS settled
    FROM present p LEFT JOIN agenda_state g ON g.agenda_id = p.id
"""

_CELLS = """
    CREATE TEMP TABLE derive_cell ON COMMIT DROP AS
    SELECT a.id AS agenda_id, CAST(:today AS date) + n AS local_date
    FROM derive_agenda a
    CROSS JOIN generate_series(CASE WHEN a.settled THEN greatest(0, a.through + 1 - CAST(:today AS date)) ELSE 0 END,
                               a.horizon_days - 1) AS n
"""

# What was there and has begun since is no longer ahead.
_KEPT = """
    UPDATE derive_agenda a
    SET kept = a.settled_slots - (SELECT count(*) FROM slot s
                                  WHERE s.agenda_id = a.id AND s.starts_at > a.settled_at AND s.starts_at <= :as_of
                                    AND s.state <> 'retired')
    WHERE a.settled
"""


def choose(connection: sa.Connection, values: Mapping[str, object], *, whole: bool) -> tuple[list[int], int]:
    """Fill ``derive_cell`` with the agenda-days of ``:agendas`` to derive: of settled agendas only those that are new,
    or with ``whole`` all. Returns the settled agendas, and how many slots of theirs lie ahead."""
    bound = {**values, "program": PROGRAM, "whole": whole, "whole_again": WHOLE_AGAIN}
    for statement in (_TOUCHED, _DERIVED, _CELLS):
        connection.execute(sa.text(statement), bound)
    connection.execute(sa.text(_KEPT), bound)
    rows = connection.execute(sa.text("SELECT id, kept FROM derive_agenda WHERE settled")).all()
    return [row.id for row in rows], sum(row.kept for row in rows)


# Of whom there is something to tell every night is looked at every night.
_RESTLESS = f"""
    CREATE TEMP TABLE restless ON COMMIT DROP AS
    SELECT id AS agenda_id FROM working_agenda WHERE problem IS NOT NULL OR odd
    UNION SELECT agenda_id FROM rule_day WHERE {expansion.TOO_LONG}
    UNION SELECT id FROM ({agendas.GAPS}) told
"""
_STILL_DIFFERENT = f"""
    INSERT INTO restless
    WITH present_cell AS ({days.PRESENT.format(cells="changed_cell")})
    SELECT DISTINCT agenda_id FROM ({days.DIFFERING.format(cells="changed_cell")}) d
"""

_SETTLE = """
    UPDATE agenda_state g
    SET settled_digest = d.digest, settled_at = :as_of, settled_slots = d.ahead,
        whole_at = CASE WHEN d.settled THEN g.whole_at ELSE :as_of END
    FROM (
        SELECT a.*, CAST(a.kept + coalesce(p.n, 0) + coalesce(c.n, 0) AS integer) AS ahead
        FROM derive_agenda a
        LEFT JOIN (SELECT agenda_id, sum(n) AS n FROM present_cell JOIN derive_cell USING (agenda_id, local_date)
                   GROUP BY agenda_id) p ON p.agenda_id = a.id
        LEFT JOIN (SELECT agenda_id, count(*) FILTER (WHERE action = 'create' OR was_state = 'retired')
                                     - count(*) FILTER (WHERE action = 'retire') AS n
                   FROM slot_change GROUP BY agenda_id) c ON c.agenda_id = a.id
        WHERE a.id NOT IN (SELECT agenda_id FROM restless)) d
    WHERE g.agenda_id = d.id
"""

_UNSETTLE = """
    UPDATE agenda_state SET settled_digest = NULL, settled_at = NULL, settled_slots = NULL, whole_at = NULL
    WHERE settled_at IS NOT NULL AND agenda_id IN (SELECT agenda_id FROM restless)
"""

# What others wrote meanwhile stays for the next run.
_SEEN = """
    DELETE FROM agenda_touched t USING derive_agenda a
    WHERE t.agenda_id = a.id
      AND (t.written = pg_current_xact_id()
           OR EXISTS (SELECT FROM derive_touched s WHERE s.agenda_id = t.agenda_id AND s.written = t.written))
"""


def settle(connection: sa.Connection, values: Mapping[str, object]) -> None:
    """Remember, once what was decided is written, which agendas of this derivation are settled now."""
    connection.execute(sa.text(_RESTLESS), values)
    if connection.scalar(sa.text("SELECT EXISTS (SELECT FROM changed_cell)")):
        connection.execute(sa.text(_STILL_DIFFERENT), values)
    for statement in (_SETTLE, _UNSETTLE, _SEEN):
        connection.execute(sa.text(statement), values)


def forget_who_is_gone(connection: sa.Connection) -> None:
    """Drop what was noted of agendas that no generation will look at."""
    connection.execute(
        sa.text("""
            DELETE FROM agenda_touched t
            WHERE NOT EXISTS (SELECT FROM agenda a WHERE a.id = t.agenda_id AND a.auto_generate)""")
    )
