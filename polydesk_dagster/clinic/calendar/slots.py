"""The bookable slots of agendas: what the rules and closures produce, and the smallest change that brings it about.

A slot's identity is its agenda and its start instant. Rules are expanded in the wall time of the clinic's zone and
stored as instants. A slot with a booking or a live hold is never changed: if the rules no longer produce it, it
becomes an orphan for the desk. One clinic is one transaction; an agenda whose rules make no sense is named, left as it
is, and stops nobody else.

Most days of most agendas have not changed since the last run. So three kinds of agenda-days are told apart: those
without any slot get theirs in one ``INSERT … SELECT``; those whose slots have the digest that the rules give are done;
only the rest is compared slot by slot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from polydesk_dagster.clinic.calendar.effective import CLOSED_HOURS, CLOSURE_IN_FORCE, LAYERS, REACHES
from polydesk_dagster.database.locks import in_turn
from polydesk_dagster.outcome import Counts, Outcome, Reason, Report, Table, combine

RETIREMENT_GUARD = "too_many_retirements"
"""The name to give when an operator has looked and wants the retirements all the same."""

MAX_RETIRED_SHARE = 0.20
"""Of an agenda's free slots that lie ahead, the share that one run may retire without an explanation (a closure, an
agenda that ended)."""

SHOWN_AGENDAS = 50

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class _Clinic:
    id: int
    code: str
    time_zone: str
    horizon_days: int


def generate(
    engine: sa.Engine,
    as_of: datetime,
    *,
    clinic: str | None = None,
    preview: bool = False,
    past_guard: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Bring the slots of all automatic agendas in step with their rules, from ``as_of`` to each agenda's horizon.

    Counts are slots, except ``skipped`` (manual agendas) and ``failed`` (agendas left as they were). With ``preview``
    nothing is written. ``past_guard=RETIREMENT_GUARD`` lets retirements through that the guard would hold.
    """
    with engine.connect() as connection:
        clinics = _clinics(connection, clinic)
    if clinic is not None and not clinics:
        return Report.failed("unknown_clinic", f"Clinica «{clinic}» sconosciuta: controlla il codice.", clinic)
    reports = []
    for number, each in enumerate(clinics, 1):
        reports.append(_generate_clinic(engine, each, as_of, preview=preview, past_guard=past_guard))
        if progress is not None:
            progress(number, len(clinics), "cliniche")
    return combine(reports)


def _clinics(connection: sa.Connection, code: str | None) -> list[_Clinic]:
    rows = connection.execute(
        sa.text("""
            SELECT c.id, c.code, c.time_zone, greatest(c.horizon_days, coalesce(max(a.horizon_days), 0))
            FROM clinic c LEFT JOIN agenda a ON a.clinic_id = c.id
            WHERE c.active AND (c.code = :code OR CAST(:code AS text) IS NULL)
            GROUP BY c.id ORDER BY c.code"""),
        {"code": code},
    )
    return [_Clinic(*row) for row in rows]


def _generate_clinic(
    engine: sa.Engine, clinic: _Clinic, as_of: datetime, *, preview: bool, past_guard: str | None
) -> Report:
    try:
        today = as_of.astimezone(ZoneInfo(clinic.time_zone)).date()
        with engine.connect() as connection:
            _serialise(connection, clinic.id)
            connection.execute(
                sa.text("""
                    CREATE TEMP TABLE derive_cell ON COMMIT DROP AS
                    SELECT a.id AS agenda_id, CAST(:today AS date) + n AS local_date
                    FROM agenda a JOIN clinic c ON c.id = a.clinic_id
                    CROSS JOIN generate_series(0, coalesce(a.horizon_days, c.horizon_days) - 1) AS n
                    WHERE a.clinic_id = :clinic_id AND a.auto_generate"""),
                {"today": today, "clinic_id": clinic.id},
            )
            report = _derive_clinic(connection, clinic, as_of, past_guard=past_guard, full=True)
            if preview:
                connection.rollback()
            else:
                connection.commit()
            return report
    except (KeyError, ValueError, sa.exc.DBAPIError) as error:
        return _clinic_failed(clinic, error)


