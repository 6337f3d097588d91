"""Who works with Polydesk, and how it speaks to patients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polydesk_dagster.clinic.messages.naming import named
from polydesk_dagster.clinic.messages.templates import lint
from polydesk_dagster.sources.practice import cells
from polydesk_dagster.sources.practice.cells import choice
from polydesk_dagster.sources.practice.kinds import KINDS
from polydesk_dagster.sources.practice.sheets.shape import (
    OF_CLINIC,
    Column,
    Members,
    Reference,
    Sheet,
)
from polydesk_dagster.values import Reason


def _text(row: Mapping[str, Any]) -> Reason | None:
    """What forbids a text of a message, if anything does."""
    subject = row.get("subject") if row["channel"] == "email" else None
    if row["channel"] == "email" and not subject:
        return Reason("sheet_no_subject")
    found = lint(row["kind"], row["variant"], row["channel"], subject, row["body"])
    return next((finding.reason for finding in found if finding.error), None)


_UNKNOWN = "WHERE code NOT IN (SELECT code FROM known_clinic)"

SHEETS: tuple[Sheet, ...] = (
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
            Reference("role", "m.role = 'superuser' AND s.role <> 'superuser'", "sheet_superuser_stays"),
            Reference(
                "clinics",
                f"EXISTS (SELECT FROM unnest(s.clinics) AS code {_UNKNOWN})",
                which=f"(SELECT string_agg(code, '; ') FROM unnest(s.clinics) AS code {_UNKNOWN})",
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
        joins=OF_CLINIC,
        written={
            "layer": "CASE WHEN s.clinic IS NULL THEN 'chain' ELSE 'clinic' END",
            "subject": "CASE WHEN s.channel = 'email' THEN s.subject END",
            "retired_at": "CAST(NULL AS timestamptz)",
        },
        natural="""CASE WHEN s.clinic IS NULL OR k.id IS NOT NULL
                        THEN concat_ws('/', k.id, s.kind, s.variant, s.channel, s.language) END""",
        name=named("s", "s.clinic"),
        references=(Reference("clinic", "s.clinic IS NOT NULL AND k.id IS NULL"),),
        check=_text,
        exported="""SELECT k.code AS clinic, t.kind, t.variant, t.channel, t.language, t.subject, t.body
                    FROM message_template t LEFT JOIN clinic k ON k.id = t.clinic_id
                    WHERE t.retired_at IS NULL ORDER BY k.code NULLS FIRST, 2, 3, 4, 5""",
    ),
)
