"""Events as rows: what each type's data must be, and one COPY of a page into the session's staging table.

An event that cannot be read is staged too, with its problem: it will be parked, never dropped.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, Self, cast

import msgspec
import psycopg
import sqlalchemy as sa
from pydantic import BeforeValidator, ValidationError, model_validator
from pydantic_core import PydanticSerializationError

from polydesk_dagster.changes.why import kept
from polydesk_dagster.database import bulk
from polydesk_dagster.sources.port import News
from polydesk_dagster.sources.records import Event, Patient
from polydesk_dagster.values import Reason
from polydesk_dagster.wire import (
    LONGEST,
    Instant,
    OptionalProse,
    OptionalText,
    Prose,
    Record,
    Rejected,
    Text,
    clean,
    storable,
)
from polydesk_dagster.wrong import bad, reason

VERSION = 1
OLDEST = 10
LONGEST_VISIT = timedelta(hours=8)

_STATUSES = {
    "booked": "booked",
    "confirmed": "booked",
    "scheduled": "booked",
    "accepted": "booked",  # whether the patient is at the desk is told by acceptance.*
    "completed": "completed",
    "no_show": "no_show",
    "cancelled": "cancelled",
}


class Booking(Record):
    """Data of appointment.*"""

    patient_id: Text
    collaborator_id: OptionalText = None
    service_id: Text
    agenda_id: Text
    starts_at: Instant
    ends_at: Instant
    status: Annotated[
        Literal["booked", "completed", "no_show", "cancelled"],
        BeforeValidator(lambda value: _STATUSES.get(value.casefold(), value) if isinstance(value, str) else value),
    ]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not timedelta(0) < self.ends_at - self.starts_at <= LONGEST_VISIT:
            raise bad("visit_too_long")
        return self


class Acceptance(Record):
    """Data of acceptance.*"""

    appointment_id: Text
    accepted_at: Instant
    desk: OptionalText = None


class Publication(Record):
    """Data of report.*"""

    appointment_id: OptionalText = None
    patient_id: Text
    title: Prose
    published_at: Instant
    url: OptionalProse = None


COLUMNS = (
    "event_id", "sequence", "type", "version", "occurred_at", "entity", "facet", "target", "problem", "payload",
    "patient", "collaborator", "service", "agenda", "starts_at", "ends_at", "status", "appointment", "title", "url",
    "moment", "desk", "person",
)  # fmt: skip

TABLE = """
CREATE TEMP TABLE IF NOT EXISTS news (
    event_id uuid PRIMARY KEY, sequence bigint, type text NOT NULL, version integer, occurred_at timestamptz,
    entity text, facet text, target text, problem text, payload jsonb NOT NULL,
    patient text, collaborator text, service text, agenda text, starts_at timestamptz, ends_at timestamptz,
    status text, appointment text, title text, url text, moment timestamptz, desk text, person jsonb,
    verdict text, reason text, patient_id bigint, service_id bigint, specialist_id bigint, agenda_id bigint
) ON COMMIT DELETE ROWS"""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows ready for COPY, by event id: the same event twice is one row."""

    rows: Mapping[str, tuple[str | None, ...]]
    repeated: int
    """Deliveries beyond the first inside this batch."""

    def column(self, name: str) -> set[str]:
        """What stands in one of ``COLUMNS``, once each."""
        place = COLUMNS.index(name)
        return {value for row in self.rows.values() if (value := row[place]) is not None}

    def oldest(self) -> list[str]:
        """The few with the lowest numbers, by which a batch is known to whoever has taken it in before."""
        place = COLUMNS.index("sequence")
        return sorted(self.rows, key=lambda event: int(self.rows[event][place] or 0))[:OLDEST]


def batch(events: Iterable[Event], rejected: Sequence[Rejected], largest: int = 2**62) -> Batch:
    """Stage what a page of news holds, readable or not. A sequence number above ``largest`` is taken for wrong."""
    rows: dict[str, tuple[str | None, ...]] = {}
    repeated = 0
    for row in (*(_row(event, largest) for event in events), *map(_unreadable, rejected)):
        key = str(row[0])
        repeated += key in rows
        rows.setdefault(key, row)
    return Batch(rows, repeated)


def copy(connection: sa.Connection, staged: Batch) -> None:
    """Fill the session's ``news`` with the batch; the caller's transaction empties it at its end."""
    connection.execute(sa.text(TABLE))
    raw = cast(psycopg.Connection[Any], connection.connection.dbapi_connection)
    with raw.cursor() as cursor, cursor.copy(f"COPY news ({', '.join(COLUMNS)}) FROM STDIN") as sink:
        sink.write(bulk.lines(list(staged.rows.values())))