def _clinic_failed(clinic: _Clinic, error: Exception) -> Report:
    if isinstance(error, sa.exc.DBAPIError):
        return Report.failed(
            "database",
            f"Clinica {clinic.code}: il database ha rifiutato la generazione ({type(error.orig).__name__}); "
            "nessun orario di questa clinica è cambiato. Riprova; se si ripete chiama l'assistenza.",
            clinic.code,
        )
    return Report.failed(
        "unknown_time_zone",
        f"Clinica {clinic.code}: il fuso orario «{clinic.time_zone}» non esiste; scrivi per esempio Europe/Rome. "
        "I suoi orari restano come sono.",
        clinic.code,
    )


def derive(connection: sa.Connection, cells: str, as_of: datetime, *, past_guard: str | None = None) -> Report:
    """Re-derive exactly the agenda-days of the table ``cells`` (agenda_id bigint, local_date date), in the caller's
    transaction; days outside an agenda's horizon and manual agendas are left alone.

    The cost grows with the cells, not with the slots. Called when closures or rules have changed; the retirement guard
    does not apply to what a closure explains.
    """
    clinics = [
        _Clinic(*row)
        for row in connection.execute(
            sa.text(f"""
                SELECT DISTINCT c.id, c.code, c.time_zone, c.horizon_days
                FROM {cells} x JOIN agenda a ON a.id = x.agenda_id JOIN clinic c ON c.id = a.clinic_id
                ORDER BY c.id""")
        )
    ]
    reports = []
    for clinic in clinics:
        try:
            today = as_of.astimezone(ZoneInfo(clinic.time_zone)).date()
            with connection.begin_nested():
                _serialise(connection, clinic.id)
                connection.execute(
                    sa.text(f"""
                        CREATE TEMP TABLE derive_cell ON COMMIT DROP AS
                        SELECT DISTINCT x.agenda_id, x.local_date
                        FROM {cells} x JOIN agenda a ON a.id = x.agenda_id JOIN clinic c ON c.id = a.clinic_id
                        WHERE a.clinic_id = :clinic_id AND a.auto_generate
                          AND x.local_date >= :today
                          AND x.local_date < CAST(:today AS date) + coalesce(a.horizon_days, c.horizon_days)"""),
                    {"clinic_id": clinic.id, "today": today},
                )
                reports.append(_derive_clinic(connection, clinic, as_of, past_guard=past_guard, full=False))
                for table in _TEMPORARY:
                    connection.execute(sa.text(f"DROP TABLE IF EXISTS {table}"))
        except (KeyError, ValueError, sa.exc.DBAPIError) as error:
            reports.append(_clinic_failed(clinic, error))
    return combine(reports)


def _serialise(connection: sa.Connection, clinic_id: int) -> None:
    """One derivation of a clinic's slots at a time: nightly generation and a closure's wait for each other."""
    in_turn(connection, "slots", str(clinic_id))


_TEMPORARY = (
    "derive_cell",
    "working_agenda",
    "closed_hours",
    "rule_day",
    "shifted_slot",
    "present_cell",
    "fresh_cell",
    "changed_cell",
    "wanted_slot",
    "present_slot",
)


