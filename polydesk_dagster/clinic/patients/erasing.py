"""A patient's data taken away at her request (art. 17 GDPR): a plan over the registry of personal columns.

Its rows are data sets with how many rows each loses, so that whoever looks at it sees no patient. Applied, it does that
and nothing else: where a data set has changed since, it is refused. It is never taken back; nothing of what went is
kept, neither in the plan nor in the audit trail, which hold who asked for it and why.
"""

from __future__ import annotations

import json
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import Guard, Kind, Scope, plan_rows, plans, propose
from polydesk_dagster.changes.why import why
from polydesk_dagster.clinic.patients.personal import REGISTRY, Deed, Personal, known_as
from polydesk_dagster.outcome import Report, Table
from polydesk_dagster.values import Term

SERVICE = "import_patients"
"""Nobody is erased while the import adds people, and the other way round."""

PLAN_ROWS = "plan_rows"
"""The rows of imports that named her: not of one table, so not of the registry."""

_ERASED = tuple(each for each in REGISTRY if each.deed is not Deed.KEEP)


def _count(each: Personal) -> str:
    return f"(SELECT count(*) FROM {each.table} t WHERE {each.due})"


_ALL = " + ".join(map(_count, _ERASED))

_MOVED = f"""CASE r.dataset
    WHEN 'person' THEN CASE WHEN {_ALL} <> r.total THEN 'edited_since' END
    {
    " ".join(
        f"WHEN '{each.key}' THEN CASE WHEN {_count(each)} <> r.rows THEN 'edited_since' END"
        for each in _ERASED
        if each.key != "person"
    )
} END"""


def _term(domain: str, code: str) -> str:
    return f"jsonb_build_object('domain', '{domain}', 'term', {code})"


_PROPOSED = f"""
    WITH counted AS MATERIALIZED ({
    " UNION ALL ".join(
        f"SELECT {place} AS place, '{each.key}' AS dataset, '{each.deed}' AS deed, {_count(each)} AS rows"
        for place, each in enumerate(_ERASED)
    )
}
    ), found AS (
        SELECT place, dataset, deed, rows, sum(rows) OVER () AS total FROM counted
        UNION ALL SELECT 1000, '{PLAN_ROWS}', '{Deed.DELETE}', CAST(:plan_rows AS bigint), NULL
    )
    SELECT 'create' AS action, CAST(NULL AS text) AS finding,
           {why("erases", what=_term("personal", "dataset"), deed=_term("deed", "deed"))} AS reason,
           CAST(NULL AS bigint) AS id, CAST(:patient AS bigint) AS patient_id, dataset, deed, rows,
           :as_of AS erased_at, total
    FROM found WHERE rows > 0 ORDER BY place"""


def erase(connection: sa.Connection, rows: str, as_of: datetime) -> Report | None:
    """What applying the plan does, in its transaction."""
    found = connection.execute(sa.text(f"SELECT patient_id, dataset FROM {rows} r WHERE r.action = 'create'")).all()
    if not found:
        return None
    patient, wanted = found[0].patient_id, {row.dataset for row in found}
    about = {"patient": patient, "as_of": as_of}
    if PLAN_ROWS in wanted:
        _forget_in_plans(connection, patient)
    for each in (each for each in _ERASED if each.key in wanted):
        for statement in each.first:
            connection.execute(sa.text(statement), about)
        if each.deed is Deed.DELETE:
            connection.execute(sa.text(f"DELETE FROM {each.table} t WHERE {each.due}"), about)
        else:
            assigned = ", ".join(f"{column} = {value}" for column, value in each.blank.items())
            connection.execute(sa.text(f"UPDATE {each.table} t SET {assigned} WHERE {each.due}"), about)
    return None


ERASURE = Kind(
    name="erasure",
    table="erasure",
    key="r.dataset || ' ' || r.patient_id",
    fixed=("patient_id", "dataset", "deed", "rows", "erased_at"),
    carried={"total": "bigint"},
    moved=_MOVED,
    whole=True,
    final="erasure_is_final",
    guards=(
        Guard("erasure_is_final", "SELECT count(*) FROM {rows}", 0),
        Guard(
            "booked_ahead",
            """SELECT count(*) FROM appointment a WHERE a.patient_id = :patient AND a.starts_at > :as_of
               AND a.status IN ('unverified', 'booked', 'accepted')""",
            0,
        ),
        Guard(
            "payment_open", "SELECT count(*) FROM payment_case WHERE patient_id = :patient AND resolved_at IS NULL", 0
        ),
        Guard("looks_after", "SELECT count(*) FROM patient WHERE guardian_id = :patient", 0),
    ),
    before=("SELECT FROM patient p WHERE p.id IN (SELECT r.patient_id FROM {rows} r) FOR UPDATE",),
    effect=erase,
)


