"""Which agendas take part in generation, what is wrong with the turns of some, and how far each has come."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, timedelta

import sqlalchemy as sa

from polydesk_dagster.outcome import Reason
from polydesk_dagster.values import Count, Duration, Instant, Named

RETIREMENT_GUARD = "too_many_retirements"
"""The guard over an agenda's plan; also what holds the agenda until a person has looked."""

TAKEN_BACK_GUARD = "taken_back"
"""Likewise of an agenda where generation would do again what a person has lately taken back."""

HOLDING = f"('{RETIREMENT_GUARD}', '{TAKEN_BACK_GUARD}')"
"""SQL: the problems of agendas that wait with a plan of their own."""

ENDS_AHEAD = timedelta(days=30)
"""How long before an agenda's last turn ends that is told."""


@dataclass(frozen=True, slots=True)
class Clinic:
    id: int
    code: str
    time_zone: str
    horizon_days: int


def agenda(row: sa.Row[tuple[object, ...]]) -> Named:
    """How a row with ``id`` and ``name`` of an agenda is told."""
    return Named(str(row.id), row.name)


@dataclass(frozen=True, slots=True)
class Listed:
    number: int
    """By which it is told in a closure."""
    clinic: str
    name: str


def active(connection: sa.Connection, clinics: Collection[str] | None = None) -> list[Listed]:
    """The agendas in use, of these clinics or of all, by clinic and name."""
    rows = connection.execute(
        sa.text("""SELECT a.id, c.code, a.name FROM agenda a JOIN clinic c ON c.id = a.clinic_id
                   WHERE a.active AND (CAST(:clinics AS text[]) IS NULL OR c.code = ANY(:clinics))
                   ORDER BY c.code, a.name, a.id"""),
        {"clinics": None if clinics is None else list(clinics)},
    )
    return [Listed(*row) for row in rows]


def manual_agendas(connection: sa.Connection, clinic: Clinic) -> Reason | None:
    """The clinic's agendas without automatic generation, counted; None if there are none."""
    manual = connection.scalar(
        sa.text("SELECT count(*) FROM agenda WHERE clinic_id = :clinic AND active AND NOT auto_generate"),
        {"clinic": clinic.id},
    )
    return Reason("manual_agenda", {}, clinic.code, int(manual)) if manual else None


# Of a service the longest turn, now or to come, of the agendas that offer it.
TOO_LONG = """
    SELECT v.code, v.name, v.duration_minutes * 60 AS lasts, max(t.seconds) AS longest
    FROM service v
    JOIN agenda a ON a.clinic_id = v.clinic_id AND a.active AND a.auto_generate
        AND (a.service_id = v.id OR EXISTS (SELECT FROM agenda_service o
                                            WHERE o.agenda_id = a.id AND o.service_id = v.id))
    JOIN agenda_rule r ON r.agenda_id = a.id AND coalesce(r.valid_to, 'infinity') >= CAST(:today AS date)
    CROSS JOIN LATERAL (
        SELECT CAST(extract(epoch FROM r.ends_at - r.starts_at) AS integer)
               + CASE WHEN r.crosses_midnight THEN 86400 ELSE 0 END AS seconds) t
    WHERE v.clinic_id = :clinic AND v.active AND v.deleted_at IS NULL AND t.seconds > 0
    GROUP BY v.id HAVING max(t.seconds) < v.duration_minutes * 60 ORDER BY v.name, v.id
"""


def services_too_long(connection: sa.Connection, clinic: Clinic, today: date) -> list[Reason]:
    """Services that nobody can book: they last longer than every turn of the agendas that offer them."""
    return [
        Reason(
            "service_too_long",
            {"service": Named(row.code, row.name), "lasts": Duration(row.lasts), "longest": Duration(row.longest)},
            clinic.code,
        )
        for row in connection.execute(sa.text(TOO_LONG), {"clinic": clinic.id, "today": today})
    ]


# Locked before anything is read: a slot that somebody is adding by hand is waited for and then seen.
LOCK_AGENDAS = """
    SELECT count(*) FROM (SELECT id FROM agenda WHERE id IN (SELECT agenda_id FROM derive_cell)
                          ORDER BY id FOR NO KEY UPDATE) locked
"""

