"""The engine of plans, shown on two small kinds that are none of its own: a stable and a volatile one."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import audit, plans, registry, show
from polydesk_dagster.changes.kind import Guard, Kind
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.told import teller
from tests import world

SORT_NAME = Kind(
    name="test_sort_name",
    table="specialist",
    key="r.last_name",
    owned=("sort_name",),
    carried={"last_name": "text"},
    guards=(
        Guard(
            "many",
            "SELECT count(*) FROM {rows}",
            2,
        ),
    ),
)
GROUP = Kind(
    name="test_group",
    table="service_group",
    key="r.name",
    fixed=("clinic_id",),
    owned=("name",),
    taken="t.clinic_id = r.clinic_id AND t.name = r.name",
)
HOLD = Kind(
    name="test_hold",
    table="hold",
    key="r.id",
    owned=("state", "ended_at"),
    volatile=True,
    still="t.expires_at <= :as_of",
    after=("DELETE FROM seat WHERE hold_id IN (SELECT id FROM {rows} r WHERE action = 'update')",),
    expires=timedelta(minutes=2),
)
UPPER = """SELECT 'update' AS action, NULL AS finding, 'maiuscole' AS reason, id, last_name,
                  upper(last_name) AS sort_name
           FROM specialist WHERE sort_name IS DISTINCT FROM upper(last_name) ORDER BY id"""
SWEEP = """SELECT 'update' AS action, NULL AS finding, 'scaduto' AS reason, id, 'expired' AS state,
                  CAST(:as_of AS timestamptz) AS ended_at
           FROM hold WHERE state = 'live' AND expires_at <= :as_of"""
LATER = world.AS_OF + timedelta(hours=1)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SORT_NAME", "GROUP", "HOLD"):
        monkeypatch.setitem(registry.WHERE, f"test_{name.lower()}", f"{__name__}:{name}")


def _specialists(connection: sa.Connection, *names: str) -> list[int]:
    clinic = world.clinic(connection)
    return [world.specialist(connection, clinic, last_name=name, first_name="Ada") for name in names]


def _propose(connection: sa.Connection) -> changes.Plan:
    return changes.propose(connection, SORT_NAME, Scope("refresh_sort_names"), UPPER, as_of=world.AS_OF)


def _apply(
    connection: sa.Connection, plan: int, *, as_of: datetime = world.AS_OF, **more: object
) -> changes.plans.Report:
    return changes.apply(connection, plan, as_of=as_of, actor="desk:anna", **more)


def _sort_names(connection: sa.Connection) -> list[str | None]:
    return list(connection.scalars(sa.text("SELECT sort_name FROM specialist ORDER BY id")))


def test_a_plan_is_seen_applied_exactly_and_undone(connection: sa.Connection) -> None:
    _specialists(connection, "Neri", "Verdi")
    plan = _propose(connection)
    assert _sort_names(connection) == [None, None]
    seen = list(show.rows(connection, plan, SORT_NAME))
    assert [(row.key, row.before, row.after) for row in seen] == [
        ("Neri", {"sort_name": None}, {"sort_name": "NERI"}),
        ("Verdi", {"sort_name": None}, {"sort_name": "VERDI"}),
    ]
    report = _apply(connection, plan.id)
    assert (report.outcome, report.counts.updated) == (Outcome.OK, 2)
    assert _sort_names(connection) == ["NERI", "VERDI"]
    again = _propose(connection)
    assert not again.writes
    assert _apply(connection, again.id).outcome is Outcome.NOTHING_TO_DO

    back = changes.undo(connection, plan.id, as_of=LATER, actor="desk:anna")
    assert (back.outcome, back.counts.updated) == (Outcome.OK, 2)
    assert _sort_names(connection) == [None, None]
    assert plans.load(connection, plan.id).state == "undone"
    assert changes.undo(connection, plan.id, as_of=LATER, actor="x").reasons[0].code == "not_undoable"
    assert [row.action for row in connection.execute(sa.text("SELECT action FROM audit ORDER BY id"))] == [
        "apply",
        "undo",
    ]


def test_a_stable_plan_refuses_whole_and_names_what_moved(connection: sa.Connection) -> None:
    first, _ = _specialists(connection, "Neri", "Verdi")
    plan = _propose(connection)
    connection.execute(sa.text("UPDATE specialist SET sort_name = 'altro' WHERE id = :id"), {"id": first})
    report = _apply(connection, plan.id)
    assert report.outcome is Outcome.REFUSED
    assert [(reason.code, "Neri" in teller().reason(reason)) for reason in report.reasons] == [("moved", True)]
    assert _sort_names(connection) == ["altro", None]
    assert plans.load(connection, plan.id).state == "ready"
    assert connection.scalar(sa.text("SELECT count(*) FROM audit")) == 0


def test_undo_leaves_and_names_what_was_edited_later(connection: sa.Connection) -> None:
    first, _ = _specialists(connection, "Neri", "Verdi")
    plan = _propose(connection)
    _apply(connection, plan.id)
    connection.execute(sa.text("UPDATE specialist SET sort_name = 'altro' WHERE id = :id"), {"id": first})
    report = changes.undo(connection, plan.id, as_of=LATER, actor="desk:anna")
    assert (report.outcome, report.counts.updated) == (Outcome.PARTIAL, 1)
    assert [reason.code for reason in report.reasons] == ["changed_since"]
    assert "Neri" in teller().reason(report.reasons[0])
    assert _sort_names(connection) == ["altro", None]


def _set(connection: sa.Connection, specialist: int, sort_name: str) -> None:
    values = {"id": specialist, "name": sort_name}
    connection.execute(sa.text("UPDATE specialist SET sort_name = :name WHERE id = :id"), values)


def test_an_undo_that_takes_nothing_back_leaves_the_plan_to_be_undone(connection: sa.Connection) -> None:
    (only,) = _specialists(connection, "Neri")
    plan = _propose(connection)
    _apply(connection, plan.id)
    _set(connection, only, "altro")
    refused = changes.undo(connection, plan.id, as_of=LATER, actor="desk:anna")
    assert (refused.outcome, refused.counts.changed, refused.reasons[0].code) == (Outcome.REFUSED, 0, "changed_since")
    assert plans.load(connection, plan.id).state == "applied"
    _set(connection, only, "NERI")
    assert changes.undo(connection, plan.id, as_of=LATER, actor="desk:anna").outcome is Outcome.OK
    assert _sort_names(connection) == [None]


def test_what_an_undo_left_is_taken_back_by_a_later_one_and_only_that(connection: sa.Connection) -> None:
    first, second = _specialists(connection, "Neri", "Verdi")
    plan = _propose(connection)
    _apply(connection, plan.id)
    _set(connection, first, "altro")
    assert changes.undo(connection, plan.id, as_of=LATER, actor="desk:anna").outcome is Outcome.PARTIAL
    _set(connection, first, "NERI")
    _set(connection, second, "VERDI")  # typed anew by the desk: no longer the plan's
    rest = changes.undo(connection, plan.id, as_of=LATER, actor="desk:anna")
    assert (rest.outcome, rest.counts.updated, rest.reasons) == (Outcome.OK, 1, ())
    assert _sort_names(connection) == [None, "VERDI"]
    assert plans.load(connection, plan.id).state == "undone"


def test_rows_that_were_altered_are_not_undone(connection: sa.Connection) -> None:
    _specialists(connection, "Neri")
    plan = _propose(connection)
    _apply(connection, plan.id)
    connection.execute(sa.text(f"UPDATE {plan.rows} SET was_sort_name = 'PIPPO'"))
    report = changes.undo(connection, plan.id, as_of=LATER, actor="desk:anna")
    assert (report.outcome, report.reasons[0].code) == (Outcome.REFUSED, "altered_since")
    assert _sort_names(connection) == ["NERI"]


def test_of_two_undos_of_the_same_rows_one_is_refused(connection: sa.Connection) -> None:
    first, _ = _specialists(connection, "Neri", "Verdi")
    plan = _propose(connection)
    _apply(connection, plan.id)
    undos = [changes.undo(connection, plan.id, as_of=LATER, actor="x", preview=True).plan_id or 0 for _ in range(2)]
    _set(connection, first, "altro")
    undos.append(changes.undo(connection, plan.id, as_of=LATER, actor="x", preview=True).plan_id or 0)
    assert _apply(connection, undos[2], as_of=LATER).counts.updated == 1
    _set(connection, first, "NERI")
    late = _apply(connection, undos[1], as_of=LATER)
    assert (late.outcome, teller().reason(late.reasons[0])) == (Outcome.REFUSED, "Verdi: già annullato")
    assert changes.undo(connection, plan.id, as_of=LATER, actor="x").outcome is Outcome.OK
    assert _apply(connection, undos[0], as_of=LATER).reasons[0].code == "not_undoable"


def test_a_refused_plan_counts_nothing_as_done(connection: sa.Connection) -> None:
    _specialists(connection, "Neri", "Verdi", "Bianchi")
    plan = _propose(connection)
    assert plan.counts.updated == 3
    assert not any(_apply(connection, plan.id).counts.as_dict().values())


def test_a_guard_stops_until_a_person_names_it_and_says_why(connection: sa.Connection) -> None:
    _specialists(connection, "Neri", "Verdi", "Bianchi")
    plan = _propose(connection)
    assert [guard.name for guard in plan.failed_guards] == ["many"]
    stopped = _apply(connection, plan.id)
    assert [reason.code for reason in stopped.reasons] == ["guard", "what_to_do"]
    assert f"polydesk plan apply {plan.id} --past-guard many --reason '…'" in teller().reason(stopped.reasons[1])
    assert "spunta il controllo, scrivi perché e applica" in teller(page=True).reason(stopped.reasons[1])
    assert _apply(connection, plan.id, past_guards=["many"]).reasons[0].code == "reason_missing"
    (mistyped,) = _apply(connection, plan.id, past_guards=["many", "manny"], reason="visto con Anna").reasons
    assert teller().reason(mistyped) == "Nessun controllo si chiama così: manny. Oltre questi si può passare: many."
    report = _apply(connection, plan.id, past_guards=["many"], reason="visto con Anna")
    assert report.outcome is Outcome.OK
    line = connection.execute(sa.text("SELECT actor, detail FROM audit")).one()
    assert (line.actor, line.detail["past_guards"], line.detail["reason"]) == ("desk:anna", ["many"], "visto con Anna")


def test_altered_expired_used_up_and_unknown_plans_are_refused(connection: sa.Connection) -> None:
    _specialists(connection, "Neri")
    plan = _propose(connection)
    connection.execute(sa.text(f"UPDATE {plan.rows} SET sort_name = 'PIPPO'"))
    assert _apply(connection, plan.id).reasons[0].code == "altered"
    connection.execute(sa.text("UPDATE plan SET expires_at = now() - interval '1 second'"))
    assert _apply(connection, plan.id).reasons[0].code == "plan_expired"
    plan = _propose(connection)
    _apply(connection, plan.id)
    assert _apply(connection, plan.id).reasons[0].code == "plan_applied"
    assert _apply(connection, 999).reasons[0].code == "unknown_plan"


def test_what_is_created_is_taken_back_unless_in_use(connection: sa.Connection) -> None:
    clinic = world.clinic(connection)
    service = world.service(connection, clinic)
    query = f"""SELECT 'create' AS action, NULL AS finding, NULL AS reason, NULL AS id, {clinic} AS clinic_id, name
                FROM (VALUES ('Cuore'), ('Occhi')) v(name)"""
    plan = changes.propose(connection, GROUP, Scope("groups", "BO01", clinic), query, as_of=world.AS_OF)
    rival = changes.propose(connection, GROUP, Scope("groups", "BO01", clinic), query, as_of=world.AS_OF)
    assert _apply(connection, plan.id).counts.created == 2
    refused = _apply(connection, rival.id)
    assert (refused.outcome, {reason.code for reason in refused.reasons}) == (Outcome.REFUSED, {"exists_already"})
    connection.execute(
        sa.text("""INSERT INTO service_group_member (clinic_id, service_group_id, service_id)
                   SELECT clinic_id, id, :service FROM service_group WHERE name = 'Occhi'"""),
        {"service": service},
    )
    report = changes.undo(connection, plan.id, as_of=LATER, actor="desk:anna")
    assert (report.outcome, report.counts.retired) == (Outcome.PARTIAL, 1)
    assert teller().reason(report.reasons[0]) == "Occhi: in uso: service_group_member"
    assert list(connection.scalars(sa.text("SELECT name FROM service_group"))) == ["Occhi"]


def test_a_volatile_plan_skips_what_changed_and_touches_nothing_else(connection: sa.Connection) -> None:
    practice = world.practice(connection)
    slots = [world.slot(connection, practice.agenda, world.AS_OF + timedelta(hours=hour)) for hour in (1, 2, 3)]
    holds = [world.hold(connection, practice.clinic, slot) for slot in slots]
    later = world.AS_OF + timedelta(hours=1)
    connection.execute(
        sa.text("UPDATE hold SET expires_at = created_at + interval '30 minutes' WHERE id = :i"), {"i": holds[2]}
    )
    plan = changes.propose(connection, HOLD, Scope("release_expired_holds"), SWEEP, as_of=later)
    assert plan.writes == 3
    connection.execute(
        sa.text("UPDATE hold SET state = 'released', ended_at = :now WHERE id = :id"), {"now": later, "id": holds[0]}
    )
    report = changes.apply(connection, plan.id, as_of=later, actor="dagster")
    assert (report.counts.updated, report.counts.skipped) == (2, 1)
    assert [reason.code for reason in report.reasons] == ["moved"]
    assert list(connection.scalars(sa.text("SELECT state FROM hold ORDER BY id"))) == ["released", "expired", "expired"]
    assert connection.scalar(sa.text("SELECT count(*) FROM seat")) == 1


def test_the_audit_trail_shows_tampering(connection: sa.Connection) -> None:
    for number in range(4):
        audit.append(
            connection, as_of=world.AS_OF, actor="desk:anna", action="apply", service="s", detail={"n": number}
        )
    assert audit.verify(connection) == []
    with pytest.raises(sa.exc.ProgrammingError, match="append-only"), connection.begin_nested():
        connection.execute(sa.text("DELETE FROM audit"))
    with pytest.raises(sa.exc.ProgrammingError, match="append-only"), connection.begin_nested():
        connection.execute(sa.text("DELETE FROM audit_head"))
    connection.execute(sa.text("ALTER TABLE audit DISABLE TRIGGER USER"))
    connection.execute(sa.text("ALTER TABLE audit_head DISABLE TRIGGER USER"))
    with connection.begin_nested() as altered:
        connection.execute(sa.text("UPDATE audit SET actor = 'nessuno' WHERE id = 2"))
        assert audit.verify(connection) == [audit.Fault(2, "altered")]
        altered.rollback()
    with connection.begin_nested() as cut:
        connection.execute(sa.text("DELETE FROM audit WHERE id = 4"))
        assert [fault.fault for fault in audit.verify(connection)] == ["cut off"]
        cut.rollback()
    with connection.begin_nested() as emptied:
        connection.execute(sa.text("DELETE FROM audit_head"))
        assert audit.verify(connection) == [audit.Fault(4, "cut off")]
        connection.execute(sa.text("DELETE FROM audit"))
        assert audit.verify(connection) == [audit.Fault(0, "cut off")]
        emptied.rollback()
    connection.execute(sa.text("DELETE FROM audit WHERE id = 2"))
    assert audit.verify(connection) == [audit.Fault(3, "unlinked")]


def test_rows_of_old_plans_are_dropped_and_their_heads_stay(connection: sa.Connection) -> None:
    _specialists(connection, "Neri")
    old = _propose(connection)
    connection.execute(sa.text("UPDATE plan SET expires_at = now() - interval '8 days'"))
    _propose(connection)
    assert not plans.load(connection, old.id).rows_kept
    assert connection.scalar(sa.text("SELECT to_regclass(:name)"), {"name": old.rows}) is None


def test_the_rows_of_a_plans_undos_are_dropped_together(connection: sa.Connection) -> None:
    first, second, _ = _specialists(connection, "Neri", "Verdi", "Bianchi")
    plan = _propose(connection)
    _apply(connection, plan.id, past_guards=["many"], reason="visto con Anna")
    undos = []
    for edited in ([first, second], [second]):
        for specialist in edited:
            _set(connection, specialist, "altro")
        undos.append(changes.undo(connection, plan.id, as_of=LATER, actor="desk:anna").plan_id or 0)
        _set(connection, first, "NERI")
    connection.execute(sa.text("UPDATE plan SET expires_at = now() - interval '1 hour'"))
    old = sa.text("UPDATE plan SET applied_at = now() - interval '40 days' WHERE id = ANY(:ids)")
    connection.execute(old, {"ids": [plan.id, undos[0]]})
    assert plans.prune(connection) == 0
    connection.execute(old, {"ids": undos})
    assert plans.prune(connection) == 3