def plan_erasure(connection: sa.Connection, patient: int, as_of: datetime) -> Report:
    """Store the plan that erases ``patient``, and show it: what goes, what stays and by which rule.

    Raises:
        LookupError: there is no such patient.
    """
    if not connection.scalar(sa.text("SELECT count(*) FROM patient WHERE id = :id"), {"id": patient}):
        raise LookupError(f"patient {patient}")
    named = sum(count for _, count in _naming(connection, patient))
    scope = Scope(SERVICE, parameters={"patient": patient, "plan_rows": named})
    plan = propose(connection, ERASURE, scope, _PROPOSED, as_of=as_of)
    shown = changes.preview(connection, plan, ERASURE)
    tables = (*_what(connection, plan), *kept(connection, patient))
    return Report(shown.outcome, shown.counts, shown.reasons, shown.figures, tables, plan.id, preview=True)


def _what(connection: sa.Connection, plan: plans.Plan) -> tuple[Table, ...]:
    if not plan.rows_kept:
        return ()
    found = connection.execute(sa.text(f"SELECT dataset, deed, rows FROM {plan.rows} ORDER BY ordinal")).all()
    cells = tuple((Term("personal", row.dataset), row.rows, Term("deed", row.deed)) for row in found)
    return (Table("to_erase", ("dataset", "rows", "done_with_it"), cells, len(cells)),)


def kept(connection: sa.Connection, patient: int) -> tuple[Table, ...]:
    """What stays of a patient whatever she asks for, and why."""
    staying = tuple(each for each in REGISTRY if each.law is not None)
    counted = connection.execute(
        sa.text(
            " UNION ALL ".join(
                f"SELECT {place} AS place, count(*) AS rows FROM {each.table} t WHERE {each.whose}"
                for place, each in enumerate(staying)
            )
        ),
        {"patient": patient},
    )
    cells = tuple(
        (Term("personal", staying[row.place].key), row.rows, Term("kept_by_law", staying[row.place].law or ""))
        for row in sorted(counted, key=lambda row: row.place)
        if row.rows
    )
    return (Table("kept_by_law", ("dataset", "rows", "why"), cells, len(cells)),)


def _naming(connection: sa.Connection, patient: int) -> list[tuple[plans.Plan, int]]:
    """The plans that hold her as a record of a source, each with how many of its rows are hers."""
    found = connection.execute(
        sa.text("SELECT id FROM plan WHERE kind = 'patient' AND rows_kept ORDER BY id FOR UPDATE")
    ).scalars()
    held = [plans.load(connection, plan) for plan in found]
    counted = [
        (plan, connection.scalar(sa.text(f"SELECT count(*) FROM {plan.rows} r WHERE {_HERS}"), _of(plan, patient)) or 0)
        for plan in held
    ]
    return [(plan, count) for plan, count in counted if count]


_HERS = f"""(r.id = :patient OR {known_as("r.external_id", "CAST(:clinic AS bigint)")}
             OR r.fiscal_code = (SELECT p.fiscal_code FROM patient p WHERE p.id = :patient))"""


def _of(plan: plans.Plan, patient: int) -> dict[str, object]:
    return {"patient": patient, "clinic": plan.clinic_id}


def _forget_in_plans(connection: sa.Connection, patient: int) -> None:
    """The other rows of a plan that named her can still be applied and taken back: it is sealed anew without her."""
    for plan, _ in _naming(connection, patient):
        connection.execute(sa.text(f"DELETE FROM {plan.rows} r WHERE {_HERS}"), _of(plan, patient))
        seal = plans.fingerprint(connection, plan.id, plan.kind, plan.within, plan.snapshot)
        tally = {**plan.tally, **dict.fromkeys(("create", "update", "delete", "link", "conflict"), 0)}
        given = {"id": plan.id, "seal": seal, "tally": json.dumps({**tally, **plan_rows.tally(connection, plan.id)})}
        update = "UPDATE plan SET fingerprint = :seal, tally = CAST(:tally AS jsonb) WHERE id = :id"
        connection.execute(sa.text(update), given)
