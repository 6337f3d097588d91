"""The record kinds of a practice's workbook. What studiolab keeps of a doctor or a service is not the workbook's."""

from __future__ import annotations

from datetime import datetime, timedelta

import sqlalchemy as sa

from polydesk_dagster.changes.kind import Kind, Limits
from polydesk_dagster.changes.why import why
from polydesk_dagster.clinic.calendar.desk_closures import DESK_CLOSURE
from polydesk_dagster.clinic.calendar.touched import derive_touched
from polydesk_dagster.outcome import Report

LIMITS = Limits(minimum=0, shrink=1.0, rejected=0.25, retired=None, changed=0.5, enough=20, alike=False)
"""A workbook may hold a part of what there is, and is written by hand: a wrong row is that row's matter. A column that
slipped makes more than a quarter of many rows unreadable, or changes more than half of what there is."""

EXPIRES = timedelta(days=7)
"""How long a person may take to look at a workbook's plans."""


def of_studiolab(*columns: str) -> str:
    """SQL over ``c`` (ours) and ``d`` (the workbook's): why ``columns``, which studiolab keeps, may not be changed."""
    ours, theirs = (", ".join(f"{side}.{name}" for name in columns) for side in "cd")
    return f"""CASE WHEN c.external_id IS NOT NULL AND ROW({theirs}) IS DISTINCT FROM ROW({ours})
                    THEN {why("sheet_of_studiolab")} END"""


BLOCKED = {
    "practice_doctor": of_studiolab(
        "title", "last_name", "first_name", "fiscal_code", "specialties", "email", "active", "ends_on"
    ),
    "practice_service": of_studiolab("code", "name", "duration_minutes", "preparation", "active"),
}
"""Why a change of what we hold is not the workbook's to make."""

_CARRIED = {"line": "integer", "target": "bigint", "name_of_row": "text", "thing": "text"}
_NAMED = "r.name_of_row"


def _of(
    name: str,
    table: str,
    owned: tuple[str, ...],
    fixed: tuple[str, ...] = (),
    **more: object,
) -> Kind:
    given: dict[str, object] = {
        "name": name,
        "table": table,
        "key": _NAMED,
        "fixed": fixed,
        "owned": owned,
        "carried": _CARRIED,
        "limits": LIMITS,
        "expires": EXPIRES,
        **more,
    }
    return Kind(**given)  # pyrefly: ignore[bad-argument-type]


def _members(name: str, table: str, identity: tuple[str, str], owned: tuple[str, ...] = ("clinic_id",)) -> Kind:
    return Kind(
        name=name,
        table=table,
        key=_NAMED,
        identity=identity,
        owned=owned,
        carried={"name_of_row": "text"},
        expires=EXPIRES,
    )


_UNBOOKED = """CASE WHEN EXISTS (SELECT FROM slot x JOIN seat y ON y.slot_id = x.id WHERE x.agenda_id = t.id)
                    THEN 'has_bookings' END"""

# The days of closures as they were and as they are, of those that return every year also the next ones.
_CLOSED_DAYS = """
    SELECT d.layer, CAST(NULL AS text) AS region, CAST(NULL AS text) AS municipality_code, d.clinic_id, d.agenda_id,
           CAST(d.date_from + make_interval(years => y) AS date) AS date_from,
           CAST(d.date_to + make_interval(years => y) AS date) AS date_to
    FROM (SELECT layer, clinic_id, agenda_id, date_from, date_to, yearly FROM {rows} r
          WHERE action IN ('create', 'update')
          UNION
          SELECT layer, clinic_id, agenda_id, was_date_from, was_date_to, was_yearly FROM {rows} r
          WHERE action IN ('update', 'delete') AND was_date_from IS NOT NULL) d
    CROSS JOIN generate_series(0, CASE WHEN d.yearly
        THEN greatest(0, CAST(extract(year FROM CAST(:as_of AS date)) - extract(year FROM d.date_from) AS integer) + 2)
        ELSE 0 END) AS y"""


def _derive(connection: sa.Connection, rows: str, as_of: datetime) -> Report | None:
    return derive_touched(connection, _CLOSED_DAYS.format(rows=rows), as_of)