def _row(event: Event, largest: int) -> tuple[str | None, ...]:
    problem: str | None = None
    facet = target = None
    entity: str | None = f"{event.entity.type}:{event.entity.id}"
    cells: tuple[str | None, ...] = (None,) * 13
    family = event.type.rpartition(".")[0]
    if event.type not in TYPES:
        problem, entity = kept(Reason("event_type_unknown", {"type": event.type[:60]})), None
    elif event.sequence > largest:
        problem = kept(Reason("sequence_impossible", {"sequence": event.sequence}))
    elif event.version != VERSION:
        problem = kept(Reason("event_version_unknown", {"version": event.version, "type": event.type}))
    else:
        try:
            facet, target, cells = _READERS[family](event)
        except ValidationError as error:
            problem = kept(Reason("event_data_wrong", {"why": reason(error)}))
    return (
        event.id.lower(),
        str(event.sequence),
        event.type,
        str(event.version),
        event.occurred_at.isoformat(),
        entity,
        facet,
        target,
        problem,
        _payload(event),
        *cells,
    )


def _payload(event: Event) -> str:
    if _holds_decimals(event.data):
        return _json(event.model_dump())
    try:
        payload = event.model_dump_json()
    except PydanticSerializationError:
        payload = "\\u0000"
    return _json(event.model_dump()) if "\\u0000" in payload else payload


def _holds_decimals(value: Any) -> bool:
    """Whether there is a number in it of which pydantic would make a text."""
    if isinstance(value, dict):
        return any(map(_holds_decimals, value.values()))
    return any(map(_holds_decimals, value)) if isinstance(value, list) else isinstance(value, Decimal)


def _json(value: Any) -> str:
    return json.dumps(storable(value), ensure_ascii=False, sort_keys=True, default=datetime.isoformat)


def _booking(event: Event) -> tuple[str, str, tuple[str | None, ...]]:
    data = Booking.model_validate(event.data)
    status = "cancelled" if event.type == "appointment.cancelled" else data.status
    starts, ends = data.starts_at.isoformat(), data.ends_at.isoformat()
    who = (data.patient_id, data.collaborator_id, data.service_id, data.agenda_id)
    return "appointment", event.entity.id, (*who, starts, ends, status, None, None, None, None, None, None)


def _acceptance(event: Event) -> tuple[str, str, tuple[str | None, ...]]:
    data = Acceptance.model_validate(event.data)
    status = "accepted" if event.type == "acceptance.created" else "cancelled"
    moment = data.accepted_at.isoformat()
    return "acceptance", data.appointment_id, (*(None,) * 6, status, None, None, None, moment, data.desk, None)


def _publication(event: Event) -> tuple[str, str, tuple[str | None, ...]]:
    data = Publication.model_validate(event.data)
    status = "published" if event.type == "report.published" else "withdrawn"
    what = (data.appointment_id, data.title, data.url, data.published_at.isoformat())
    return "report", event.entity.id, (data.patient_id, *(None,) * 5, status, *what, None, None)


def _patient(event: Event) -> tuple[str, str, tuple[str | None, ...]]:
    data = Patient.read(event.data)
    return "patient", data.id, (data.id, *(None,) * 11, msgspec.json.encode(data).decode())


def _price_list(event: Event) -> tuple[str, str, tuple[str | None, ...]]:
    return "price_list", event.entity.id, (None,) * 13


_READERS = {
    "appointment": _booking,
    "acceptance": _acceptance,
    "report": _publication,
    "patient": _patient,
    "price_list": _price_list,
}
TYPES = frozenset(
    {
        "report.published", "report.withdrawn", "acceptance.created", "acceptance.cancelled", "appointment.created",
        "appointment.rescheduled", "appointment.cancelled", "patient.updated", "price_list.changed",
    }
)  # fmt: skip


def _unreadable(rejected: Rejected) -> tuple[str | None, ...]:
    """An envelope with something wrong keeps what of it can be read."""
    raw = storable(rejected.raw)
    if not isinstance(raw, dict):
        raw = {"item": raw}
    payload = _json(raw)
    try:
        key = str(uuid.UUID(str(raw.get("id"))))
    except ValueError:
        key = str(uuid.UUID(bytes=hashlib.sha256(payload.encode()).digest()[:16]))
    kind = clean(raw["type"])[:60] if isinstance(raw.get("type"), str) else ""
    sequence = readable_sequence(raw)
    problem = kept(Reason("event_wrong", {"why": rejected.reason}))
    return (
        key,
        None if sequence is None else str(sequence),
        kind or "?",
        None,
        None,
        None if sequence is None else _entity(raw.get("entity")),
        None,
        None,
        problem,
        payload,
        *(None,) * 13,
    )


def _entity(raw: Any) -> str | None:
    if isinstance(raw, dict) and isinstance(raw.get("type"), str) and isinstance(raw.get("id"), str):
        kind, name = clean(raw["type"]), clean(raw["id"])
        return f"{kind}:{name}" if max(len(kind), len(name)) <= LONGEST else None
    return None


def readable_sequence(raw: Any) -> int | None:
    """The sequence number of an item of the feed as it came, if it has one."""
    value = raw.get("sequence") if isinstance(raw, dict) else None
    return value if type(value) is int and 1 <= value <= 2**62 else None


def ids_at(news: News, sequence: int) -> set[str]:
    """The ids that stand under the number ``sequence`` in ``news``, of what cannot be read as well as of events."""
    ids = {event.id.lower() for event in news.events if event.sequence == sequence}
    for each in news.rejected:
        if readable_sequence(each.raw) == sequence:
            with suppress(ValueError):
                ids.add(str(uuid.UUID(str(each.raw.get("id")))))
    return ids