AGENDAS = """
    CREATE TEMP TABLE working_agenda ON COMMIT DROP AS
    SELECT a.id, a.name, c.code AS clinic, a.slot_minutes, a.capacity,
           a.active AND coalesce(s.active AND s.deleted_at IS NULL, true)
                    AND coalesce(v.active AND v.deleted_at IS NULL, true)
                    AND coalesce(r.active, true) AS running,
           daterange(a.valid_from, least(a.valid_to, s.ends_on), '[]') AS validity,
           CAST(NULL AS text) AS problem, CAST(NULL AS time) AS turn_starts, CAST(NULL AS time) AS turn_ends,
           false AS odd
    FROM agenda a JOIN clinic c ON c.id = a.clinic_id
    LEFT JOIN specialist s ON s.id = a.specialist_id
    LEFT JOIN service v ON v.id = a.service_id
    LEFT JOIN resource r ON r.id = a.resource_id
    WHERE a.id IN (SELECT agenda_id FROM derive_cell) OR a.id = ANY(CAST(:settled AS bigint[]))
"""

PROBLEMS = """
    UPDATE working_agenda a SET problem = p.problem, turn_starts = p.starts_at, turn_ends = p.ends_at
    FROM (
        SELECT a.id, CASE WHEN r.id IS NULL THEN 'no_rules' ELSE 'end_before_start' END AS problem,
               min(r.starts_at) AS starts_at, min(r.ends_at) AS ends_at
        FROM working_agenda a LEFT JOIN agenda_rule r ON r.agenda_id = a.id
        WHERE a.running AND (r.id IS NULL OR r.crosses_midnight IS DISTINCT FROM (r.ends_at <= r.starts_at))
        GROUP BY a.id, r.id IS NULL
    ) p WHERE p.id = a.id
"""

# Turns that overlap say nothing sure of their days: those stay as they are, the others are derived.
OVERLAPS = """
    CREATE TEMP TABLE left_out_day ON COMMIT DROP AS
    SELECT t.agenda_id, CAST(day AS date) AS local_date, min(t.opens) AS opens
    FROM (SELECT agenda_id, opens, closes, bool_or(crosses) OVER (PARTITION BY agenda_id) AS nightly,
                 max(closes) OVER (PARTITION BY agenda_id ORDER BY opens, rule_id
                                   ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS busy_until
          FROM rule_day) t
    CROSS JOIN LATERAL generate_series(t.opens::date - CASE WHEN t.nightly THEN 1 ELSE 0 END, t.closes::date,
                                       interval '1 day') AS day
    WHERE t.opens < t.busy_until GROUP BY 1, 2
"""

LEFT_OUT = """
    SELECT a.id, a.name, a.clinic, count(*) AS days, min(d.opens) AT TIME ZONE :time_zone AS first
    FROM left_out_day d JOIN working_agenda a ON a.id = d.agenda_id
    JOIN derive_cell c ON c.agenda_id = d.agenda_id AND c.local_date = d.local_date
    GROUP BY a.id, a.name, a.clinic ORDER BY a.clinic, a.name, a.id
"""


def leave_out_what_makes_no_sense(
    connection: sa.Connection, values: Mapping[str, object], reasons: list[Reason]
) -> int:
    """Take the agendas whose turns make no sense, and the days whose turns overlap, out of this derivation: their
    slots stay as they are. Returns how many agendas that is about."""
    bad = connection.execute(
        sa.text("""
            SELECT id, name, clinic, problem, turn_starts, turn_ends FROM working_agenda
            WHERE problem IS NOT NULL ORDER BY clinic, name, id""")
    ).all()
    for row in bad:
        told = {"agenda": agenda(row), "starts": row.turn_starts, "ends": row.turn_ends}
        reasons.append(
            Reason(row.problem, told if row.problem == "end_before_start" else {"agenda": agenda(row)}, row.clinic)
        )
    overlapping = connection.execute(sa.text(LEFT_OUT), values).all()
    for row in overlapping:
        told = {
            "agenda": agenda(row),
            "days": Count("agenda_day", row.days),
            "first": Instant(row.first, str(values["time_zone"])),
        }
        reasons.append(Reason("overlapping_rules", told, row.clinic))
    if bad:
        for table in ("rule_day", "derive_cell"):
            connection.execute(
                sa.text(f"DELETE FROM {table} USING working_agenda a WHERE a.id = agenda_id AND a.problem IS NOT NULL")
            )
    if overlapping:
        connection.execute(
            sa.text("""
                DELETE FROM derive_cell c USING left_out_day d
                WHERE d.agenda_id = c.agenda_id AND d.local_date = c.local_date""")
        )
        connection.execute(
            sa.text("UPDATE working_agenda SET problem = 'overlapping_rules' WHERE id = ANY(:agendas)"),
            {"agendas": [row.id for row in overlapping]},
        )
    connection.execute(sa.text("ANALYZE rule_day"))
    return len(bad) + len(overlapping)


