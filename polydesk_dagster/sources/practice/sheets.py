"""What each sheet of a practice's workbook holds, in the order in which one can refer to the one before.

A row is matched by its number, which an exported workbook carries, or else by what people know it by. A row that is not
in the workbook is left alone; a column that is not there too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from polydesk_dagster.changes.kind import Kind
from polydesk_dagster.clinic.messages.templates import lint
from polydesk_dagster.sources.practice import cells
from polydesk_dagster.sources.practice.cells import Cell, choice
from polydesk_dagster.sources.practice.kinds import KINDS
from polydesk_dagster.values import Reason


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a sheet. ``sql`` over ``s`` (the row), its references and ``m`` (what we hold) is what is written,
    where that is not the cell itself; ``default`` stands where the cell is blank; ``target`` is the column of ours."""

    key: str
    cell: Cell
    required: bool = False
    default: str | None = None
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """What a row names that must be known: ``missing`` is SQL that holds where it is not, for the cell ``column``;
    ``{column}`` in it is whether the sheet has that column."""

    column: str
    missing: str
    code: str = "sheet_unknown"


@dataclass(frozen=True, slots=True)
class Members:
    """A list in a cell that says all that belongs to the row's thing, of what is in the table ``among``.

    ``known`` joins it (alias ``v``) to a name of the list (alias ``w``: owner, clinic_id, name, place); ``owner`` and
    ``member`` are the columns of ours.
    """

    column: str
    kind: Kind
    owner: str
    member: str
    among: str
    known: str


@dataclass(frozen=True, slots=True)
class Sheet:
    """One sheet and the record kind of its rows.

    ``joins`` brings in what a row ``s`` refers to; ``match`` is SQL over ``t`` that finds the row without a number;
    ``written`` gives, by column of ours, the SQL of what is not simply a cell. ``known`` are the columns by which the
    sheets after it refer to a row. ``exported`` is the query behind an export, by column of the sheet.
    """

    key: str
    kind: Kind
    columns: tuple[Column, ...]
    match: str
    joins: str = ""
    written: Mapping[str, str] = field(default_factory=dict)
    natural: str = ""
    name: str = ""
    living: str = "true"
    references: tuple[Reference, ...] = ()
    members: tuple[Members, ...] = ()
    known: tuple[str, ...] = ()
    check: Callable[[Mapping[str, Any]], Reason | None] | None = None
    exported: str = ""
    numbered: bool = True

    @property
    def required(self) -> frozenset[str]:
        return frozenset(column.key for column in self.columns if column.required)


_NUMBER = Column("number", cells.whole(1, 999_999_999))
_CLINIC = Column("clinic", cells.CLINIC, required=True)
_ACTIVE = Column("active", cells.YES_NO, default="true")
_OF_CLINIC = "LEFT JOIN known_clinic k ON k.code = s.clinic"
_OF_LOCATION = """
    LEFT JOIN known_location l ON l.clinic_id = k.id AND lower(l.name) = lower(s.location)"""
_OF_AGENDA = """
    LEFT JOIN LATERAL (
        SELECT array_agg(g.id) AS ids FROM known_agenda g LEFT JOIN known_location l ON l.id = g.location_id
        WHERE g.clinic_id = k.id AND lower(g.name) = lower(s.agenda)
          AND (s.location IS NULL OR lower(l.name) = lower(s.location))) a ON true"""
_WEEKDAY = "array_position(ARRAY['mon', 'tue', 'wed', 'thu', 'fri', 'sat', 'sun'], s.weekday)"
_NO_CLINIC = Reference("clinic", "k.id IS NULL")
_NO_LOCATION = Reference("location", "l.id IS NULL")
_NO_SERVICE = Reference(
    "services",
    """EXISTS (SELECT FROM unnest(s.services) AS code
               WHERE code NOT IN (SELECT v.code FROM known_service v WHERE v.clinic_id = k.id))""",
    "sheet_unknown_service",
)
_SERVICE_OF_CLINIC = "known_service", "v.clinic_id = w.clinic_id AND v.code = w.name"


def _service_codes(table: str, owner: str) -> str:
    return f"""ARRAY(SELECT v.code FROM {table} x JOIN service v ON v.id = x.service_id
                     WHERE x.{owner} = t.id AND v.deleted_at IS NULL ORDER BY v.code)"""


