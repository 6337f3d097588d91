"""Tiny builders for tests: a clinic and what hangs on it, each with defaults that satisfy the schema.

Every builder takes a connection and inserts; the caller commits (``with engine.begin() as connection: …``). Builders
of one thing return its id; ``insert`` writes many rows of one table in one statement.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from psycopg.types.json import Json, Jsonb

from polydesk_dagster import changes
from polydesk_dagster.clinic.bookings.emergency import VERBS, Press
from polydesk_dagster.outcome import Outcome

AS_OF = datetime(2026, 3, 10, 9, 0, tzinfo=UTC)
"""A Tuesday, 10:00 in Rome, nineteen days before the clocks go forward."""

ROME = ZoneInfo("Europe/Rome")

NOISE = "".join(random.Random(1).choices(string.ascii_letters, k=20_000))
"""Text that no index could hold: too varied to be compressed."""

_WITHOUT_ID = {"integration", "service_group_member", "service_resource", "agenda_service", "agenda_state", "seat"}
_WITHOUT_ID |= {"municipality"}
_serial = itertools.count(1)


def rome(day: str | date, at: str = "09:00") -> datetime:
    """An instant from a wall-clock time in Rome, in UTC: ``rome("2026-03-11", "15:30")``."""
    day = date.fromisoformat(day) if isinstance(day, str) else day
    return datetime.combine(day, time.fromisoformat(at), ROME).astimezone(UTC)


def insert(connection: sa.Connection, table: str, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Insert rows that all have the same columns; returns their ids in order (none for tables without an id)."""
    if not rows:
        return []
    columns = ", ".join(rows[0])
    result = connection.execute(
        sa.text(f"""
            INSERT INTO {table} ({columns})
            SELECT {columns} FROM jsonb_populate_recordset(CAST(NULL AS {table}), :rows) WITH ORDINALITY r
            ORDER BY ordinality {"" if table in _WITHOUT_ID else "RETURNING id"}"""),
        {"rows": Jsonb(rows, dumps=_as_json)},
    )
    return [] if table in _WITHOUT_ID else list(result.scalars())


def _as_json(rows: Any) -> str:
    """As PostgreSQL reads its types from JSON: dates, amounts and ranges are their text."""
    return json.dumps(rows, default=_told)


def _told(value: Any) -> Any:
    match value:
        case Json() | Jsonb():
            return value.obj
        case bytes():
            return f"\\x{value.hex()}"
        case _:
            return str(value)


def _one(connection: sa.Connection, table: str, row: Mapping[str, Any]) -> int:
    return insert(connection, table, [row])[0]


_REFERRING = sa.text("""
    WITH RECURSIVE reached AS (
        SELECT CAST(CAST(name AS regclass) AS oid) AS id FROM unnest(CAST(:tables AS text[])) AS name
        UNION
        SELECT c.conrelid FROM pg_constraint c JOIN reached ON c.confrelid = reached.id WHERE c.contype = 'f')
    SELECT CAST(CAST(id AS regclass) AS text) FROM reached""")


