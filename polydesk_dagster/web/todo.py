"""*Da fare*: everything that waits for a person, of her clinics, each thing with what she can do about it here."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from polydesk_dagster.catalog import BY_KEY
from polydesk_dagster.changes import aside, held
from polydesk_dagster.changes.audit import is_reason
from polydesk_dagster.changes.quarantine import set_aside
from polydesk_dagster.clinic.bookings import offers, payments
from polydesk_dagster.clinic.calendar import desk, replacing
from polydesk_dagster.clinic.messages import calls, closed, ledger, replies
from polydesk_dagster.clinic.messages import health as doubts
from polydesk_dagster.clinic.patients import reviews
from polydesk_dagster.errors import PolydeskError
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.sources.events import inbox, types
from polydesk_dagster.web import looks
from polydesk_dagster.web.door import Door
from polydesk_dagster.web.knowledge import AUDIENCES
from polydesk_dagster.web.language import teller_of
from polydesk_dagster.web.roles import May, Person
from polydesk_dagster.web.routes import Pages, clinic_of, number_given

pages = Pages()

SHOWN = 100
"""Things of one kind on the page; how many there are in all is said."""
AT_ONCE = 5
"""Doubtful patients side by side."""
ANSWERS = ("reached", "moved", "cancelled", "no_answer", "wrong_number")
"""What can come of a call."""


class _OfClinic(Protocol):
    @property
    def clinic(self) -> str | None: ...


T = TypeVar("T", bound=_OfClinic)


@pages.get("/da-fare", May.PATIENTS)
def to_do(request: Request) -> Response:
    door: Door = request.state.door
    person: Person = request.state.person
    now = door.now()

    def hers(found: list[T]) -> list[T]:
        return [each for each in found if person.clinics is None or each.clinic in person.clinics]

    with door.reader.connect() as connection:
        orphans = hers(desk.orphans(connection, now, 10 * SHOWN))
        lost = [each.appointment_id for each in orphans[:SHOWN] if each.appointment_id is not None]
        places = {each.appointment_id: each for each in replacing.proposals(connection, 0, now, lost)} if lost else {}
        to_call = hers(calls.to_make(connection, now))
        doubtful = hers(reviews.listed(connection, limit=10 * SHOWN))
        asked = [[each for each in doubtful if each.suspended], [each for each in doubtful if not each.suspended]]
        shown = [[(each, reviews.candidates(connection, each.id)) for each in kind[:AT_ONCE]] for kind in asked]
        texted = [each for each in replies.to_read(connection) if each.clinic is None or person.acts_for(each.clinic)]
        paid = hers(payments.cases(connection))
        kinds = types.questions(connection) if person.acts_for(None) else []
        untold = {code: many for code, many in sorted(closed.waiting(connection, now).items()) if person.acts_for(code)}
        values = {
            "orphans": orphans,
            "places": places,
            "notices": untold,
            "calls": to_call,
            "suspended": shown[0],
            "reviews": shown[1],
            "more": {"suspended": len(asked[0]) - len(shown[0]), "reviews": len(asked[1]) - len(shown[1])},
            "replies": texted,
            "payments": paid,
            "resolutions": payments.RESOLUTIONS,
            "doubts": hers(doubts.unknown(connection)),
            "events": hers(inbox.unsettled(connection)),
            "types": [each for each in kinds if each.ignored_by is None],
            "ignored": [each for each in kinds if each.ignored_by is not None],
            "quarantine": hers(set_aside(connection, limit=10 * SHOWN)),
            "held": hers(held.waiting(connection)),
            "left": [(each, BY_KEY.get(each.service)) for each in hers(aside.left(connection))],
            "documents": looks.waiting_documents(connection, person),
            "clinics": looks.clinics(connection, person),
            "roles": AUDIENCES,
            "answers": ANSWERS,
            "most": SHOWN,
        }
        patients = {each.patient_id for each in orphans[:SHOWN] if each.patient_id is not None}
        patients |= {candidate.id for kind in shown for _, found in kind for candidate in found}
        patients |= looks.patients_of(connection, [call.appointment_id for call in to_call[:SHOWN]])
        patients |= {patient for each in texted[:SHOWN] for patient in each.patient_ids}
        patients |= {case.patient_id for case in paid[:SHOWN] if case.patient_id is not None}
    if patients:
        looks.logged(request, "da-fare", patients=patients)
    return door.page(request, "todo.html", **values)


@pages.post("/da-fare/orfani/{number:int}", May.PATIENTS)
def orphan(request: Request) -> Response:
    """The desk has spoken with the patient, or keeps the visit."""
    number, appointment = request.path_params["number"], number_given(request, "appointment")
    state = _one_of(request, "state", ("contacted", "kept"))
    clinic = _clinic(request)
    return _done(
        request,
        lambda connection, person, now: desk.note(
            connection, number, appointment, state, clinic=clinic, actor=person.signature, as_of=now
        ),
    )


@pages.post("/da-fare/posti/{number:int}", May.PATIENTS)
def offered(request: Request) -> Response:
    """What the patient of a booking said on the telephone of the place that is kept for her."""
    number = request.path_params["number"]
    wanted = _one_of(request, "answer", ("take", "decline")) == "take"
    due = offers.Taken.TAKEN if wanted else offers.Taken.DECLINED
    clinic = _clinic(request)

    def rule(connection: sa.Connection, person: Person, now: datetime) -> bool:
        became = offers.answer(connection, number, wanted, clinic=clinic, actor=person.signature, as_of=now)
        if became is not due:
            raise HTTPException(409, request.state.door.say(request, f"answer.offer.{became}"))
        return True

    return _done(request, rule)


@pages.post("/da-fare/pagamenti/{number:int}", May.PATIENTS)
def payment(request: Request) -> Response:
    """What became of money for a time that was gone."""
    resolution = _one_of(request, "resolution", payments.RESOLUTIONS)
    number = request.path_params["number"]
    with request.state.door.engine.connect() as connection:
        looks.belongs(request, connection, "payment_case", number)
    return _done(
        request,
        lambda connection, person, now: payments.settle(
            connection, number, resolution=resolution, actor=person.signature, as_of=now
        ),
    )


@pages.post("/da-fare/telefonate/{number:int}", May.PATIENTS)
def called(request: Request) -> Response:
    outcome = _one_of(request, "outcome", ANSWERS)
    number = request.path_params["number"]
    with request.state.door.engine.connect() as connection:
        looks.belongs(request, connection, "call_list", number)
    return _done(
        request,
        lambda connection, person, now: calls.done(connection, number, who=person.signature, outcome=outcome, at=now),
    )


@pages.post("/da-fare/risposte/{number:int}", May.PATIENTS)
def read(request: Request) -> Response:
    """The desk has read what a patient texted, and done what it asks."""
    number = request.path_params["number"]
    with request.state.door.engine.connect() as connection:
        looks.belongs(request, connection, "message_reply", number)
    return _done(
        request,
        lambda connection, person, now: replies.handled(connection, number, who=person.signature, at=now),
    )


@pages.post("/da-fare/messaggi/{number:int}", May.PATIENTS)
def settled(request: Request) -> Response:
    """A message in doubt arrived, or may be sent again."""
    arrived = _one_of(request, "arrived", ("yes", "no")) == "yes"
    number = request.path_params["number"]
    with request.state.door.engine.connect() as connection:
        looks.belongs(request, connection, "message", number)
    return _done(
        request,
        lambda connection, person, now: ledger.settle(
            connection, number, arrived=arrived, who=person.signature, at=now
        ),
    )


@pages.post("/da-fare/pazienti/{number:int}", May.APPLY)
def decided(request: Request) -> Response:
    """Who a doubtful patient is: somebody we know, somebody new, nobody to import."""
    number = request.path_params["number"]
    verdict = _one_of(request, "verdict", ("link", "create", "dismiss"))
    reason = request.state.form.get("reason", "").strip()
    with request.state.door.engine.connect() as connection:
        looks.belongs(request, connection, "patient_review", number)

    def rule(connection: sa.Connection, person: Person, now: datetime) -> bool:
        given: dict[str, Any] = {"as_of": now, "actor": person.signature, "reason": reason or None}
        if verdict == "link":
            patient = number_given(request, "patient")
            if patient is None:
                raise HTTPException(400, request.state.door.say(request, "web.which_patient"))
            return _accepted(request, reviews.link(connection, number, patient, **given))
        if verdict == "create":
            return _accepted(request, reviews.create(connection, number, **given))
        return _accepted(request, reviews.dismiss(connection, number, **{**given, "reason": reason}))

    return _done(request, rule)


@pages.post("/da-fare/eventi/{event}", May.APPLY)
def event(request: Request) -> Response:
    """Try a parked event again, or give it up with a reason."""
    clinic = _clinic(request)
    number = request.path_params["event"]
    verdict = _one_of(request, "verdict", ("retry", "skip"))
    reason = request.state.form.get("reason", "").strip()
    if verdict == "skip" and not is_reason(reason):
        raise HTTPException(400, request.state.door.say(request, "web.why_hint"))

    def rule(connection: sa.Connection, _person: Person, now: datetime) -> bool:
        if verdict == "retry":
            inbox.retry(connection, clinic, number, now)
        else:
            inbox.skip(connection, clinic, number, reason, now)
        return True

    return _done(request, rule)


@pages.post("/da-fare/tipi", May.APPLY)
def event_type(request: Request) -> Response:
    """Let the events of a type that nobody knows have no effect, or ask about it again: one word for every clinic."""
    door: Door = request.state.door
    verdict = _one_of(request, "verdict", ("ignore", "ask"))
    given, reason = request.state.form.get("type", ""), request.state.form.get("reason", "").strip()
    if not request.state.person.acts_for(None):
        raise HTTPException(403, door.say(request, "web.for_all_clinics"))
    if not is_reason(reason):
        raise HTTPException(400, door.say(request, "web.why_hint"))

    def rule(connection: sa.Connection, person: Person, now: datetime) -> bool:
        decide = types.ignore if verdict == "ignore" else types.ask_again
        decide(connection, given, actor=person.signature, reason=reason, as_of=now)
        return True

    return _done(request, rule)


def _done(request: Request, rule: Callable[[sa.Connection, Person, datetime], bool]) -> Response:
    door: Door = request.state.door
    try:
        with door.engine.begin() as connection:
            if not rule(connection, request.state.person, door.now()):
                raise HTTPException(409, door.say(request, "web.done_by_another"))
    except PolydeskError as error:
        raise HTTPException(409, teller_of(request).reason(error.reason)) from None
    return RedirectResponse(f"/da-fare#{request.state.form.get('back', '')}", 303)


def _accepted(request: Request, report: Report) -> bool:
    """Whether a verdict was taken; one that was refused is told with its reason, and nothing is written."""
    if report.outcome in {Outcome.REFUSED, Outcome.FAILED}:
        raise HTTPException(409, teller_of(request).reason(report.reasons[0]))
    return True


def _one_of(request: Request, field: str, known: tuple[str, ...]) -> str:
    given = request.state.form.get(field, "")
    if given not in known:
        raise HTTPException(400, request.state.door.say(request, "web.choose_one"))
    return str(given)


def _clinic(request: Request) -> str:
    clinic = request.state.form.get("clinic", "")
    clinic_of(request, clinic)
    return str(clinic)