def _derive_clinic(
    connection: sa.Connection, clinic: _Clinic, as_of: datetime, *, past_guard: str | None, full: bool
) -> Report:
    bounds = connection.execute(sa.text("SELECT min(local_date), max(local_date) FROM derive_cell")).one()
    reasons: list[Reason] = []
    manual = _manual_agendas(connection, clinic, reasons) if full else 0
    if bounds[0] is None:
        return Report(Outcome.NOTHING_TO_DO, Counts(skipped=manual), tuple(reasons))
    first_day: date = bounds[0] - timedelta(days=1)
    values = {
        "clinic_id": clinic.id,
        "time_zone": clinic.time_zone,
        "as_of": as_of,
        "first_day": first_day,
        "last_day": bounds[1] + timedelta(days=1),
    }
    connection.execute(sa.text("ANALYZE derive_cell"))
    _expand_rules(connection, values)
    failed = _leave_out_senseless_agendas(connection, clinic, values, reasons)
    dropped = _shift_across_dst(connection, values)
    _sort_cells(connection, values)
    created = connection.execute(sa.text(INSERT_FRESH), values).rowcount
    before = int(connection.scalar(sa.text(COUNT_BEFORE)) or 0)
    refused = orphaned = retired = updated = revived = 0
    if connection.scalar(sa.text("SELECT EXISTS (SELECT FROM changed_cell)")):
        _compare(connection, values)
        refused = _hold_back_retirements(connection, clinic, values, past_guard, reasons)
        orphaned, adopted = _orphans(connection, values)
        retired = connection.execute(sa.text(RETIRE), values).rowcount
        revived = int(connection.scalar(sa.text(COUNT_REVIVED)) or 0)
        updated = connection.execute(sa.text(UPDATE), values).rowcount + adopted
        created += connection.execute(sa.text(INSERT_WANTED), values).rowcount
    unchanged = before - retired - updated - orphaned + revived
    if full:
        _remember(connection, values)
        _tell_gaps(connection, clinic, values, reasons)
    counts = Counts(created, updated + orphaned, retired, manual, failed, unchanged)
    return Report(
        _outcome(counts, refused),
        counts,
        tuple(reasons),
        {
            "Prenotazioni da ricollocare trovate": orphaned,
            "Orari scartati perché non entrano nel turno": dropped["too_long"],
            "Orari scartati nell'ora che non esiste (ora legale)": dropped["gap"],
            "Orari nell'ora doppia (ora solare), creati una volta": dropped["fold"],
            "Agende trattenute in attesa di conferma": refused,
        },
        _orphan_tables(connection, clinic) if orphaned else (),
    )


def _outcome(counts: Counts, refused: int) -> Outcome:
    if counts.failed or refused:
        if counts.changed or counts.unchanged:
            return Outcome.PARTIAL
        return Outcome.REFUSED if refused and not counts.failed else Outcome.FAILED
    return Outcome.OK if counts.changed else Outcome.NOTHING_TO_DO


def _manual_agendas(connection: sa.Connection, clinic: _Clinic, reasons: list[Reason]) -> int:
    manual = connection.scalar(
        sa.text("SELECT count(*) FROM agenda WHERE clinic_id = :clinic AND active AND NOT auto_generate"),
        {"clinic": clinic.id},
    )
    if manual:
        reasons.append(
            Reason("manual_agenda", "Agende senza generazione automatica: non toccate.", clinic.code, manual)
        )
    return int(manual or 0)


# --- what the rules produce -------------------------------------------------------------------------------------

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
# The offset from UTC is null where the clocks change near the turn: those turns are expanded with care, apart.
RULE_DAYS = """
    CREATE TEMP TABLE rule_day ON COMMIT DROP AS
    SELECT d.agenda_id, d.rule_id, d.opens, d.closes, d.step, d.capacity, d.crosses,
           CASE WHEN o.before = o.after THEN o.before END AS utc_offset, o.before - o.after AS fold,
           CASE WHEN h.closed && tsrange(d.opens, d.closes) THEN h.closed END AS closed
    FROM (
        SELECT r.agenda_id, r.id AS rule_id, c.day + r.starts_at AS opens,
               c.day + r.ends_at + CASE WHEN r.crosses_midnight THEN interval '1 day' ELSE interval '0' END AS closes,
               make_interval(mins => coalesce(r.slot_minutes, a.slot_minutes)) AS step,
               coalesce(r.capacity, a.capacity) AS capacity, r.crosses_midnight AS crosses
        FROM working_agenda a
        JOIN (SELECT agenda_id, local_date AS day, false AS eve FROM derive_cell
              UNION
              SELECT c.agenda_id, c.local_date - 1, true FROM derive_cell c
              WHERE NOT EXISTS (SELECT FROM derive_cell p
                                WHERE p.agenda_id = c.agenda_id AND p.local_date = c.local_date - 1)
             ) c ON c.agenda_id = a.id
        JOIN agenda_rule r ON r.agenda_id = a.id AND r.weekday = extract(isodow FROM c.day)
            AND c.day >= r.valid_from AND c.day <= coalesce(r.valid_to, 'infinity')
            AND (c.day - (r.valid_from - (extract(isodow FROM r.valid_from)::int - 1))) / 7 % r.every_weeks = 0
        WHERE a.running AND a.problem IS NULL AND c.day <@ a.validity AND (r.crosses_midnight OR NOT c.eve)
    ) d
    CROSS JOIN LATERAL (
        SELECT d.opens::date::timestamp AS midnight, (d.closes::date + 1)::timestamp AS midnight_after
    ) m
    CROSS JOIN LATERAL (
        SELECT m.midnight - (m.midnight AT TIME ZONE :time_zone) AT TIME ZONE 'UTC' AS before,
               m.midnight_after - (m.midnight_after AT TIME ZONE :time_zone) AT TIME ZONE 'UTC' AS after
    ) o
    LEFT JOIN closed_hours h ON h.agenda_id = d.agenda_id
"""

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