def clear(connection: sa.Connection, *tables: str, renumber: bool = False) -> None:
    """Empty ``tables`` and all that refers to them, also what no program may take away from; ``renumber`` from 1."""
    if renumber:
        connection.execute(sa.text("ALTER TABLE service_switch DISABLE TRIGGER USER"))
        connection.execute(sa.text(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY CASCADE"))
        connection.execute(sa.text("ALTER TABLE service_switch ENABLE TRIGGER USER"))
        return
    # Few rows are deleted sooner than the files of a hundred tables and their indexes are made anew.
    emptied = connection.scalars(_REFERRING, {"tables": list(tables)}).all()
    deleting = " ".join(f"DELETE FROM {table};" for table in emptied)
    role = "SET LOCAL session_replication_role"
    connection.execute(sa.text(f"DO $$BEGIN {role} = replica; {deleting} {role} = DEFAULT; END$$"))


def clinic(connection: sa.Connection, code: str = "BO01", **fields: Any) -> int:
    return _one(
        connection,
        "clinic",
        {
            "code": code,
            "name": f"Poliambulatorio {code}",
            "region": "Emilia-Romagna",
            "municipality_code": "A944",
            "phone": "+390510000000",
            "email": f"desk@{code.lower()}.example",
            **fields,
        },
    )


def integration(connection: sa.Connection, clinic_id: int, base_url: str, **fields: Any) -> None:
    row = {
        "clinic_id": clinic_id,
        "base_url": base_url,
        "token_env": "POLYDESK_STUDIOLAB_TOKEN_TEST",
        "active": True,
        **fields,
    }
    insert(connection, "integration", [row])


def location(connection: sa.Connection, clinic_id: int, **fields: Any) -> int:
    return _one(
        connection,
        "location",
        {
            "clinic_id": clinic_id,
            "name": f"Sede {next(_serial)}",
            "address": "Via Indipendenza 1",
            "postal_code": "40121",
            "municipality_code": "A944",
            **fields,
        },
    )


def specialist(connection: sa.Connection, clinic_id: int, **fields: Any) -> int:
    row = {"clinic_id": clinic_id, "title": "Dott.ssa", "last_name": "Bianchi", "first_name": "Elena", **fields}
    return _one(connection, "specialist", row)


def service(connection: sa.Connection, clinic_id: int, **fields: Any) -> int:
    return _one(
        connection,
        "service",
        {
            "clinic_id": clinic_id,
            "code": f"89.7A.{next(_serial)}",
            "name": "Prima visita cardiologica",
            "duration_minutes": 30,
            "price": "120.00",
            "bookable_online": True,
            **fields,
        },
    )


def rules(
    connection: sa.Connection,
    agenda_id: int,
    weekdays: Sequence[int] = (1, 2, 3, 4, 5),
    starts_at: str = "09:00",
    ends_at: str = "13:00",
    **fields: Any,
) -> list[int]:
    """One rule for each ISO weekday."""
    return insert(
        connection,
        "agenda_rule",
        [
            {
                "agenda_id": agenda_id,
                "weekday": weekday,
                "starts_at": time.fromisoformat(starts_at),
                "ends_at": time.fromisoformat(ends_at),
                "valid_from": date(2026, 1, 1),
                **fields,
            }
            for weekday in weekdays
        ],
    )


def agenda(
    connection: sa.Connection,
    clinic_id: int,
    location_id: int,
    *,
    specialist_id: int | None = None,
    service_id: int | None = None,
    resource_id: int | None = None,
    services: Sequence[int] = (),
    weekdays: Sequence[int] = (1, 2, 3, 4, 5),
    **fields: Any,
) -> int:
    """An agenda with automatic generation, 09:00-13:00 on ``weekdays`` (none: no rule), and the services it offers."""
    agenda_id = _one(
        connection,
        "agenda",
        {
            "clinic_id": clinic_id,
            "location_id": location_id,
            "specialist_id": specialist_id,
            "service_id": service_id,
            "resource_id": resource_id,
            "name": f"Agenda {next(_serial)}",
            "auto_generate": True,
            "slot_minutes": 30,
            "online": True,
            **fields,
        },
    )
    rules(connection, agenda_id, weekdays)
    insert(
        connection,
        "agenda_service",
        [{"clinic_id": clinic_id, "agenda_id": agenda_id, "service_id": offered} for offered in services],
    )
    return agenda_id


def patient(connection: sa.Connection, **fields: Any) -> int:
    serial = next(_serial)
    return _one(
        connection,
        "patient",
        {
            "last_name": "Rossi",
            "first_name": "Mario",
            "sex": "M",
            "birth_date": date(1970, 1, 1),
            "birth_place": "A944",
            "email": f"paziente{serial}@example.org",
            "mobile": f"+39347{serial:07d}",
            **fields,
        },
    )


def user(connection: sa.Connection, clinic_id: int, **fields: Any) -> int:
    row = {
        "clinic_id": clinic_id,
        "email": f"utente{next(_serial)}@example.org",
        "display_name": "Utente di prova",
        "role": "patient",
        "state": "invited",
        "invited_at": AS_OF - timedelta(days=10),
        **fields,
    }
    return _one(connection, "app_user", row)


def closure(connection: sa.Connection, day: str | date, until: str | date | None = None, **fields: Any) -> int:
    row = {"layer": "chain", "name": "Chiusura", "date_from": day, "date_to": until or day, **fields}
    return _one(connection, "closure", row)


def slot(connection: sa.Connection, agenda_id: int, starts_at: datetime, **fields: Any) -> int:
    row = {
        "agenda_id": agenda_id,
        "starts_at": starts_at,
        "ends_at": starts_at + timedelta(minutes=30),
        "local_date": starts_at.astimezone(ROME).date(),
        "capacity": 1,
        **fields,
    }
    return _one(connection, "slot", row)


def offered(connection: sa.Connection, slot_id: int) -> int:
    """The first service that is offered where the slot is; 0 where there is none."""
    first = sa.text("""SELECT min(o.service_id) FROM agenda_service o JOIN slot s ON s.agenda_id = o.agenda_id
                       WHERE s.id = :slot""")
    return connection.scalar(first, {"slot": slot_id}) or 0


def appointment(
    connection: sa.Connection,
    slot_id: int,
    *,
    service_id: int,
    patient_id: int | None,
    seat: bool = True,
    **fields: Any,
) -> int:
    """An appointment on a slot; while it stands (and unless ``seat=False``) it takes the slot's next free unit."""
    where = connection.execute(
        sa.text(
            """SELECT a.clinic_id, a.id AS agenda_id, a.specialist_id, s.starts_at, s.ends_at
               FROM slot s JOIN agenda a ON a.id = s.agenda_id WHERE s.id = :slot"""
        ),
        {"slot": slot_id},
    ).one()
    row = {
        **where._mapping,
        "slot_id": slot_id,
        "service_id": service_id,
        "patient_id": patient_id,
        "status": "booked",
        "channel": "desk",
        "quoted_price": "120.00",
        "created_at": AS_OF - timedelta(days=5),
        **fields,
    }
    appointment_id = _one(connection, "appointment", row)
    if seat and row["status"] in {"unverified", "booked", "accepted"}:
        _seat(connection, slot_id, appointment_id=appointment_id)
    return appointment_id


def hold(connection: sa.Connection, clinic_id: int, slot_id: int, **fields: Any) -> int:
    """A live hold of five minutes ago with five to go, and its seat."""
    row = {
        "clinic_id": clinic_id,
        "slot_id": slot_id,
        "token_hash": hashlib.sha256(f"token {next(_serial)}".encode()).digest(),
        "visitor_hash": hashlib.sha256(f"visitor {next(_serial)}".encode()).digest(),
        "created_at": AS_OF - timedelta(minutes=5),
        "expires_at": AS_OF + timedelta(minutes=5),
        "last_activity_at": AS_OF - timedelta(minutes=5),
        **fields,
    }
    hold_id = _one(connection, "hold", row)
    if row.get("state", "live") in {"live", "confirming"}:
        _seat(connection, slot_id, hold_id=hold_id, held_until=row["expires_at"])
    return hold_id


def _seat(connection: sa.Connection, slot_id: int, **holder: Any) -> None:
    unit = connection.execute(
        sa.text(
            """SELECT min(u) FROM generate_series(1, 100) u
               WHERE NOT EXISTS (SELECT FROM seat WHERE slot_id = :slot AND unit = u)"""
        ),
        {"slot": slot_id},
    ).scalar_one()
    insert(connection, "seat", [{"slot_id": slot_id, "unit": unit, **holder}])


def approve(engine: sa.Engine, as_of: datetime) -> list[Outcome]:
    """A person has looked at the agendas that slot generation holds and applies their plans."""
    outcomes = []
    with engine.begin() as connection:
        for plan in changes.latest(connection, service="generate_slots"):
            if plan.state == "ready" and plan.failed_guards and not plan.expired:
                past = [guard.name for guard in plan.failed_guards]
                reason = "guardato in segreteria"
                report = changes.apply(
                    connection, plan.id, as_of=as_of, actor="desk:anna", reason=reason, past_guards=past
                )
                outcomes.append(report.outcome)
    return outcomes


@dataclass(frozen=True)
class Practice:
    """One clinic with one of everything; ids."""

    clinic: int
    location: int
    specialist: int
    service: int
    agenda: int
    patient: int


def typed(connection: sa.Connection, given: Press, clinic: str | None = None) -> Press:
    """``given`` as somebody types it who has looked at the newest plan of its verb for the clinic (None: the chain):
    with the plan's number and, after verb and count, the plan's word."""
    verb, _, count = given.confirm.partition(" ")
    services = [service for service, word in VERBS.items() if word == verb.upper()]
    found = connection.execute(
        sa.text("""SELECT p.id, w.word FROM plan p LEFT JOIN press_word w ON w.plan_id = p.id
                   WHERE p.service = ANY(:services) AND p.clinic_id IS NOT DISTINCT FROM
                       (SELECT id FROM clinic WHERE code = CAST(:clinic AS text)) AND p.undoes IS NULL
                     AND (CAST(:plan AS bigint) IS NULL OR p.id = :plan)
                   ORDER BY p.id DESC LIMIT 1"""),
        {"services": services or list(VERBS), "clinic": clinic, "plan": given.plan_id},
    ).one_or_none()
    if found is None:
        return given
    phrase = f"{given.confirm} {found.word}" if count.isdigit() else given.confirm
    return replace(given, confirm=phrase, plan_id=found.id)


def practice(connection: sa.Connection, code: str = "BO01", **agenda_fields: Any) -> Practice:
    """A clinic, a location, a specialist, a service, the specialist's agenda (weekdays 09:00-13:00), a patient."""
    clinic_id = clinic(connection, code)
    location_id = location(connection, clinic_id)
    specialist_id = specialist(connection, clinic_id)
    service_id = service(connection, clinic_id)
    agenda_id = agenda(
        connection, clinic_id, location_id, specialist_id=specialist_id, services=[service_id], **agenda_fields
    )
    connection.execute(sa.text("SELECT refresh_bookable()"))  # as whoever tidies leaves it
    return Practice(clinic_id, location_id, specialist_id, service_id, agenda_id, patient(connection))
