"""When something can be booked: agendas, turns, closures."""

from __future__ import annotations

from polydesk_dagster.changes.why import term, why
from polydesk_dagster.sources.practice import cells
from polydesk_dagster.sources.practice.cells import choice
from polydesk_dagster.sources.practice.kinds import KINDS
from polydesk_dagster.sources.practice.sheets.shape import (
    ACTIVE,
    CLINIC,
    NO_CLINIC,
    NO_LOCATION,
    NO_SERVICE,
    NUMBER,
    OF_AGENDA,
    OF_CLINIC,
    OF_LOCATION,
    SERVICE_OF_CLINIC,
    WEEKDAY,
    Column,
    Members,
    Reference,
    Sheet,
    service_codes,
)

SHEETS: tuple[Sheet, ...] = (
    Sheet(
        "agendas",
        KINDS["practice_agenda"],
        (
            NUMBER,
            CLINIC,
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
            ACTIVE,
            Column("valid_from", cells.DAY),
            Column("valid_to", cells.DAY),
        ),
        match="t.clinic_id = k.id AND t.location_id = l.id AND lower(t.name) = lower(s.name)",
        joins=OF_CLINIC
        + OF_LOCATION
        + """
            LEFT JOIN LATERAL (
                SELECT array_agg(DISTINCT p.id) AS ids FROM known_specialist p
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
        natural="l.id || '/' || lower(s.name)",
        name="concat_ws(' · ', s.clinic, s.location, s.name)",
        references=(
            NO_CLINIC,
            NO_LOCATION,
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
            NO_SERVICE,
        ),
        members=(Members("services", KINDS["practice_agenda_service"], "agenda_id", "service_id", *SERVICE_OF_CLINIC),),
        known=("clinic_id", "location_id", "name"),
        exported=f"""SELECT t.id AS number, k.code AS clinic, l.name AS location, t.name,
                            CASE WHEN (SELECT count(*) FROM specialist o
                                       WHERE o.clinic_id = p.clinic_id AND o.deleted_at IS NULL
                                         AND name_key(o.last_name || ' ' || o.first_name)
                                           = name_key(p.last_name || ' ' || p.first_name)) > 1
                                 THEN coalesce(p.fiscal_code, p.last_name || ' ' || p.first_name)
                                 ELSE p.last_name || ' ' || p.first_name END AS doctor,
                            v.code AS service, c.name AS resource,
                            {service_codes("agenda_service", "agenda_id")} AS services, t.slot_minutes, t.capacity,
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
            NUMBER,
            CLINIC,
            Column("location", cells.TEXT),
            Column("agenda", cells.TEXT, required=True),
            Column("weekday", cells.DAYS, required=True),
            Column("starts_at", cells.CLOCK, required=True),
            Column("ends_at", cells.CLOCK, required=True),
            Column("every_weeks", cells.whole(1, 52), default="1"),
            Column("slot_minutes", cells.whole(1, 480)),
            Column("capacity", cells.whole(1, 100)),
            Column("valid_from", cells.DAY, default=":today"),
            Column("valid_to", cells.DAY),
        ),
        match=f"""t.agenda_id = a.ids[1] AND t.weekday = {WEEKDAY} AND t.starts_at = s.starts_at
                  AND (s.valid_from IS NULL AND coalesce(t.valid_to, :today) >= :today OR t.valid_from = s.valid_from)
                  AND t.every_weeks = coalesce(s.every_weeks, t.every_weeks)""",
        joins=OF_CLINIC + OF_AGENDA,
        written={
            "agenda_id": "a.ids[1]",
            "weekday": WEEKDAY,
            "crosses_midnight": "s.ends_at <= s.starts_at",
            "valid_from": "coalesce(s.valid_from, m.valid_from, :today)",
        },
        natural=f"a.ids[1] || concat('/', {WEEKDAY}, '/', s.starts_at, '/', s.every_weeks, '/', s.valid_from)",
        name=why(
            "row_of_turn",
            clinic="s.clinic",
            agenda="s.agenda",
            weekday=term("weekday", "s.weekday"),
            starts="CAST(s.starts_at AS varchar(5))",
        ),
        references=(
            NO_CLINIC,
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
            NUMBER,
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
        joins=OF_CLINIC + OF_AGENDA,
        written={
            "layer": """CASE WHEN s.agenda IS NOT NULL THEN 'agenda' WHEN s.clinic IS NOT NULL THEN 'clinic'
                             ELSE 'chain' END""",
            "clinic_id": "CASE WHEN s.agenda IS NULL THEN k.id END",
            "agenda_id": "a.ids[1]",
            "date_to": "coalesce(s.date_to, s.date_from)",
        },
        natural="""CASE WHEN (s.clinic IS NULL OR k.id IS NOT NULL) AND (s.agenda IS NULL OR a.ids IS NOT NULL)
                        THEN concat_ws('/', k.id, a.ids[1], lower(s.name), s.date_from) END""",
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
)