def _expand_rules(connection: sa.Connection, values: dict[str, object]) -> None:
    connection.execute(sa.text(AGENDAS), values)
    connection.execute(sa.text(PROBLEMS))
    connection.execute(sa.text(f"CREATE TEMP TABLE closed_hours ON COMMIT DROP AS {CLOSED_HOURS}"), values)
    connection.execute(sa.text(RULE_DAYS), values)
    connection.execute(sa.text(OVERLAPS))


PROBLEM_WORDS = {
    "no_rules": "non ha nessun turno: aggiungine uno o spegni la generazione automatica",
    "end_before_start": "ha un turno {detail} che finisce prima di iniziare: correggi l'ora, o segna che passa la "
    "mezzanotte",
    "overlapping_rules": "ha turni sovrapposti, per esempio dal {detail}: separali",
}


def _leave_out_senseless_agendas(
    connection: sa.Connection, clinic: _Clinic, values: dict[str, object], reasons: list[Reason]
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


# Around a change of the clocks. A wall time that does not exist is dropped; one that exists twice is taken the first
# time; a slot that the change makes overlap its predecessor, or outlast its turn, is dropped too.
SHIFTED = """
    CREATE TEMP TABLE shifted_slot ON COMMIT DROP AS
    SELECT agenda_id, rule_id, local_start, starts_at, ends_at, capacity,
           CASE WHEN gap OR ends_at > turn_end OR starts_at < lag(CASE WHEN NOT gap THEN ends_at END)
                                                               OVER (PARTITION BY agenda_id ORDER BY starts_at, gap)
                THEN 'gap' WHEN folded THEN 'fold' ELSE 'plain' END AS kind
    FROM (
        SELECT d.agenda_id, d.rule_id, g.local_start, d.capacity, i.at AS starts_at, i.at + d.step AS ends_at,
               i.at AT TIME ZONE :time_zone <> g.local_start AS gap, i.folded,
               d.closes AT TIME ZONE :time_zone AS turn_end
        FROM rule_day d
        CROSS JOIN LATERAL generate_series(d.opens, d.closes - d.step, d.step) AS g(local_start)
        CROSS JOIN LATERAL (SELECT g.local_start AT TIME ZONE :time_zone AS late) AS p
        CROSS JOIN LATERAL (SELECT (p.late - d.fold) AT TIME ZONE :time_zone = g.local_start AS folded) AS f
        CROSS JOIN LATERAL (SELECT CASE WHEN f.folded THEN p.late - d.fold ELSE p.late END AS at, f.folded) AS i
        WHERE d.utc_offset IS NULL
          AND (d.closed IS NULL OR NOT d.closed && tsrange(g.local_start, g.local_start + d.step))
    ) s
"""


def _shift_across_dst(connection: sa.Connection, values: dict[str, object]) -> dict[str, int]:
    """Expand the turns near a change of the clocks; returns what was dropped there, and what does not fit its turn."""
    connection.execute(sa.text(SHIFTED), values)
    kinds = {
        str(kind): int(n)
        for kind, n in connection.execute(sa.text("SELECT kind, count(*) FROM shifted_slot GROUP BY kind"))
    }
    connection.execute(sa.text("DELETE FROM shifted_slot WHERE kind = 'gap'"))
    connection.execute(sa.text("ANALYZE shifted_slot"))
    too_long = connection.scalar(
        sa.text("""
            SELECT count(*) FROM rule_day
            WHERE mod(extract(epoch FROM closes - opens), extract(epoch FROM step)) <> 0""")
    )
    return {"gap": kinds.get("gap", 0), "fold": kinds.get("fold", 0), "too_long": int(too_long or 0)}


WANTED = """
    SELECT d.agenda_id, i.starts_at, i.starts_at + d.step AS ends_at, g.local_start::date AS local_date, d.capacity
    FROM {cells} c
    JOIN rule_day d ON d.agenda_id = c.agenda_id AND d.utc_offset IS NOT NULL
                   AND (d.opens::date = c.local_date OR d.crosses AND d.closes::date = c.local_date)
    CROSS JOIN LATERAL generate_series(d.opens, d.closes - d.step, d.step) AS g(local_start)
    CROSS JOIN LATERAL (SELECT (g.local_start - d.utc_offset) AT TIME ZONE 'UTC' AS starts_at) AS i
    WHERE i.starts_at > :as_of
      AND (NOT d.crosses OR g.local_start::date = c.local_date)
      AND (d.closed IS NULL OR NOT d.closed && tsrange(g.local_start, g.local_start + d.step))
    UNION ALL
    SELECT s.agenda_id, s.starts_at, s.ends_at, c.local_date, s.capacity
    FROM {cells} c
    JOIN shifted_slot s ON s.agenda_id = c.agenda_id AND s.local_start::date = c.local_date
    WHERE s.starts_at > :as_of
"""
"""The slots that the rules produce for the agenda-days of a table of cells."""

# --- the three kinds of agenda-days -----------------------------------------------------------------------------

# Order does not matter to xor, and slots of an agenda do not overlap, so that their starts and their ends, each as a
# set, say which they are. Hashing the instants themselves is several times cheaper than taking their epoch.
_DIGEST = """
    bit_xor(timestamp_hash_extended(starts_at AT TIME ZONE 'UTC', capacity)
            # timestamp_hash_extended(ends_at AT TIME ZONE 'UTC', -1))"""

PRESENT_CELLS = f"""
    CREATE TEMP TABLE present_cell ON COMMIT DROP AS
    SELECT s.agenda_id, s.local_date, count(*) FILTER (WHERE counted) AS n,
           {_DIGEST} FILTER (WHERE counted) AS digest,
           coalesce(bool_or(s.state = 'orphan' OR s.manual) FILTER (WHERE counted), false) AS unusual,
           bool_or(s.ends_at > m.midnight) AS crosses
    FROM (SELECT agenda_id, local_date FROM derive_cell
          UNION SELECT agenda_id, local_date - 1 FROM derive_cell) c
    CROSS JOIN LATERAL (SELECT (c.local_date + 1)::timestamp AT TIME ZONE :time_zone AS midnight) m
    JOIN slot s ON s.agenda_id = c.agenda_id AND s.local_date = c.local_date
    CROSS JOIN LATERAL (SELECT s.starts_at > :as_of AND s.state <> 'retired' AS counted) u
    GROUP BY s.agenda_id, s.local_date
"""

# Free of anything that a new slot could meet, the day before's slots that reach over midnight included.
FRESH = """
    CREATE TEMP TABLE fresh_cell ON COMMIT DROP AS
    SELECT c.agenda_id, c.local_date
    FROM derive_cell c
    LEFT JOIN present_cell p ON p.agenda_id = c.agenda_id AND p.local_date = c.local_date
    LEFT JOIN present_cell eve ON eve.agenda_id = c.agenda_id AND eve.local_date = c.local_date - 1 AND eve.crosses
    WHERE p.agenda_id IS NULL AND eve.agenda_id IS NULL
      AND c.agenda_id NOT IN (SELECT agenda_id FROM rule_day WHERE crosses)
"""

CHANGED = f"""
    CREATE TEMP TABLE changed_cell ON COMMIT DROP AS
    WITH known AS (
        SELECT c.agenda_id, c.local_date FROM derive_cell c
        EXCEPT SELECT agenda_id, local_date FROM fresh_cell
    ), wanted AS (
        SELECT agenda_id, local_date, count(*) AS n, {_DIGEST} AS digest
        FROM ({WANTED.format(cells="known")}) w
        GROUP BY agenda_id, local_date
    )
    SELECT k.agenda_id, k.local_date
    FROM known k
    LEFT JOIN present_cell p ON p.agenda_id = k.agenda_id AND p.local_date = k.local_date
    LEFT JOIN wanted w ON w.agenda_id = k.agenda_id AND w.local_date = k.local_date
    WHERE (coalesce(p.n, 0), p.digest) IS DISTINCT FROM (coalesce(w.n, 0), w.digest) OR p.unusual
"""

INSERT_FRESH = f"""
    INSERT INTO slot (agenda_id, starts_at, ends_at, local_date, capacity)
    SELECT agenda_id, starts_at, ends_at, local_date, capacity
    FROM ({WANTED.format(cells="fresh_cell")}) w
"""


def _sort_cells(connection: sa.Connection, values: dict[str, object]) -> None:
    for statement in (
        PRESENT_CELLS,
        "ANALYZE present_cell",
        FRESH,
        "ANALYZE fresh_cell",
        CHANGED,
        "ANALYZE changed_cell",
    ):
        connection.execute(sa.text(statement), values)


# --- slot by slot -----------------------------------------------------------------------------------------------

# Locked before anything is decided, so that a hold placed meanwhile is seen: whoever books locks the slot too.
LOCK_PRESENT = """
    SELECT count(*) FROM (
        SELECT s.id FROM slot s JOIN changed_cell c ON c.agenda_id = s.agenda_id AND c.local_date = s.local_date
        WHERE s.starts_at > :as_of ORDER BY s.id FOR UPDATE OF s) locked
"""

TAKEN = """EXISTS (SELECT FROM seat t WHERE t.slot_id = s.id
                   AND (t.appointment_id IS NOT NULL OR t.held_until > :as_of))"""
"""Whether slot ``s`` has a booking or a live hold."""

PRESENT = f"""
    CREATE TEMP TABLE present_slot ON COMMIT DROP AS
    SELECT s.id, s.agenda_id, s.starts_at, s.ends_at, s.local_date, s.capacity, s.state,
           s.manual OR {TAKEN} AS fixed, s.manual
    FROM slot s JOIN changed_cell c ON c.agenda_id = s.agenda_id AND c.local_date = s.local_date
    WHERE s.starts_at > :as_of
"""

# What is booked or was added by hand stays where it is: the rules' slots that would overlap it are left out. Slots of
# the neighbouring days count too, where they reach over midnight.
WANTED_SLOTS = f"""
    CREATE TEMP TABLE wanted_slot ON COMMIT DROP AS
    SELECT w.* FROM ({WANTED.format(cells="changed_cell")}) w
    WHERE NOT EXISTS (
        SELECT FROM slot s
        WHERE s.agenda_id = w.agenda_id AND s.starts_at <> w.starts_at
          AND s.starts_at < w.ends_at AND s.starts_at > w.starts_at - interval '8 hours' AND s.ends_at > w.starts_at
          AND s.state <> 'retired' AND (s.manual OR {TAKEN}))
"""

LEAVING = """
    FROM present_slot p
    LEFT JOIN wanted_slot w ON w.agenda_id = p.agenda_id AND w.starts_at = p.starts_at
    JOIN working_agenda a ON a.id = p.agenda_id
    LEFT JOIN closed_hours h ON h.agenda_id = p.agenda_id
    WHERE w.agenda_id IS NULL AND p.state <> 'retired' AND NOT p.manual
"""
"""Present slots that the rules no longer produce."""

CAUSE = """
    CASE WHEN h.closed && tsrange(p.starts_at AT TIME ZONE :time_zone, p.ends_at AT TIME ZONE :time_zone)
         THEN 'closure'
         WHEN NOT a.running OR NOT p.local_date <@ a.validity THEN 'agenda_ended'
         ELSE 'rule_changed' END
"""


def _compare(connection: sa.Connection, values: dict[str, object]) -> None:
    connection.execute(sa.text(LOCK_PRESENT), values)
    for statement in (PRESENT, "ANALYZE present_slot", WANTED_SLOTS, "ANALYZE wanted_slot"):
        connection.execute(sa.text(statement), values)


# Compared with all free slots that the agenda still has ahead, not only with those of the days in question.
GUARD = f"""
    SELECT a.id, a.name, g.leaving, g.ahead
    FROM (
        SELECT l.agenda_id, l.leaving, l.staying,
               (SELECT count(*) FROM slot s
                WHERE s.agenda_id = l.agenda_id AND s.starts_at > :as_of AND s.state = 'free') AS ahead
        FROM (SELECT p.agenda_id, count(*) FILTER (WHERE {CAUSE} = 'rule_changed') AS leaving,
                     (SELECT count(*) FROM wanted_slot w WHERE w.agenda_id = p.agenda_id) AS staying
              {LEAVING} AND NOT p.fixed GROUP BY p.agenda_id) l
        WHERE l.leaving > 0
    ) g JOIN working_agenda a ON a.id = g.agenda_id
    WHERE g.leaving > :share * g.ahead OR (g.staying = 0 AND g.leaving = g.ahead)
    ORDER BY a.name
"""


def _hold_back_retirements(
    connection: sa.Connection,
    clinic: _Clinic,
    values: dict[str, object],
    past_guard: str | None,
    reasons: list[Reason],
) -> int:
    held = connection.execute(sa.text(GUARD), {**values, "share": MAX_RETIRED_SHARE}).all()
    for agenda_id, name, leaving, ahead in held:
        if past_guard == RETIREMENT_GUARD:
            words = "ritirati lo stesso, come chiesto"
        else:
            words = (
                "troppi per farlo da soli: l'agenda resta com'è. Guarda l'anteprima e, se è giusto, ripeti con "
                f"--past-guard {RETIREMENT_GUARD}"
            )
        reasons.append(
            Reason(
                RETIREMENT_GUARD,
                f"Agenda «{name}» ({agenda_id}): i turni non producono più {leaving} dei suoi {ahead} orari liberi; "
                f"{words}.",
                clinic.code,
            )
        )
    if not held or past_guard == RETIREMENT_GUARD:
        return 0
    agendas = [row[0] for row in held]
    for table in ("present_slot", "wanted_slot"):
        connection.execute(sa.text(f"DELETE FROM {table} WHERE agenda_id = ANY(:agendas)"), {"agendas": agendas})
    connection.execute(
        sa.text("UPDATE working_agenda SET problem = :guard WHERE id = ANY(:agendas)"),
        {"guard": RETIREMENT_GUARD, "agendas": agendas},
    )
    return len(held)


NEW_ORPHANS = f"""
    WITH gone AS (
        SELECT p.id, p.agenda_id, p.starts_at, p.ends_at, {CAUSE} AS cause {LEAVING} AND p.fixed AND p.state = 'free'
    ), marked AS (
        UPDATE slot SET state = 'orphan' FROM gone WHERE slot.id = gone.id RETURNING slot.id
    )
    INSERT INTO orphan (slot_id, cause, closure_id, detected_at)
    SELECT gone.id, gone.cause,
           CASE WHEN gone.cause = 'closure' THEN (
               SELECT c.id FROM agenda a JOIN clinic k ON k.id = a.clinic_id
               JOIN ({CLOSURE_IN_FORCE}) c ON {REACHES}
               WHERE a.id = gone.agenda_id AND c.effect = 'closed'
                 AND c.hours && tsrange(gone.starts_at AT TIME ZONE :time_zone, gone.ends_at AT TIME ZONE :time_zone)
               ORDER BY array_position(CAST(:layers AS text[]), c.layer) DESC, c.id LIMIT 1) END,
           :as_of
    FROM gone JOIN marked ON marked.id = gone.id
    ON CONFLICT (slot_id) WHERE resolved_at IS NULL DO NOTHING
"""

# Produced by the rules again (a closure was lifted, a turn came back): nothing is left for the desk to do.
ADOPTED = """
    WITH back AS (
        UPDATE slot SET state = 'free' FROM present_slot p JOIN wanted_slot w USING (agenda_id, starts_at)
        WHERE slot.id = p.id AND p.fixed AND p.state = 'orphan' RETURNING slot.id
    ), closed AS (
        UPDATE orphan SET state = 'resolved', resolved_at = :as_of FROM back
        WHERE orphan.slot_id = back.id AND orphan.resolved_at IS NULL
    )
    SELECT count(*) FROM back
"""


def _orphans(connection: sa.Connection, values: dict[str, object]) -> tuple[int, int]:
    orphaned = connection.execute(sa.text(NEW_ORPHANS), {**values, "layers": list(LAYERS)}).rowcount
    adopted = int(connection.scalar(sa.text(ADOPTED), values) or 0)
    return orphaned, adopted


# An orphan whose booking has gone is retired like any other slot, and its row is settled.
RETIRE = f"""
    WITH gone AS (
        SELECT p.id {LEAVING} AND NOT p.fixed
    ), settled AS (
        UPDATE orphan SET state = 'resolved', resolved_at = :as_of FROM gone
        WHERE orphan.slot_id = gone.id AND orphan.resolved_at IS NULL
    )
    UPDATE slot SET state = 'retired' FROM gone WHERE slot.id = gone.id
"""

UPDATE = """
    UPDATE slot SET ends_at = w.ends_at, capacity = w.capacity, state = 'free'
    FROM present_slot p JOIN wanted_slot w USING (agenda_id, starts_at)
    WHERE slot.id = p.id AND NOT p.fixed
      AND (p.ends_at, p.capacity, p.state) IS DISTINCT FROM (w.ends_at, w.capacity, 'free')
"""

INSERT_WANTED = """
    INSERT INTO slot (agenda_id, starts_at, ends_at, local_date, capacity)
    SELECT w.agenda_id, w.starts_at, w.ends_at, w.local_date, w.capacity
    FROM wanted_slot w
    WHERE NOT EXISTS (SELECT FROM present_slot p WHERE p.agenda_id = w.agenda_id AND p.starts_at = w.starts_at)
"""

COUNT_BEFORE = """
    SELECT sum(p.n) FROM present_cell p
    JOIN derive_cell c ON c.agenda_id = p.agenda_id AND c.local_date = p.local_date
"""

# Retired slots that the rules produce again: they count as updated but were not there before.
COUNT_REVIVED = """
    SELECT count(*) FROM present_slot p JOIN wanted_slot w USING (agenda_id, starts_at)
    WHERE p.state = 'retired' AND NOT p.fixed
"""

# --- what the desk is told --------------------------------------------------------------------------------------

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


def _remember(connection: sa.Connection, values: dict[str, object]) -> None:
    connection.execute(sa.text(REMEMBER), values)


def _tell_gaps(connection: sa.Connection, clinic: _Clinic, values: dict[str, object], reasons: list[Reason]) -> None:
    for agenda_id, name, first, last in connection.execute(sa.text(GAPS), values):
        reasons.append(
            Reason(
                "validity_gap",
                f"Agenda «{name}» ({agenda_id}): tra il {first:%d/%m/%Y} e il {last:%d/%m/%Y} nessun turno è in "
                "vigore, quindi nessun orario. Se non è voluto, correggi le date dei turni.",
                clinic.code,
            )
        )


def _orphan_tables(connection: sa.Connection, clinic: _Clinic) -> tuple[Table, ...]:
    rows = connection.execute(
        sa.text("""
            SELECT c.code, a.name, to_char(s.starts_at AT TIME ZONE c.time_zone, 'DD/MM/YYYY HH24:MI'), o.cause, k.name,
                   count(*) OVER ()
            FROM orphan o JOIN slot s ON s.id = o.slot_id JOIN agenda a ON a.id = s.agenda_id
            JOIN clinic c ON c.id = a.clinic_id LEFT JOIN closure k ON k.id = o.closure_id
            WHERE c.id = :clinic AND o.state = 'open' ORDER BY s.starts_at, s.id LIMIT :shown"""),
        {"clinic": clinic.id, "shown": SHOWN_AGENDAS},
    ).all()
    words = {"closure": "chiusura", "rule_changed": "turno cambiato", "agenda_ended": "agenda terminata"}
    cells = tuple((code, name, when, words[cause], closure) for code, name, when, cause, closure, _ in rows)
    total = rows[0][5] if rows else 0
    columns = ("Clinica", "Agenda", "Quando", "Perché", "Chiusura")
    return (Table("Prenotazioni da ricollocare", columns, cells, total),)
