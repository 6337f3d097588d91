"""Which agendas take part in generation, what is wrong with the rules of some, and how far each has come."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from polydesk_dagster.outcome import Reason

RETIREMENT_GUARD = "too_many_retirements"
"""The name to give when an operator has looked and wants the retirements all the same."""


@dataclass(frozen=True, slots=True)
class Clinic:
    id: int
    code: str
    time_zone: str
    horizon_days: int


def manual_agendas(connection: sa.Connection, clinic: Clinic, reasons: list[Reason]) -> int:
    manual = connection.scalar(
        sa.text("SELECT count(*) FROM agenda WHERE clinic_id = :clinic AND active AND NOT auto_generate"),
        {"clinic": clinic.id},
    )
    if manual:
        reasons.append(
            Reason("manual_agenda", "Agende senza generazione automatica: non toccate.", clinic.code, manual)
        )
    return int(manual or 0)


AGENDAS = """
    CREATE TEMP TABLE working_agenda ON COMMIT DROP AS
    SELECT a.id, a.name, a.slot_minutes, a.capacity,
           a.active AND coalesce(s.active AND s.deleted_at IS NULL, true)
                    AND coalesce(v.active AND v.deleted_at IS NULL, true)
                    AND coalesce(r.active, true) AS running,
           daterange(a.valid_from, least(a.valid_to, s.ends_on), '[]') AS validity,
           CAST(NULL AS text) AS problem, CAST(NULL AS text) AS detail
    FROM agenda a
    LEFT JOIN specialist s ON s.id = a.specialist_id
    LEFT JOIN service v ON v.id = a.service_id
    LEFT JOIN resource r ON r.id = a.resource_id
    WHERE a.id IN (SELECT agenda_id FROM derive_cell)
"""

# A rule's turn on a day: a slot's day is that of its start, so a turn that crosses midnight also reaches the day after.

PROBLEMS = """
    UPDATE working_agenda a SET problem = p.problem, detail = p.detail
    FROM (
        SELECT a.id, CASE WHEN r.id IS NULL THEN 'no_rules' ELSE 'end_before_start' END AS problem,
               to_char(min(r.starts_at), 'HH24:MI') || '–' || to_char(min(r.ends_at), 'HH24:MI') AS detail
        FROM working_agenda a LEFT JOIN agenda_rule r ON r.agenda_id = a.id
        WHERE a.running AND (r.id IS NULL OR r.crosses_midnight IS DISTINCT FROM (r.ends_at <= r.starts_at))
        GROUP BY a.id, r.id IS NULL
    ) p WHERE p.id = a.id
"""

OVERLAPS = """
    UPDATE working_agenda a SET problem = 'overlapping_rules', detail = p.detail
    FROM (
        SELECT agenda_id, to_char(min(following), 'DD/MM/YYYY HH24:MI') AS detail
        FROM (SELECT agenda_id, closes, lead(opens) OVER (PARTITION BY agenda_id ORDER BY opens) AS following
              FROM rule_day) t
        WHERE following < closes GROUP BY agenda_id
    ) p WHERE p.agenda_id = a.id
"""


PROBLEM_WORDS = {
    "no_rules": "non ha nessun turno: aggiungine uno o spegni la generazione automatica",
    "end_before_start": "ha un turno {detail} che finisce prima di iniziare: correggi l'ora, o segna che passa la "
    "mezzanotte",
    "overlapping_rules": "ha turni sovrapposti, per esempio dal {detail}: separali",
}


def leave_out_senseless_agendas(
    connection: sa.Connection, clinic: Clinic, values: dict[str, object], reasons: list[Reason]
) -> int:
    bad = connection.execute(
        sa.text("SELECT id, name, problem, detail FROM working_agenda WHERE problem IS NOT NULL ORDER BY name, id")
    ).all()
    for agenda_id, name, problem, detail in bad:
        words = PROBLEM_WORDS[problem].format(detail=detail)
        reasons.append(Reason(problem, f"Agenda «{name}» ({agenda_id}) {words}. I suoi orari restano.", clinic.code))
    if bad:
        for table in ("rule_day", "derive_cell"):
            connection.execute(
                sa.text(f"DELETE FROM {table} USING working_agenda a WHERE a.id = agenda_id AND a.problem IS NOT NULL"),
                values,
            )
    connection.execute(sa.text("ANALYZE rule_day"))
    return len(bad)


REMEMBER = f"""
    INSERT INTO agenda_state AS known (agenda_id, outcome, reason_code, generated_through, changed_at)
    SELECT a.id, CASE WHEN a.problem IS NULL THEN 'ok' WHEN a.problem = '{RETIREMENT_GUARD}' THEN 'refused'
                      ELSE 'failed' END,
           a.problem, c.through, :as_of
    FROM working_agenda a
    LEFT JOIN (SELECT agenda_id, max(local_date) AS through FROM derive_cell GROUP BY agenda_id) c ON c.agenda_id = a.id
    ON CONFLICT (agenda_id) DO UPDATE
    SET outcome = excluded.outcome, reason_code = excluded.reason_code,
        generated_through = coalesce(excluded.generated_through, known.generated_through),
        changed_at = excluded.changed_at
    WHERE (known.outcome, known.reason_code, known.generated_through)
          IS DISTINCT FROM (excluded.outcome, excluded.reason_code, excluded.generated_through)
"""

GAPS = """
    SELECT a.id, a.name, min(c.local_date), max(c.local_date)
    FROM derive_cell c JOIN working_agenda a ON a.id = c.agenda_id AND a.running AND c.local_date <@ a.validity
    WHERE NOT EXISTS (SELECT FROM agenda_rule r WHERE r.agenda_id = c.agenda_id
                      AND c.local_date BETWEEN r.valid_from AND coalesce(r.valid_to, 'infinity'))
      AND EXISTS (SELECT FROM agenda_rule r WHERE r.agenda_id = c.agenda_id AND r.valid_to < c.local_date)
      AND EXISTS (SELECT FROM agenda_rule r WHERE r.agenda_id = c.agenda_id AND r.valid_from > c.local_date)
    GROUP BY a.id, a.name ORDER BY a.name
"""


def remember(connection: sa.Connection, values: dict[str, object]) -> None:
    connection.execute(sa.text(REMEMBER), values)


def tell_gaps(connection: sa.Connection, clinic: Clinic, values: dict[str, object], reasons: list[Reason]) -> None:
    for agenda_id, name, first, last in connection.execute(sa.text(GAPS), values):
        reasons.append(
            Reason(
                "validity_gap",
                f"Agenda «{name}» ({agenda_id}): tra il {first:%d/%m/%Y} e il {last:%d/%m/%Y} nessun turno è in "
                "vigore, quindi nessun orario. Se non è voluto, correggi le date dei turni.",
                clinic.code,
            )
        )