REMEMBER = f"""
    INSERT INTO agenda_state AS known (agenda_id, outcome, reason_code, generated_through, derived_through, changed_at)
    SELECT a.id, CASE WHEN a.problem IS NULL THEN 'ok' WHEN a.problem IN {HOLDING} THEN 'refused'
                      ELSE 'failed' END,
           a.problem,
           (SELECT max(s.local_date) FROM slot s WHERE s.agenda_id = a.id AND s.state = 'free'), c.through, :as_of
    FROM working_agenda a
    LEFT JOIN (SELECT agenda_id, max(local_date) AS through FROM derive_cell GROUP BY agenda_id) c ON c.agenda_id = a.id
    ON CONFLICT (agenda_id) DO UPDATE
    SET outcome = excluded.outcome, reason_code = excluded.reason_code,
        generated_through = excluded.generated_through,
        derived_through = coalesce(excluded.derived_through, known.derived_through), changed_at = excluded.changed_at
    WHERE (known.outcome, known.reason_code, known.generated_through, known.derived_through)
          IS DISTINCT FROM (excluded.outcome, excluded.reason_code, excluded.generated_through,
                            coalesce(excluded.derived_through, known.derived_through))
"""

REMEMBER_FAILED = """
    INSERT INTO agenda_state (agenda_id, outcome, reason_code, changed_at)
    VALUES (:agenda, 'failed', 'agenda_refused', :as_of)
    ON CONFLICT (agenda_id) DO UPDATE
    SET outcome = excluded.outcome, reason_code = excluded.reason_code, changed_at = excluded.changed_at
"""

GAPS = """
    SELECT a.id, a.name, min(c.local_date) AS first, max(c.local_date) AS last
    FROM derive_cell c JOIN working_agenda a ON a.id = c.agenda_id AND a.running AND c.local_date <@ a.validity
    WHERE NOT EXISTS (SELECT FROM agenda_rule r WHERE r.agenda_id = c.agenda_id
                      AND c.local_date BETWEEN r.valid_from AND coalesce(r.valid_to, 'infinity'))
      AND EXISTS (SELECT FROM agenda_rule r WHERE r.agenda_id = c.agenda_id AND r.valid_to < c.local_date)
      AND EXISTS (SELECT FROM agenda_rule r WHERE r.agenda_id = c.agenda_id AND r.valid_from > c.local_date)
    GROUP BY a.id, a.name ORDER BY a.name, a.id
"""

# An agenda that was given an end of its own has been ended on purpose: of that nobody need be told.
ENDS = """
    SELECT a.id, a.name, max(r.valid_to) AS last
    FROM working_agenda a JOIN agenda_rule r ON r.agenda_id = a.id
    WHERE a.running GROUP BY a.id, a.name, a.validity
    HAVING bool_and(r.valid_to IS NOT NULL) AND max(r.valid_to) < CAST(:ends_before AS date)
       AND max(r.valid_to) < coalesce(upper(a.validity) - 1, 'infinity')
    ORDER BY a.name, a.id
"""


def tell_gaps_and_ends(connection: sa.Connection, clinic: Clinic, values: Mapping[str, object]) -> list[Reason]:
    """Agendas without a turn in force between two others, and those whose last turn ends soon or has ended."""
    reasons = []
    for row in connection.execute(sa.text(GAPS), values):
        told = {"agenda": agenda(row), "first": row.first, "last": row.last}
        reasons.append(Reason("validity_gap", told, clinic.code))
    for row in connection.execute(sa.text(ENDS), values):
        code = "turns_ended" if row.last < values["today"] else "turns_end"
        reasons.append(Reason(code, {"agenda": agenda(row), "last": row.last}, clinic.code))
    return reasons
