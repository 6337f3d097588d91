"""What a practice is and offers: clinics, locations, doctors, services and their groups, resources."""

from __future__ import annotations

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
    OF_CLINIC,
    OF_LOCATION,
    SERVICE_OF_CLINIC,
    Column,
    Members,
    Reference,
    Sheet,
    service_codes,
)

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
            ACTIVE,
        ),
        match="t.code = s.code",
        joins="""
            LEFT JOIN LATERAL (
                SELECT min(u.code) AS code, count(DISTINCT u.code) AS several, min(u.region) AS region
                FROM known_place u
                WHERE u.code = upper(s.municipality) OR name_key(u.name) = name_key(s.municipality)) u ON true""",
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
    ),
    Sheet(
        "locations",
        KINDS["practice_location"],
        (
            NUMBER,
            CLINIC,
            Column("name", cells.TEXT, required=True),
            Column("address", cells.TEXT),
            Column("postal_code", cells.CODE),
            Column("municipality_code", cells.CADASTRAL),
            Column("phone", cells.TEXT),
            ACTIVE,
        ),
        match="t.clinic_id = k.id AND lower(t.name) = lower(s.name)",
        joins=OF_CLINIC,
        natural="k.id || '/' || lower(s.name)",
        name="concat_ws(' · ', s.clinic, s.name)",
        references=(NO_CLINIC,),
        known=("clinic_id", "name"),
        exported="""SELECT t.id AS number, k.code AS clinic, t.name, t.address, t.postal_code, t.municipality_code,
                           t.phone, t.active
                    FROM location t JOIN clinic k ON k.id = t.clinic_id ORDER BY k.code, t.name""",
    ),
    Sheet(
        "travel",
        KINDS["practice_travel"],
        (
            NUMBER,
            CLINIC,
            Column("location", cells.TEXT, required=True),
            Column("to_clinic", cells.CLINIC),
            Column("to_location", cells.TEXT, required=True, target="other_location"),
            Column("minutes", cells.whole(0, 480), required=True),
        ),
        match="t.from_location = least(l.id, other.id) AND t.to_location = greatest(l.id, other.id)",
        joins=OF_CLINIC
        + OF_LOCATION
        + """
            LEFT JOIN known_clinic there ON there.code = coalesce(s.to_clinic, s.clinic)
            LEFT JOIN known_location other
                ON other.clinic_id = there.id AND lower(other.name) = lower(s.to_location)""",
        written={"from_location": "least(l.id, other.id)", "to_location": "greatest(l.id, other.id)"},
        natural="CASE WHEN l.id <> other.id THEN concat(least(l.id, other.id), '/', greatest(l.id, other.id)) END",
        name="concat_ws(' · ', s.clinic, s.location, s.to_clinic, s.to_location)",
        references=(
            NO_CLINIC,
            NO_LOCATION,
            Reference("to_clinic", "s.to_clinic IS NOT NULL AND there.id IS NULL"),
            Reference("to_location", "other.id IS NULL"),
            Reference("to_location", "other.id = l.id", "sheet_same_location"),
        ),
        exported="""SELECT t.id AS number, k.code AS clinic, l.name AS location, there.code AS to_clinic,
                           other.name AS to_location, t.minutes
                    FROM travel t JOIN location l ON l.id = t.from_location JOIN clinic k ON k.id = l.clinic_id
                    JOIN location other ON other.id = t.to_location JOIN clinic there ON there.id = other.clinic_id
                    ORDER BY k.code, l.name, there.code, other.name""",
    ),
    Sheet(
        "doctors",
        KINDS["practice_doctor"],
        (
            NUMBER,
            CLINIC,
            Column("title", cells.TEXT),
            Column("last_name", cells.TEXT, required=True),
            Column("first_name", cells.TEXT, required=True),
            Column("fiscal_code", cells.FISCAL_CODE),
            Column("specialties", cells.CODES, default="'{}'"),
            Column("email", cells.EMAIL),
            ACTIVE,
            Column("ends_on", cells.DAY),
        ),
        match="""t.clinic_id = k.id AND t.deleted_at IS NULL
                 AND (t.fiscal_code = s.fiscal_code
                      OR (t.fiscal_code IS NULL OR s.fiscal_code IS NULL)
                         AND name_key(t.last_name) = name_key(s.last_name)
                         AND name_key(t.first_name) = name_key(s.first_name))""",
        joins=OF_CLINIC,
        natural="k.id || '/' || coalesce(s.fiscal_code, lower(s.last_name || '/' || s.first_name))",
        name="concat_ws(' ', s.clinic, '·', s.last_name, s.first_name)",
        living="t.deleted_at IS NULL",
        references=(NO_CLINIC,),
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
            NUMBER,
            CLINIC,
            Column("code", cells.CODE, required=True),
            Column("name", cells.TEXT, required=True, new=True),
            Column("duration_minutes", cells.whole(1, 480), required=True, new=True),
            Column("price", cells.MONEY),
            Column("pause_before_minutes", cells.whole(0, 240), default="0"),
            Column("pause_after_minutes", cells.whole(0, 240), default="0"),
            Column("preparation", cells.LONG),
            Column("preparation_lead_days", cells.whole(0, 60)),
            Column("preparation_last_hours", cells.whole(0, 720)),
            Column("sensitive", cells.YES_NO, default="false"),
            Column("bookable_online", cells.YES_NO, default="false"),
            ACTIVE,
        ),
        match="t.clinic_id = k.id AND t.code = s.code AND t.deleted_at IS NULL",
        joins=OF_CLINIC,
        natural="k.id || '/' || s.code",
        name="concat_ws(' · ', s.clinic, s.code, s.name)",
        living="t.deleted_at IS NULL",
        references=(NO_CLINIC,),
        known=("clinic_id", "code"),
        exported="""SELECT t.id AS number, k.code AS clinic, t.code, t.name, t.duration_minutes, t.price,
                           t.pause_before_minutes, t.pause_after_minutes, t.preparation,
                           t.preparation_lead_days, t.preparation_last_hours, t.sensitive, t.bookable_online, t.active
                    FROM service t JOIN clinic k ON k.id = t.clinic_id
                    WHERE t.deleted_at IS NULL ORDER BY k.code, t.code""",
    ),
    Sheet(
        "groups",
        KINDS["practice_group"],
        (
            NUMBER,
            CLINIC,
            Column("name", cells.TEXT, required=True),
            Column("services", cells.CODES),
        ),
        match="t.clinic_id = k.id AND lower(t.name) = lower(s.name)",
        joins=OF_CLINIC,
        natural="k.id || '/' || lower(s.name)",
        name="concat_ws(' · ', s.clinic, s.name)",
        references=(NO_CLINIC, NO_SERVICE),
        members=(
            Members("services", KINDS["practice_group_service"], "service_group_id", "service_id", *SERVICE_OF_CLINIC),
        ),
        exported=f"""SELECT t.id AS number, k.code AS clinic, t.name,
                            {service_codes("service_group_member", "service_group_id")} AS services
                     FROM service_group t JOIN clinic k ON k.id = t.clinic_id ORDER BY k.code, t.name""",
    ),
    Sheet(
        "resources",
        KINDS["practice_resource"],
        (
            NUMBER,
            CLINIC,
            Column("location", cells.TEXT, required=True),
            Column("kind", choice("resource_kind"), required=True),
            Column("name", cells.TEXT, required=True),
            Column("services", cells.CODES),
            ACTIVE,
        ),
        match="t.clinic_id = k.id AND t.location_id = l.id AND lower(t.name) = lower(s.name)",
        joins=OF_CLINIC + OF_LOCATION,
        written={"location_id": "l.id"},
        natural="l.id || '/' || lower(s.name)",
        name="concat_ws(' · ', s.clinic, s.location, s.name)",
        references=(NO_CLINIC, NO_LOCATION, NO_SERVICE),
        members=(
            Members("services", KINDS["practice_resource_service"], "resource_id", "service_id", *SERVICE_OF_CLINIC),
        ),
        known=("clinic_id", "location_id", "name"),
        exported=f"""SELECT t.id AS number, k.code AS clinic, l.name AS location, t.kind, t.name,
                            {service_codes("service_resource", "resource_id")} AS services, t.active
                     FROM resource t JOIN clinic k ON k.id = t.clinic_id JOIN location l ON l.id = t.location_id
                     ORDER BY k.code, l.name, t.name""",
    ),
)
