"""The dangerous buttons: nothing without a plan, a reason and the phrase; and what each leaves behind."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta

import pytest
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.clinic.bookings import answers, confirming, emergency, holds, releasing, sweeping
from polydesk_dagster.clinic.bookings.answers import Answer
from polydesk_dagster.clinic.bookings.confirming import Booking
from polydesk_dagster.clinic.bookings.emergency import Press
from polydesk_dagster.clinic.upkeep import recovery
from polydesk_dagster.outcome import WHAT_TO_DO, Outcome, Reason, Report
from polydesk_dagster.told import teller
from polydesk_dagster.values import Duration
from tests import world
from tests.waiting import PATIENCE
from tests.world import AS_OF, rome

MINUTE = timedelta(minutes=1)
WHY = "sala d'attesa bloccata da prove"


@pytest.fixture
def practice(engine: sa.Engine) -> world.Practice:
    with engine.begin() as connection:
        return world.practice(connection)


def place(engine: sa.Engine, practice: world.Practice, *visitors: str) -> None:
    """A live hold for each visitor, on a slot of its own; the token is made of the name."""
    with engine.begin() as connection:
        for number, who in enumerate(visitors):
            slot = world.slot(connection, practice.agenda, rome("2026-03-11") + number * timedelta(minutes=30))
            assert holds.place(
                connection,
                slot_id=slot,
                service_id=world.offered(connection, slot),
                token=f"token {who}",
                visitor=who,
                as_of=AS_OF,
            ).done


def press(
    engine: sa.Engine, given: Press, *, preview: bool = False, after: timedelta = MINUTE, clinic: str | None = None
) -> Report:
    with engine.begin() as connection:
        typed = given if preview or given.looks_only else world.typed(connection, given, clinic)
        return releasing.release_all(connection, AS_OF + after, typed, clinic=clinic, preview=preview)


def confirm(engine: sa.Engine, practice: world.Practice, who: str, after: timedelta = 2 * MINUTE) -> answers.Reply:
    with engine.begin() as connection:
        booking = Booking(practice.service, practice.patient)
        return confirming.confirm(connection, token=f"token {who}", booking=booking, as_of=AS_OF + after)


def test_release_all_shows_who_would_lose_what(engine: sa.Engine, practice: world.Practice) -> None:
    place(engine, practice, "ada", "bice", "cleo")
    with engine.begin() as connection:
        confirming.begin_confirming(connection, token="token cleo", as_of=AS_OF)
    report = press(engine, Press(), after=MINUTE)
    assert report.tables[0].rows == (("BO01", 2, 0, 1, Duration(60), 2),)
    todo = report.figures[WHAT_TO_DO]
    assert isinstance(todo, Reason)
    assert re.fullmatch("LIBERA 2 [a-z]{6}", str(todo.values["phrase"]))
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM hold WHERE ended_at IS NULL")) == 3


def test_what_is_released_leaves_a_tombstone_and_payments_stay(engine: sa.Engine, practice: world.Practice) -> None:
    place(engine, practice, "ada", "bice", "cleo")
    with engine.begin() as connection:
        confirming.begin_confirming(connection, token="token cleo", as_of=AS_OF)
    press(engine, Press(), preview=True)
    report = press(engine, Press(WHY, "LIBERA 2", "desk:anna"))
    assert (report.outcome, report.counts.updated) == (Outcome.OK, 2)
    late = confirm(engine, practice, "ada")
    assert late.answer is Answer.REVOKED
    assert "non è più riservato" in teller("it").text(f"answer.hold.{late.answer}")
    assert confirm(engine, practice, "cleo").answer is Answer.CONFIRMED
    with engine.connect() as connection:
        line = connection.execute(sa.text("SELECT actor, service, detail FROM audit")).one()
        assert connection.scalar(sa.text("SELECT count(*) FROM seat WHERE hold_id IS NOT NULL")) == 0
    assert (line.actor, line.service, line.detail["reason"]) == ("desk:anna", "release_all_holds", WHY)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (Press("breve", "LIBERA 1"), "reason_missing"),
        (Press("", "LIBERA 1"), "reason_missing"),
        (Press(WHY, ""), "wrong_phrase"),
        (Press(WHY, "LIBERA 2"), "wrong_phrase"),
        (Press(WHY, "libera 1"), "wrong_phrase"),
        (Press(WHY, "LIBERA 1", plan_id=999), "no_plan"),
    ],
)
def test_the_gate_stays_shut(engine: sa.Engine, practice: world.Practice, given: Press, code: str) -> None:
    place(engine, practice, "ada")
    press(engine, Press(), preview=True)
    report = press(engine, given)
    assert (report.outcome, report.reasons[0].code) == (Outcome.REFUSED, code)
    assert "LIBERA" not in teller("it").reason(report.reasons[0]), "what is to be typed stands in the preview alone"
    assert confirm(engine, practice, "ada").answer is Answer.CONFIRMED


def test_three_wrong_phrases_void_the_plan_and_a_new_look_draws_another_word(
    engine: sa.Engine, practice: world.Practice
) -> None:
    place(engine, practice, "ada")
    press(engine, Press(), preview=True)
    wrong = [press(engine, Press(WHY, f"LIBERA {count}")).reasons[0] for count in (2, 3, 4)]
    assert [reason.values.get("left") for reason in wrong] == [2, 1, None]
    assert [reason.code for reason in wrong] == ["wrong_phrase", "wrong_phrase", "plan_void"]
    assert press(engine, Press(WHY, "LIBERA 1")).reasons[0].code == "plan_void"
    press(engine, Press(), preview=True)
    assert press(engine, Press(WHY, "LIBERA 1")).outcome is Outcome.OK
    with engine.connect() as connection:
        assert len(set(connection.scalars(sa.text("SELECT word FROM press_word")))) == 2


def test_wrong_phrases_side_by_side_are_all_counted(engine: sa.Engine, practice: world.Practice) -> None:
    place(engine, practice, "ada")
    plan = press(engine, Press(), preview=True).plan_id
    with ThreadPoolExecutor(6) as pool:
        tried = pool.map(lambda n: press(engine, Press(WHY, f"LIBERA 1 parola{n}", plan_id=plan)), range(12))
        codes = sorted(report.reasons[0].code for report in tried)
    assert codes == ["plan_void"] * 10 + ["wrong_phrase"] * 2


def test_nothing_is_applied_that_was_not_looked_at(engine: sa.Engine, practice: world.Practice) -> None:
    place(engine, practice, "ada")
    assert press(engine, Press(WHY, "LIBERA 1")).reasons[0].code == "plan_not_named"
    press(engine, Press(), preview=True)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE plan SET expires_at = now()"))
    assert press(engine, Press(WHY, "LIBERA 1")).reasons[0].code == "no_plan"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_plan_that_was_looked_at_stands_however_many_came_after(
    engine: sa.Engine, practice: world.Practice, elsewhere: bool
) -> None:
    place(engine, practice, "ada")
    with engine.begin() as connection:
        world.practice(connection, "RE01")
    looked_at = press(engine, Press(), clinic="BO01").plan_id
    for _ in range(21):
        press(engine, Press(), clinic="RE01" if elsewhere else "BO01")
    given = Press(WHY, "LIBERA 1", plan_id=looked_at)
    report = press(engine, given, clinic="BO01")
    assert (report.outcome, report.plan_id) == (Outcome.OK, looked_at)


def test_a_hold_that_came_after_the_preview_is_left_alone(engine: sa.Engine, practice: world.Practice) -> None:
    place(engine, practice, "ada", "bice")
    press(engine, Press(), preview=True)
    assert confirm(engine, practice, "ada").answer is Answer.CONFIRMED
    with engine.begin() as connection:
        slot = world.slot(connection, practice.agenda, rome("2026-03-11", "12:00"))
        holds.place(
            connection,
            slot_id=slot,
            service_id=world.offered(connection, slot),
            token="token dora",
            visitor="dora",
            as_of=AS_OF,
        )
    report = press(engine, Press(WHY, "LIBERA 2"))
    assert (report.counts.updated, report.counts.skipped) == (1, 1)
    assert confirm(engine, practice, "dora").answer is Answer.CONFIRMED
    assert confirm(engine, practice, "bice").answer is Answer.REVOKED


def test_the_button_rests_between_two_uses(
    engine: sa.Engine, practice: world.Practice, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(engine, practice, "ada")
    press(engine, Press(), preview=True)
    assert press(engine, Press(WHY, "LIBERA 1")).outcome is Outcome.OK
    with engine.begin() as connection:
        slot = world.slot(connection, practice.agenda, rome("2026-03-11", "12:00"))
        holds.place(
            connection,
            slot_id=slot,
            service_id=world.offered(connection, slot),
            token="token bice",
            visitor="bice",
            as_of=AS_OF,
        )
    press(engine, Press(), preview=True)
    stopped = press(engine, Press(WHY, "LIBERA 1"), after=5 * MINUTE).reasons[0]
    assert (stopped.code, "ancora 10 minuti" in teller("it").reason(stopped)) == ("too_soon", True)
    monkeypatch.setattr(emergency, "PAUSE", timedelta(0))
    assert press(engine, Press(WHY, "LIBERA 1"), after=5 * MINUTE).outcome is Outcome.OK


@pytest.mark.parametrize(("first", "second"), [("BO01", None), (None, "BO01")])
def test_one_clinic_and_the_whole_chain_are_the_same_button(
    engine: sa.Engine, practice: world.Practice, first: str | None, second: str | None
) -> None:
    place(engine, practice, "ada")
    press(engine, Press(), clinic=first)
    assert press(engine, Press(WHY, "LIBERA 1"), clinic=first).outcome is Outcome.OK
    with engine.begin() as connection:
        elsewhere = world.practice(connection, "RE01")
        for number, agenda in enumerate((practice.agenda, elsewhere.agenda)):
            slot = world.slot(connection, agenda, rome("2026-03-11", "12:00"))
            holds.place(
                connection,
                slot_id=slot,
                service_id=world.offered(connection, slot),
                token=f"t{number}",
                visitor=f"v{number}",
                as_of=AS_OF,
            )
    press(engine, Press(), clinic=second)
    phrase = "LIBERA 2" if second is None else "LIBERA 1"
    assert press(engine, Press(WHY, phrase), clinic=second).reasons[0].code == "too_soon"
    if first is not None:
        press(engine, Press(), clinic="RE01")
        assert press(engine, Press(WHY, "LIBERA 1"), clinic="RE01").outcome is Outcome.OK


def test_two_presses_in_one_instant_are_one_after_the_other(engine: sa.Engine, practice: world.Practice) -> None:
    place(engine, practice, "ada")
    press(engine, Press(), clinic="BO01")
    press(engine, Press())
    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as connection:
            given = Press(WHY, "LIBERA 1")
            typed = world.typed(connection, given, "BO01")
            first = releasing.release_all(connection, AS_OF + MINUTE, typed, clinic="BO01")
            second = pool.submit(press, engine, given)
            with pytest.raises(TimeoutError):
                second.result(timeout=1)
        assert first.outcome is Outcome.OK
        assert second.result(timeout=PATIENCE).reasons[0].code == "too_soon"


def test_the_pause_goes_by_the_clock_and_not_by_the_instant_of_the_press(
    engine: sa.Engine, practice: world.Practice, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(engine, practice, "ada")
    far = timedelta(days=3650)
    press(engine, Press(), after=far)
    assert press(engine, Press(WHY, "LIBERA 1")).reasons[0].code == "plan_ahead", "a plan for later is not for now"
    assert press(engine, Press(WHY, "LIBERA 1"), after=far).outcome is Outcome.OK
    with engine.begin() as connection:
        slot = world.slot(connection, practice.agenda, rome("2026-03-11", "12:00"))
        holds.place(
            connection,
            slot_id=slot,
            service_id=world.offered(connection, slot),
            token="token bice",
            visitor="bice",
            as_of=AS_OF,
        )
    press(engine, Press())
    assert press(engine, Press(WHY, "LIBERA 1")).reasons[0].code == "too_soon"
    monkeypatch.setattr(emergency, "PAUSE", timedelta(0))
    assert press(engine, Press(WHY, "LIBERA 1")).outcome is Outcome.OK, "ten years would be a long pause"


def test_a_hold_that_expires_after_the_preview_is_left_to_the_sweeper(
    engine: sa.Engine, practice: world.Practice
) -> None:
    place(engine, practice, "ada", "bice")
    with engine.begin() as connection:
        holds.renew(connection, token="token bice", as_of=AS_OF + 5 * MINUTE)
    press(engine, Press(), after=9 * MINUTE)
    report = press(engine, Press(WHY, "LIBERA 2"), after=11 * MINUTE)
    assert (report.counts.updated, report.counts.skipped) == (1, 1)
    assert confirm(engine, practice, "ada", after=11 * MINUTE).answer is Answer.EXPIRED
    assert confirm(engine, practice, "bice", after=11 * MINUTE).answer is Answer.REVOKED
    with engine.connect() as connection:
        ended = connection.scalars(sa.text("SELECT ended_at FROM hold WHERE ended_at IS NOT NULL")).all()
    assert ended == [AS_OF + 11 * MINUTE], "when it was pressed, not when it was looked at"


def test_the_seat_of_an_expired_hold_exposes_nobody(engine: sa.Engine, practice: world.Practice) -> None:
    with engine.begin() as connection:
        slot = world.slot(connection, practice.agenda, rome("2026-03-11"), capacity=2)
        for who, at in (("ada", AS_OF), ("bice", AS_OF + 9 * MINUTE)):
            holds.place(
                connection, slot_id=slot, service_id=world.offered(connection, slot), token=who, visitor=who, as_of=at
            )
    report = press(engine, Press(), after=11 * MINUTE)
    assert report.figures["visitors_who_may_lose"] == 0


def test_an_empty_plan_asks_for_no_phrase(engine: sa.Engine, practice: world.Practice) -> None:
    press(engine, Press())
    report = press(engine, Press(WHY, "LIBERA 1"))
    assert (report.outcome, report.reasons[0].code) == (Outcome.NOTHING_TO_DO, "empty_plan")
    assert "LIBERA" not in teller("it").reason(report.reasons[0])


def test_what_has_ended_cannot_be_undone_into_an_overbooking(engine: sa.Engine, practice: world.Practice) -> None:
    place(engine, practice, "ada")
    press(engine, Press(), preview=True)
    plan = press(engine, Press(WHY, "LIBERA 1")).plan_id
    assert plan is not None
    with engine.begin() as connection:
        report = changes.undo(connection, plan, as_of=AS_OF + 2 * MINUTE, actor="desk:anna")
    assert (report.outcome, report.reasons[0].code) == (Outcome.REFUSED, "final")
    assert "non torna a chi lo aveva" in teller("it").reason(report.reasons[0])
    assert confirm(engine, practice, "ada").answer is Answer.REVOKED


def test_the_sweeper_ends_the_expired_and_lists_payments_to_check(engine: sa.Engine, practice: world.Practice) -> None:
    place(engine, practice, "ada", "bice", "cleo")
    with engine.begin() as connection:
        paying = confirming.begin_confirming(connection, token="token cleo", as_of=AS_OF).hold_id
        holds.renew(connection, token="token bice", as_of=AS_OF + 5 * MINUTE)
    with engine.begin() as connection:
        assert sweeping.nothing_expired(connection, AS_OF + MINUTE)
        assert sweeping.nothing_expired(connection, AS_OF + 3 * MINUTE) is None, "a payment is stuck"
        report = sweeping.release_expired(connection, AS_OF + 11 * MINUTE)
    assert (report.outcome, report.counts.updated, report.counts.waiting) == (Outcome.PARTIAL, 1, 1)
    assert any(f"blocco {paying}" in teller("it").value(row[-1]) for row in report.tables[0].rows)
    assert confirm(engine, practice, "ada").answer is Answer.EXPIRED
    with engine.begin() as connection:
        again = sweeping.release_expired(connection, AS_OF + 12 * MINUTE)
        assert again.outcome is Outcome.NOTHING_TO_DO
        assert "BO01" in teller("it").reason(again.reasons[0])
        assert f"blocco {paying}: pagamento in corso da 12 minuti" in teller("it").reason(again.reasons[0])
        assert sweeping.nothing_expired(connection, AS_OF + 12 * MINUTE) is None, "a person still has to look"
        settled = sweeping.release_expired(connection, AS_OF + 13 * MINUTE, unpaid=[paying or 0])
    assert settled.counts.updated == 1
    assert confirm(engine, practice, "cleo").answer is Answer.RELEASED


@pytest.mark.parametrize(
    ("number", "why"),
    [(0, "da troppo poco"), (1, "non ha un pagamento in corso"), (999, "non esiste")],
    ids=["in its grace", "no payment", "unknown"],
)
def test_only_a_payment_that_is_stuck_can_be_called_unpaid(
    engine: sa.Engine, practice: world.Practice, number: int, why: str
) -> None:
    place(engine, practice, "ada", "bice", "cleo")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE hold SET expires_at = :at WHERE id = 3"), {"at": AS_OF + MINUTE})
        ids = connection.scalars(sa.text("SELECT id FROM hold ORDER BY id")).all()
        confirming.begin_confirming(connection, token="token ada", as_of=AS_OF + MINUTE)
    named = ids[number] if number < len(ids) else number
    with engine.begin() as connection:
        report = sweeping.release_expired(connection, AS_OF + 2 * MINUTE, unpaid=[named])
    assert report.outcome is Outcome.REFUSED
    assert f"blocco {named} " in teller("it").reason(report.reasons[0])
    assert why in teller("it").reason(report.reasons[0])
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM hold WHERE ended_at IS NULL")) == 3


def delete_service(connection: sa.Connection, service: int, price: str = "valid_to") -> None:
    """As the desk deletes: the mark, and its open prices closed on that day."""
    connection.execute(
        sa.text("""UPDATE service SET deleted_at = :at, active = false WHERE id = :id"""),
        {"at": AS_OF - timedelta(days=2), "id": service},
    )
    connection.execute(
        sa.text(f"UPDATE price SET {price} = :day WHERE service_id = :id AND valid_to IS NULL"),
        {"day": date(2026, 3, 8), "id": service},
    )


def recover(engine: sa.Engine, given: Press, *, preview: bool = False) -> Report:
    with engine.begin() as connection:
        typed = given if preview else world.typed(connection, given)
        return recovery.recover(connection, AS_OF, typed, preview=preview)


def test_a_deleted_service_comes_back_whole_but_not_online(engine: sa.Engine, practice: world.Practice) -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.text("""INSERT INTO price (clinic_id, service_id, amount, valid_from, valid_to) VALUES
                       (:clinic, :service, 100, '2025-01-01', '2026-01-01'),
                       (:clinic, :service, 120, '2026-01-01', NULL)"""),
            {"clinic": practice.clinic, "service": practice.service},
        )
        delete_service(connection, practice.service)
    shown = recover(engine, Press(), preview=True)
    assert [table.key for table in shown.tables] == ["restorable_services", "conflicting_services", "lost_services"]
    assert [len(table.rows) for table in shown.tables] == [1, 0, 0]
    report = recover(engine, Press("eliminata per errore ieri", "RECUPERA 1"))
    assert (report.outcome, report.counts.updated) == (Outcome.OK, 1)
    state = sa.text("""
        SELECT s.id, s.deleted_at, s.active, s.bookable_online,
               (SELECT count(*) FROM agenda_service WHERE service_id = s.id) AS agendas,
               ARRAY(SELECT valid_to FROM price WHERE service_id = s.id ORDER BY valid_from) AS closed
        FROM service s""")
    with engine.connect() as connection:
        row = connection.execute(state).one()
    assert tuple(row) == (practice.service, None, True, False, 1, [date(2026, 1, 1), None])
    with engine.begin() as connection:
        undone = changes.undo(connection, report.plan_id or 0, as_of=AS_OF, actor="desk:anna")
        row = connection.execute(state).one()
    assert undone.outcome is Outcome.OK
    assert row.deleted_at is not None
    assert row.closed == [date(2026, 1, 1), date(2026, 3, 8)]


def test_what_cannot_come_back_is_listed_with_its_reason(engine: sa.Engine, practice: world.Practice) -> None:
    with engine.begin() as connection:
        reused = world.service(connection, practice.clinic, code="89.01", name="Visita A")
        orphaned = world.service(connection, practice.clinic, code="89.02", name="Visita B")
        lost = world.service(connection, practice.clinic, code="89.03", name="Visita C")
        retired = world.specialist(connection, practice.clinic, deleted_at=AS_OF)
        world.agenda(connection, practice.clinic, practice.location, specialist_id=retired, services=[orphaned])
        connection.execute(
            sa.text("INSERT INTO agenda_service (clinic_id, agenda_id, service_id) VALUES (:c, :a, :s)"),
            {"c": practice.clinic, "a": practice.agenda, "s": reused},
        )
        for service in (reused, orphaned, lost):
            delete_service(connection, service)
        world.service(connection, practice.clinic, code="89.01", name="Visita nuova")
    shown = recover(engine, Press(), preview=True)
    restorable, conflicts, gone = (table.rows for table in shown.tables)
    said = teller("it").value
    assert restorable == ()
    assert ["codice 89.01" in said(conflicts[0][1]), "nessun medico" in said(conflicts[1][1])] == [True, True]
    assert "né agende né prezzi" in said(gone[0][1])
    assert [(each.code, each.count) for each in shown.reasons] == [("conflict", 2), ("not_recoverable", 1)]
    assert shown.counts.waiting == 3
    report = recover(engine, Press("eliminate per errore ieri", "RECUPERA 0"))
    assert report.outcome is Outcome.NOTHING_TO_DO
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM service WHERE deleted_at IS NOT NULL")) == 3