def _text(row: Mapping[str, Any]) -> Reason | None:
    """What forbids a text of a message, if anything does."""
    subject = row.get("subject") if row["channel"] == "email" else None
    if row["channel"] == "email" and not subject:
        return Reason("sheet_no_subject")
    found = lint(row["kind"], row["variant"], row["channel"], subject, row["body"])
    return next((finding.reason for finding in found if finding.error), None)


SHEETS: tuple[Sheet, ...] = (
    Sheet(
        "clinics",
        KINDS["practice_clinic"],
        (
            Column("code", cells.CLINIC, required=True),
            Column("name", cells.TEXT, required=True),
            Column("municipality", cells.TEXT, required=True, target="municipality_code"),
            Column("region", cells.TEXT),
            Column("phone", cells.TEXT),
            Column("email", cells.EMAIL),
            Column("language", choice("language"), default="'it'"),
            Column("horizon_days", cells.whole(1, 730), default="90"),
            _ACTIVE,
        ),
        match="t.code = s.code",
        joins="""
            LEFT JOIN LATERAL (
                SELECT min(u.cadastral_code) AS code, count(*) AS several, min(u.region) AS region FROM municipality u
                WHERE u.valid_to IS NULL
                  AND (u.cadastral_code = upper(s.municipality) OR name_key(u.name) = name_key(s.municipality))) u
                ON true""",
        written={
            "municipality_code": """coalesce(CASE WHEN u.several = 1 THEN u.code END,
                                             CASE WHEN s.municipality ~* '^[A-Z][0-9]{3}$'
                                                  THEN upper(s.municipality) END)""",
            "region": "coalesce(s.region, u.region)",
        },
        natural="s.code",
        name="s.code",
        references=(
            Reference(
                "municipality",
                "u.several <> 1 AND s.municipality !~* '^[A-Z][0-9]{3}$'",
                "sheet_municipality",
            ),
            Reference("region", "coalesce(s.region, u.region) IS NULL", "sheet_region"),
        ),
        known=("code",),
        exported="""SELECT t.code, t.name, t.municipality_code AS municipality, t.region, t.phone, t.email, t.language,
                           t.horizon_days, t.active
                    FROM clinic t ORDER BY t.code""",
        numbered=False,
    ),
    Sheet(
        "locations",
        KINDS["practice_location"],
        (
            _NUMBER,
            _CLINIC,
            Column("name", cells.TEXT, required=True),
            Column("address", cells.TEXT),
            Column("postal_code", cells.CODE),
            Column("municipality_code", cells.CADASTRAL),
            Column("phone", cells.TEXT),
            _ACTIVE,
        ),
        match="t.clinic_id = k.id AND lower(t.name) = lower(s.name)",
        joins=_OF_CLINIC,
        natural="concat(k.id, '/', lower(s.name))",
        name="concat_ws(' · ', s.clinic, s.name)",
        references=(_NO_CLINIC,),
        known=("clinic_id", "name"),
        exported="""SELECT t.id AS number, k.code AS clinic, t.name, t.address, t.postal_code, t.municipality_code,
                           t.phone, t.active
                    FROM location t JOIN clinic k ON k.id = t.clinic_id ORDER BY k.code, t.name""",
    ),
    Sheet(
        "doctors",
        KINDS["practice_doctor"],
        (
            _NUMBER,
            _CLINIC,
            Column("title", cells.TEXT),
            Column("last_name", cells.TEXT, required=True),
            Column("first_name", cells.TEXT, required=True),
            Column("fiscal_code", cells.FISCAL_CODE),
            Column("specialties", cells.CODES, default="'{}'"),
            Column("email", cells.EMAIL),
            _ACTIVE,
            Column("ends_on", cells.DAY),
        ),
        match="""t.clinic_id = k.id AND t.deleted_at IS NULL
                 AND (t.fiscal_code = s.fiscal_code
                      OR (t.fiscal_code IS NULL OR s.fiscal_code IS NULL)
                         AND name_key(t.last_name) = name_key(s.last_name)
                         AND name_key(t.first_name) = name_key(s.first_name))""",
        joins=_OF_CLINIC,
        natural="concat(k.id, '/', coalesce(s.fiscal_code, lower(s.last_name || '/' || s.first_name)))",
        name="concat_ws(' ', s.clinic, '·', s.last_name, s.first_name)",
        living="t.deleted_at IS NULL",
        references=(_NO_CLINIC,),
        known=("clinic_id", "title", "last_name", "first_name", "fiscal_code"),
        exported="""SELECT t.id AS number, k.code AS clinic, t.title, t.last_name, t.first_name, t.fiscal_code,
                           t.specialties, t.email, t.active, t.ends_on
                    FROM specialist t JOIN clinic k ON k.id = t.clinic_id
                    WHERE t.deleted_at IS NULL ORDER BY k.code, t.last_name, t.first_name, t.id""",
    ),
    Sheet(
        "services",
        KINDS["practice_service"],
        (
            _NUMBER,
            _CLINIC,
            Column("code", cells.CODE, required=True),
            Column("name", cells.TEXT, required=True),
            Column("duration_minutes", cells.whole(1, 480), required=True),
            Column("price", cells.MONEY),
            Column("preparation", cells.LONG),
            Column("preparation_lead_days", cells.whole(0, 60)),
            Column("preparation_last_hours", cells.whole(0, 720)),
            Column("sensitive", cells.YES_NO, default="false"),
            Column("bookable_online", cells.YES_NO, default="false"),
            _ACTIVE,
        ),
        match="t.clinic_id = k.id AND t.code = s.code AND t.deleted_at IS NULL",
        joins=_OF_CLINIC,
        natural="concat(k.id, '/', s.code)",
        name="concat_ws(' · ', s.clinic, s.code, s.name)",
        living="t.deleted_at IS NULL",
        references=(_NO_CLINIC,),
        known=("clinic_id", "code"),
        exported="""SELECT t.id AS number, k.code AS clinic, t.code, t.name, t.duration_minutes, t.price, t.preparation,
                           t.preparation_lead_days, t.preparation_last_hours, t.sensitive, t.bookable_online, t.active
                    FROM service t JOIN clinic k ON k.id = t.clinic_id
                    WHERE t.deleted_at IS NULL ORDER BY k.code, t.code""",
    ),
    Sheet(
        "groups",
        KINDS["practice_group"],
        (
            _NUMBER,
            _CLINIC,
            Column("name", cells.TEXT, required=True),
            Column("services", cells.CODES),
        ),
        match="t.clinic_id = k.id AND lower(t.name) = lower(s.name)",
        joins=_OF_CLINIC,
        natural="concat(k.id, '/', lower(s.name))",
        name="concat_ws(' · ', s.clinic, s.name)",
        references=(_NO_CLINIC, _NO_SERVICE),
        members=(
            Members("services", KINDS["practice_group_service"], "service_group_id", "service_id", *_SERVICE_OF_CLINIC),
        ),
        exported=f"""SELECT t.id AS number, k.code AS clinic, t.name,
                            {_service_codes("service_group_member", "service_group_id")} AS services
                     FROM service_group t JOIN clinic k ON k.id = t.clinic_id ORDER BY k.code, t.name""",
    ),
    Sheet(
        "resources",
        KINDS["practice_resource"],
        (
            _NUMBER,
            _CLINIC,
            Column("location", cells.TEXT, required=True),
            Column("kind", choice("resource_kind"), required=True),
            Column("name", cells.TEXT, required=True),
            Column("services", cells.CODES),
            _ACTIVE,
        ),
        match="t.clinic_id = k.id AND t.location_id = l.id AND lower(t.name) = lower(s.name)",
        joins=_OF_CLINIC + _OF_LOCATION,
        written={"location_id": "l.id"},
        natural="concat(l.id, '/', lower(s.name))",
        name="concat_ws(' · ', s.clinic, s.location, s.name)",
        references=(_NO_CLINIC, _NO_LOCATION, _NO_SERVICE),
        members=(
            Members("services", KINDS["practice_resource_service"], "resource_id", "service_id", *_SERVICE_OF_CLINIC),
        ),
        known=("clinic_id", "location_id", "name"),
        exported=f"""SELECT t.id AS number, k.code AS clinic, l.name AS location, t.kind, t.name,
                            {_service_codes("service_resource", "resource_id")} AS services, t.active
                     FROM resource t JOIN clinic k ON k.id = t.clinic_id JOIN location l ON l.id = t.location_id
                     ORDER BY k.code, l.name, t.name""",
    ),
    Sheet(
        "agendas",
        KINDS["practice_agenda"],
        (
            _NUMBER,
            _CLINIC,
            Column("location", cells.TEXT, required=True),
            Column("name", cells.TEXT, required=True),
            Column("doctor", cells.TEXT, target="specialist_id"),
            Column("service", cells.CODE, target="service_id"),
            Column("resource", cells.TEXT, target="resource_id"),
            Column("services", cells.CODES),
            Column("slot_minutes", cells.whole(1, 480), required=True),
            Column("capacity", cells.whole(1, 100), default="1"),
            Column("horizon_days", cells.whole(1, 730)),
            Column("min_notice_minutes", cells.whole(0, 100_000), default="0"),
            Column("online", cells.YES_NO, default="false"),
            Column("auto_generate", cells.YES_NO, default="true"),
            _ACTIVE,
            Column("valid_from", cells.DAY),
            Column("valid_to", cells.DAY),
        ),
        match="t.clinic_id = k.id AND t.location_id = l.id AND lower(t.name) = lower(s.name)",
        joins=_OF_CLINIC
        + _OF_LOCATION
        + """
            LEFT JOIN LATERAL (
                SELECT array_agg(p.id) AS ids FROM known_specialist p
                WHERE p.clinic_id = k.id
                  AND (p.fiscal_code = upper(s.doctor)
                       OR name_key(s.doctor) IN (name_key(p.last_name || ' ' || p.first_name),
                                              name_key(concat_ws(' ', p.title, p.last_name, p.first_name))))) p ON true
            LEFT JOIN known_service v ON v.clinic_id = k.id AND v.code = s.service
            LEFT JOIN known_resource c ON c.clinic_id = k.id AND c.location_id = l.id
                 AND lower(c.name) = lower(s.resource)""",
        written={
            "location_id": "l.id",
            "specialist_id": """CASE WHEN cardinality(p.ids) = 1 THEN p.ids[1]
                                     WHEN m.specialist_id = ANY(p.ids) THEN m.specialist_id END""",
            "service_id": "v.id",
            "resource_id": "c.id",
        },
        natural="concat(l.id, '/', lower(s.name))",
        name="concat_ws(' · ', s.clinic, s.location, s.name)",
        references=(
            _NO_CLINIC,
            _NO_LOCATION,
            Reference(
                "doctor",
                """num_nonnulls(s.doctor, s.service, s.resource) <> 1
                   AND (m.id IS NULL OR {doctor} OR {service} OR {resource})""",
                "sheet_agenda_of",
            ),
            Reference("doctor", "s.doctor IS NOT NULL AND p.ids IS NULL"),
            Reference(
                "doctor",
                "cardinality(p.ids) > 1 AND NOT coalesce(m.specialist_id = ANY(p.ids), false)",
                "sheet_several",
            ),
            Reference("service", "s.service IS NOT NULL AND v.id IS NULL"),
            Reference("resource", "s.resource IS NOT NULL AND c.id IS NULL"),
            _NO_SERVICE,
        ),
        members=(
            Members("services", KINDS["practice_agenda_service"], "agenda_id", "service_id", *_SERVICE_OF_CLINIC),
        ),
        known=("clinic_id", "location_id", "name"),
        exported=f"""SELECT t.id AS number, k.code AS clinic, l.name AS location, t.name,
                            CASE WHEN (SELECT count(*) FROM specialist o
                                       WHERE o.clinic_id = p.clinic_id AND o.deleted_at IS NULL
                                         AND name_key(o.last_name || ' ' || o.first_name)
                                           = name_key(p.last_name || ' ' || p.first_name)) > 1
                                 THEN coalesce(p.fiscal_code, p.last_name || ' ' || p.first_name)
                                 ELSE p.last_name || ' ' || p.first_name END AS doctor,
                            v.code AS service, c.name AS resource,
                            {_service_codes("agenda_service", "agenda_id")} AS services, t.slot_minutes, t.capacity,
                            t.horizon_days, t.min_notice_minutes, t.online, t.auto_generate, t.active, t.valid_from,
                            t.valid_to
                     FROM agenda t JOIN clinic k ON k.id = t.clinic_id JOIN location l ON l.id = t.location_id
                     LEFT JOIN specialist p ON p.id = t.specialist_id LEFT JOIN service v ON v.id = t.service_id
                     LEFT JOIN resource c ON c.id = t.resource_id ORDER BY k.code, l.name, t.name, t.id""",
    ),
    Sheet(
        "turns",
        KINDS["practice_turn"],
        (
            _NUMBER,
            _CLINIC,
            Column("location", cells.TEXT),
            Column("agenda", cells.TEXT, required=True),
            Column("weekday", choice("weekday"), required=True),
            Column("starts_at", cells.CLOCK, required=True),
            Column("ends_at", cells.CLOCK, required=True),
            Column("every_weeks", cells.whole(1, 52), default="1"),
            Column("slot_minutes", cells.whole(1, 480)),
            Column("capacity", cells.whole(1, 100)),
            Column("valid_from", cells.DAY, default=":today"),
            Column("valid_to", cells.DAY),
        ),
        match=f"""t.agenda_id = a.ids[1] AND t.weekday = {_WEEKDAY} AND t.starts_at = s.starts_at
                  AND (s.valid_from IS NULL AND coalesce(t.valid_to, :today) >= :today OR t.valid_from = s.valid_from)
                  AND t.every_weeks = coalesce(s.every_weeks, t.every_weeks)""",
        joins=_OF_CLINIC + _OF_AGENDA,
        written={
            "agenda_id": "a.ids[1]",
            "weekday": _WEEKDAY,
            "crosses_midnight": "s.ends_at <= s.starts_at",
            "valid_from": "coalesce(s.valid_from, m.valid_from, :today)",
        },
        natural=f"concat(a.ids[1], '/', {_WEEKDAY}, '/', s.starts_at, '/', s.every_weeks, '/', s.valid_from)",
        name="concat_ws(' · ', s.clinic, s.agenda, CAST(s.starts_at AS varchar(5)))",
        references=(
            _NO_CLINIC,
            Reference("agenda", "a.ids IS NULL"),
            Reference("agenda", "cardinality(a.ids) > 1", "sheet_several"),
            Reference("valid_to", "s.valid_to < coalesce(s.valid_from, m.valid_from, :today)", "sheet_ends_first"),
        ),
        exported="""SELECT t.id AS number, k.code AS clinic, l.name AS location, a.name AS agenda,
                           (ARRAY['mon', 'tue', 'wed', 'thu', 'fri', 'sat', 'sun'])[t.weekday] AS weekday, t.starts_at,
                           t.ends_at, t.every_weeks, t.slot_minutes, t.capacity, t.valid_from, t.valid_to
                    FROM agenda_rule t JOIN agenda a ON a.id = t.agenda_id JOIN clinic k ON k.id = a.clinic_id
                    JOIN location l ON l.id = a.location_id
                    ORDER BY k.code, l.name, a.name, t.weekday, t.starts_at, t.id""",
    ),
    Sheet(
        "closures",
        KINDS["practice_closure"],
        (
            _NUMBER,
            Column("clinic", cells.CLINIC),
            Column("location", cells.TEXT),
            Column("agenda", cells.TEXT),
            Column("name", cells.TEXT, required=True),
            Column("date_from", cells.DAY, required=True),
            Column("date_to", cells.DAY),
            Column("from_time", cells.CLOCK),
            Column("to_time", cells.CLOCK),
            Column("yearly", cells.YES_NO, default="false"),
            Column("effect", choice("closure_effect"), default="'closed'"),
        ),
        match="""t.source = 'desk' AND t.lifted_at IS NULL AND lower(t.name) = lower(s.name)
                 AND t.date_from = s.date_from AND t.agenda_id IS NOT DISTINCT FROM a.ids[1]
                 AND t.clinic_id IS NOT DISTINCT FROM CASE WHEN s.agenda IS NULL THEN k.id END""",
        joins=_OF_CLINIC + _OF_AGENDA,
        written={
            "layer": """CASE WHEN s.agenda IS NOT NULL THEN 'agenda' WHEN s.clinic IS NOT NULL THEN 'clinic'
                             ELSE 'chain' END""",
            "clinic_id": "CASE WHEN s.agenda IS NULL THEN k.id END",
            "agenda_id": "a.ids[1]",
            "date_to": "coalesce(s.date_to, s.date_from)",
        },
        natural="concat_ws('/', k.id, a.ids[1], lower(s.name), s.date_from)",
        name="concat_ws(' · ', s.clinic, s.agenda, s.name)",
        living="t.source = 'desk' AND t.lifted_at IS NULL",
        references=(
            Reference("clinic", "s.clinic IS NOT NULL AND k.id IS NULL"),
            Reference("agenda", "s.agenda IS NOT NULL AND a.ids IS NULL"),
            Reference("agenda", "cardinality(a.ids) > 1", "sheet_several"),
            Reference("date_to", "s.date_to < s.date_from", "sheet_ends_first"),
            Reference("to_time", "num_nonnulls(s.from_time, s.to_time) = 1", "sheet_half_hours"),
            Reference("to_time", "s.to_time <= s.from_time", "sheet_ends_first"),
        ),
        exported="""SELECT t.id AS number, k.code AS clinic, l.name AS location, a.name AS agenda, t.name, t.date_from,
                           t.date_to, t.from_time, t.to_time, t.yearly, t.effect
                    FROM closure t LEFT JOIN agenda a ON a.id = t.agenda_id LEFT JOIN location l ON l.id = a.location_id
                    LEFT JOIN clinic k ON k.id = coalesce(t.clinic_id, a.clinic_id)
                    WHERE t.source = 'desk' AND t.lifted_at IS NULL AND t.layer IN ('chain', 'clinic', 'agenda')
                    ORDER BY t.date_from, k.code NULLS FIRST, a.name, t.id""",
    ),
    Sheet(
        "users",
        KINDS["practice_user"],
        (
            Column("email", cells.EMAIL, required=True),
            Column("display_name", cells.TEXT, required=True),
            Column("role", choice("role"), required=True),
            Column("clinics", cells.CODES),
        ),
        match="lower(t.email) = lower(s.email)",
        joins="""
            LEFT JOIN LATERAL (SELECT array_agg(k.id ORDER BY array_position(s.clinics, k.code)) AS ids
                               FROM known_clinic k WHERE k.code = ANY(s.clinics)) k ON true""",
        written={
            "clinic_id": "coalesce(k.ids[1], m.clinic_id, (SELECT min(id) FROM known_clinic))",
            "whole_chain": "k.ids IS NULL",
            "state": "'never_invited'",
        },
        natural="lower(s.email)",
        name="s.display_name",
        living="t.role <> 'patient'",
        references=(
            Reference("email", "m.role = 'patient'", "sheet_user_is_patient"),
            Reference(
                "clinics",
                "EXISTS (SELECT FROM unnest(s.clinics) AS code WHERE code NOT IN (SELECT code FROM known_clinic))",
            ),
            Reference(
                "clinics",
                "coalesce(cardinality(s.clinics), 0) = 0 AND s.role IN ('desk', 'specialist')",
                "sheet_role_needs_clinic",
            ),
        ),
        members=(
            Members(
                "clinics",
                KINDS["practice_user_clinic"],
                "user_id",
                "clinic_id",
                "known_clinic",
                "v.code = w.name AND w.place > 1",
            ),
        ),
        exported="""SELECT t.email, t.display_name, t.role,
                           CASE WHEN t.whole_chain THEN '{}' ELSE array(
                               SELECT k.code FROM clinic k LEFT JOIN app_user_clinic c
                                   ON c.clinic_id = k.id AND c.user_id = t.id
                               WHERE k.id = t.clinic_id OR c.user_id IS NOT NULL
                               ORDER BY k.id <> t.clinic_id, k.code) END AS clinics
                    FROM app_user t WHERE t.role <> 'patient' AND t.state <> 'disabled' AND t.email IS NOT NULL
                    ORDER BY lower(t.email)""",
        numbered=False,
    ),
    Sheet(
        "texts",
        KINDS["practice_text"],
        (
            Column("clinic", cells.CLINIC),
            Column("kind", choice("message_kind"), required=True),
            Column("variant", choice("text_variant"), required=True),
            Column("channel", choice("channel"), required=True),
            Column("language", choice("language"), default="'it'"),
            Column("subject", cells.TEXT),
            Column("body", cells.BODY, required=True),
        ),
        match="""t.clinic_id IS NOT DISTINCT FROM k.id AND t.kind = s.kind AND t.variant = s.variant
                 AND t.channel = s.channel AND t.language = coalesce(s.language, 'it')""",
        joins=_OF_CLINIC,
        written={
            "layer": "CASE WHEN s.clinic IS NULL THEN 'chain' ELSE 'clinic' END",
            "subject": "CASE WHEN s.channel = 'email' THEN s.subject END",
            "retired_at": "CAST(NULL AS timestamptz)",
        },
        natural="concat_ws('/', k.id, s.kind, s.variant, s.channel, s.language)",
        name="concat_ws(' · ', s.clinic, s.kind, s.channel)",
        references=(Reference("clinic", "s.clinic IS NOT NULL AND k.id IS NULL"),),
        check=_text,
        exported="""SELECT k.code AS clinic, t.kind, t.variant, t.channel, t.language, t.subject, t.body
                    FROM message_template t LEFT JOIN clinic k ON k.id = t.clinic_id
                    WHERE t.retired_at IS NULL ORDER BY k.code NULLS FIRST, 2, 3, 4, 5""",
        numbered=False,
    ),
)

BY_KEY = {sheet.key: sheet for sheet in SHEETS}