_KINDS = (
    _of(
        "practice_clinic",
        "clinic",
        ("name", "region", "municipality_code", "phone", "email", "language", "horizon_days", "active"),
        ("code",),
    ),
    _of(
        "practice_location",
        "location",
        ("name", "address", "postal_code", "municipality_code", "phone", "active"),
        ("clinic_id",),
    ),
    _of(
        "practice_travel",
        "travel",
        ("minutes",),
        ("from_location", "to_location"),
        taken="t.from_location = r.from_location AND t.to_location = r.to_location",
    ),
    _of(
        "practice_doctor",
        "specialist",
        ("title", "last_name", "first_name", "fiscal_code", "specialties", "email", "active", "ends_on"),
        ("clinic_id",),
        kept=("sort_name", "sort_name_manual"),
        derived=("sort_name",),
        masked=("fiscal_code", "email"),
    ),
    _of(
        "practice_service",
        "service",
        (
            "code",
            "name",
            "duration_minutes",
            "price",
            "pause_before_minutes",
            "pause_after_minutes",
            "preparation",
            "preparation_lead_days",
            "preparation_last_hours",
            "sensitive",
            "bookable_online",
            "active",
        ),
        ("clinic_id",),
        taken="t.clinic_id = r.clinic_id AND t.code = r.code AND t.deleted_at IS NULL",
    ),
    _of(
        "practice_group",
        "service_group",
        ("name",),
        ("clinic_id",),
        taken="t.clinic_id = r.clinic_id AND t.name = r.name",
    ),
    _members("practice_group_service", "service_group_member", ("service_group_id", "service_id")),
    _of(
        "practice_resource",
        "resource",
        ("location_id", "kind", "name", "active"),
        ("clinic_id",),
        taken="t.location_id = r.location_id AND t.name = r.name",
    ),
    _members("practice_resource_service", "service_resource", ("service_id", "resource_id")),
    _of(
        "practice_agenda",
        "agenda",
        (
            "location_id",
            "name",
            "specialist_id",
            "service_id",
            "resource_id",
            "slot_minutes",
            "capacity",
            "horizon_days",
            "min_notice_minutes",
            "online",
            "auto_generate",
            "active",
            "valid_from",
            "valid_to",
        ),
        ("clinic_id",),
        dependents=("slot", "agenda_state"),
        held=_UNBOOKED,
        undo_before=(
            "DELETE FROM slot WHERE agenda_id IN (SELECT id FROM {rows} r WHERE action = 'delete')",
            "DELETE FROM agenda_state WHERE agenda_id IN (SELECT id FROM {rows} r WHERE action = 'delete')",
        ),
    ),
    _members("practice_agenda_service", "agenda_service", ("agenda_id", "service_id")),
    _of(
        "practice_turn",
        "agenda_rule",
        (
            "weekday",
            "starts_at",
            "ends_at",
            "crosses_midnight",
            "every_weeks",
            "slot_minutes",
            "capacity",
            "valid_from",
            "valid_to",
        ),
        ("agenda_id",),
        told=True,
    ),
    _of(
        "practice_closure",
        "closure",
        ("name", "date_from", "date_to", "from_time", "to_time", "yearly", "effect"),
        ("layer", "clinic_id", "agenda_id"),
        dependents=DESK_CLOSURE.dependents,
        undo_before=DESK_CLOSURE.undo_before,
        effect=_derive,
    ),
    _of(
        "practice_user",
        "app_user",
        ("email", "display_name", "role", "whole_chain", "clinic_id"),
        ("state",),
        masked=("email",),
        after=(
            """UPDATE web_session SET ended_at = :as_of
               WHERE ended_at IS NULL AND user_id IN (SELECT id FROM {rows} r WHERE action = 'update')""",
        ),
    ),
    _members("practice_user_clinic", "app_user_clinic", ("user_id", "clinic_id"), owned=()),
    _of(
        "practice_text",
        "message_template",
        ("subject", "body", "retired_at"),
        ("layer", "clinic_id", "kind", "variant", "channel", "language"),
        told=True,
    ),
)

KINDS = {kind.name: kind for kind in _KINDS}
