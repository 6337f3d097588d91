"""The record of every service's runs: how each ended, its counts and its reasons, told apart by Dagster's run."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.outcome import SHOWN_ROWS, Counts, Outcome, Reason, Report, Table
from polydesk_dagster.values import from_json, mapping_from_json, to_json


def record(
    connection: sa.Connection,
    service: str,
    report: Report,
    *,
    clinic: str | None,
    preview: bool,
    dagster_run: str,
    as_of: datetime,
    started: datetime,
    seconds: float,
) -> None:
    """Keep what a run of ``service`` for ``clinic`` (a code; None is the whole chain) came to."""
    connection.execute(
        sa.text("""
            INSERT INTO service_run (service, clinic_id, preview, dagster_run, outcome, counts, reasons, figures,
                                     tables, plan_id, as_of, started_at, seconds)
            VALUES (:service, (SELECT id FROM clinic WHERE code = :clinic), :preview, :dagster_run, :outcome,
                    CAST(:counts AS jsonb), CAST(:reasons AS jsonb), CAST(:figures AS jsonb), CAST(:tables AS jsonb),
                    :plan_id, :as_of, :started, :seconds)"""),
        {
            "service": service,
            "clinic": clinic,
            "preview": preview,
            "dagster_run": dagster_run,
            "outcome": report.outcome,
            "counts": json.dumps(report.counts.as_dict()),
            "reasons": json.dumps([reason.as_dict() for reason in report.reasons], ensure_ascii=False),
            "figures": json.dumps(to_json(report.figures), ensure_ascii=False),
            "tables": json.dumps([_kept(table) for table in report.tables], ensure_ascii=False),
            "plan_id": report.plan_id,
            "as_of": as_of,
            "started": started,
            "seconds": seconds,
        },
    )


def _kept(table: Table) -> dict[str, object]:
    rows = [[to_json(cell) for cell in row] for row in table.rows[:SHOWN_ROWS]]
    return {"key": table.key, "columns": table.columns, "rows": rows, "total": table.total}


def _table(kept: dict[str, Any]) -> Table:
    """A table as it was kept; before there were keys it had a title."""
    rows = tuple(tuple(map(from_json, row)) for row in kept["rows"])
    return Table(kept.get("key") or kept["title"], tuple(kept["columns"]), rows, kept["total"])


_REPORT = "r.outcome, r.counts, r.reasons, r.figures, r.tables, r.plan_id, r.preview"


def _report(row: Sequence[Any]) -> Report:
    outcome, counts, reasons, figures, tables, plan_id, preview = row
    return Report(
        Outcome(outcome),
        Counts(**counts),
        tuple(map(Reason.from_dict, reasons)),
        mapping_from_json(figures),
        tuple(map(_table, tables)),
        plan_id,
        preview,
    )


def recorded(connection: sa.Connection, dagster_run: str, service: str) -> list[tuple[str | None, Report]]:
    """The reports that the runs of ``service`` inside one Dagster run left, oldest first, each with its clinic; what
    was only a preview counts where the whole run was one."""
    rows = connection.execute(
        sa.text(f"""
            SELECT c.code, {_REPORT}
            FROM service_run r LEFT JOIN clinic c ON c.id = r.clinic_id
            WHERE r.dagster_run = :run AND r.service = :service
              AND r.preview = (SELECT bool_and(preview) FROM service_run
                               WHERE dagster_run = :run AND service = :service)
            ORDER BY r.id"""),
        {"run": dagster_run, "service": service},
    )
    return [(row[0], _report(row[1:])) for row in rows]


def ended(connection: sa.Connection, dagster_runs: Sequence[str], service: str) -> dict[str, set[str]]:
    """By Dagster run those clinics (codes) of which it has said already what ``service`` came to there."""
    found: dict[str, set[str]] = {}
    for run, clinic in connection.execute(
        sa.text("""
            SELECT r.dagster_run, c.code FROM service_run r JOIN clinic c ON c.id = r.clinic_id
            WHERE r.dagster_run = ANY(:runs) AND r.service = :service"""),
        {"runs": list(dagster_runs), "service": service},
    ):
        found.setdefault(run, set()).add(clinic)
    return found


def asked(connection: sa.Connection, dagster_run: str, service: str) -> tuple[str | None, datetime] | None:
    """The clinic (a code; None is the whole chain) that ``service`` worked for inside one Dagster run, and the instant
    that it worked at; None if it did not."""
    row = connection.execute(
        sa.text("""
            SELECT c.code, r.as_of FROM service_run r LEFT JOIN clinic c ON c.id = r.clinic_id
            WHERE r.dagster_run = :run AND r.service = :service ORDER BY r.id DESC LIMIT 1"""),
        {"run": dagster_run, "service": service},
    ).one_or_none()
    return None if row is None else (row.code, row.as_of)


@dataclass(frozen=True, slots=True)
class PastRun:
    """A run of a service as the history shows it; ``clinic`` is a code, None the whole chain."""

    clinic: str | None
    at: datetime
    seconds: float
    dagster_run: str | None
    report: Report


def past(
    connection: sa.Connection, service: str, clinics: Collection[str] | None = None, limit: int = 30
) -> list[PastRun]:
    """The newest runs of ``service``, newest first, previews included; with ``clinics`` (codes) only theirs and those
    of the whole chain."""
    rows = connection.execute(
        sa.text(f"""
            SELECT c.code, r.started_at, r.seconds, r.dagster_run, {_REPORT}
            FROM service_run r LEFT JOIN clinic c ON c.id = r.clinic_id
            WHERE r.service = :service
              AND (CAST(:clinics AS text[]) IS NULL OR c.code IS NULL OR c.code = ANY(:clinics))
            ORDER BY r.started_at DESC, r.id DESC LIMIT :limit"""),
        {"service": service, "clinics": None if clinics is None else sorted(clinics), "limit": limit},
    )
    return [PastRun(row[0], row[1], row[2], row[3], _report(row[4:])) for row in rows]
