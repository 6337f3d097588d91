"""Plans: what a preview found, row by row; apply exactly that, take it back, carry it away as a file."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from polydesk_dagster.catalog import BY_KEY
from polydesk_dagster.changes import assign, hold, listed, plans, registry, show
from polydesk_dagster.changes.hold import may_hold
from polydesk_dagster.changes.kind import Kind
from polydesk_dagster.changes.plans import Plan
from polydesk_dagster.errors import PolydeskError
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.runtime import pressing
from polydesk_dagster.sources.practice import importing, problems
from polydesk_dagster.sources.practice.importing import Import
from polydesk_dagster.web import looks, presses
from polydesk_dagster.web.door import Door
from polydesk_dagster.web.language import teller_of
from polydesk_dagster.web.roles import May, Person
from polydesk_dagster.web.routes import Pages, number_in

pages = Pages()

SHOWN = 50
"""Rows of a plan on one page."""
LISTED = 100
"""Plans on one page of the list."""
FURTHEST = 10**6
"""The last page of a plan that is ever asked for."""


@pages.get("/piani", May.SEE)
def plans_(request: Request) -> Response:
    """The newest plans that have something to say, with ``?tutti=1`` also those that were only a routine look; with
    ``?da=`` and ``?a=`` only those from one number to another."""
    door: Door = request.state.door
    person: Person = request.state.person
    asked = request.query_params
    whole = asked.get("tutti") == "1"
    first, last = number_in(asked.get("da")) or 1, number_in(asked.get("a"))
    with door.reader.connect() as connection:
        found = listed.page(connection, clinics=person.clinics, limit=LISTED, first=first, last=last, silent=whole)
    span = {name: asked[name] for name in ("da", "a") if name in asked}
    return door.page(request, "plans.html", found=found, whole=whole, span=span, first=first, last=last)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A plan as one person may see it."""

    plan: Plan
    kind: Kind
    rows: bool
    """Whether she may see rows in full: of a kind that is about patients not everybody may."""


@pages.get("/piani/{plan:int}", May.SEE)
def plan(request: Request) -> Response:
    door: Door = request.state.door
    page = min(max(1, number_in(request.query_params.get("pagina")) or 1), FURTHEST)
    with door.reader.connect() as connection:
        found = _found(request, connection)
        total = found.plan.writes + found.plan.tally.get("conflict", 0)
        start = (page - 1) * SHOWN
        rows = list(show.rows(connection, found.plan, found.kind, limit=SHOWN, start=start)) if found.rows else []
        whole = _workbook(connection, found.plan)
    if found.kind.private and rows:
        looks.logged(request, "plan", plan=found.plan.id)
    return door.page(
        request,
        "plan.html",
        plan=found.plan,
        kind=found.kind,
        rows=rows,
        may_see=found.rows,
        page=page,
        last=max(1, -(-total // SHOWN)),
        **_decided(found.plan, whole),
        because=show.because,
        difference=show.difference,
        emergency=_is_emergency(found.plan),
        holdable=found.rows and request.state.person.acts_for(found.plan.clinic) and may_hold(found.plan, found.kind),
    )


def _workbook(connection: sa.Connection, plan: Plan) -> Import | None:
    """The whole that a plan is applied with; None where that is itself."""
    return importing.load(connection, plan.id) if importing.is_part(plan) else None


def _decided(plan: Plan, whole: Import | None) -> dict[str, object]:
    """What a person is asked: what stops it, by the guard's name, and whether there is something to apply."""
    if whole is not None:
        does = bool(whole.does or whole.guards)
        said = {"guards": whole.guards, "must_say": any(each.failed_guards for each in whole.plans)}
        said |= {"did": whole.did, "does": does, "whole": whole, "problems": problems.table(whole.problems)}
        return {**said, "next_step": whole.next_step or show.next_step(plan)}
    guards = {guard.name: [guard.reason] for guard in plan.speaking_guards}
    said = {"guards": guards, "must_say": bool(plan.failed_guards), "next_step": show.next_step(plan)}
    return {**said, "does": bool(plan.writes or guards), "did": plan.state == "applied", "whole": None}


@pages.get("/piani/{plan:int}/file", May.SEE)
def file(request: Request) -> Response:
    """All its rows, as CSV or with ``?tipo=xlsx`` as a spreadsheet; nothing in it is taken for a formula."""
    door: Door = request.state.door
    t = teller_of(request)
    spread = request.query_params.get("tipo") == "xlsx"
    with door.reader.connect() as connection:
        found = _found(request, connection)
        if not found.rows:
            raise HTTPException(403, door.say(request, "web.not_your_rows"))
        if found.kind.private:
            looks.logged(request, "plan_file", plan=found.plan.id)
        text = io.StringIO()
        show.write_csv(connection, found.plan, found.kind, text, say=t.reason)
    name = f"piano-{found.plan.id}"
    if not spread:
        content, kind = ("\ufeff" + text.getvalue()).encode(), "text/csv; charset=utf-8"
    else:
        content, kind = sheet(text), "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
    headers = {"Content-Disposition": f'attachment; filename="{name}.{"xlsx" if spread else "csv"}"'}
    return Response(content, media_type=kind, headers=headers)


def sheet(text: io.StringIO) -> bytes:
    """A plan that was written as CSV, as a spreadsheet of texts."""
    import pandas as pd

    text.seek(0)
    frame = pd.read_csv(text, dtype=str, keep_default_na=False)
    written = io.BytesIO()
    frame.to_excel(written, index=False, sheet_name="piano")
    return written.getvalue()


@pages.post("/piani/{plan:int}/applica", May.APPLY)
def apply(request: Request) -> Response:
    """Apply exactly this plan, of a workbook all of its plans; past a guard only with a reason and the guard named by
    its box."""
    form = request.state.form
    given = {"reason": form.get("reason", "").strip(), "guards": form.getlist("guard")}
    return _press(request, "apply_plan", given)


@pages.post("/piani/{plan:int}/annulla", May.APPLY)
def undo(request: Request) -> Response:
    """Take back exactly this plan, with ``whole`` all of its workbook's."""
    reason = request.state.form.get("reason", "").strip()
    return _press(request, "undo_plan", {"reason": reason, "whole": _whole(request)})


@pages.post("/piani/{plan:int}/anteprima-annulla", May.APPLY)
def look_at_undo(request: Request) -> Response:
    return _press(request, "undo_plan", {"preview": True, "whole": _whole(request)})


def _whole(request: Request) -> bool:
    return request.state.form.get("whole") == "1"


@pages.post("/piani/{plan:int}/trattieni", May.APPLY)
def hold_rows(request: Request) -> Response:
    """Leave the marked rows out of the plan; they wait, here and in the plans to come."""
    return _set_rows(request, hold.hold, "hold")


@pages.post("/piani/{plan:int}/rimetti", May.APPLY)
def put_back(request: Request) -> Response:
    """Put the marked rows, which were held, back into the plan."""
    return _set_rows(request, hold.release, "release")


@pages.post("/piani/{plan:int}/solo", May.APPLY)
def keep_only(request: Request) -> Response:
    """Leave in the plan only the marked rows; the others are for another plan."""
    return _set_rows(request, hold.only, "hold")


@pages.post("/piani/{plan:int}/assegna", May.APPLY)
def assign_row(request: Request) -> Response:
    """Say of a row which record of ours it is."""
    form = request.state.form
    row, record, reason = number_in(form.get("row")), form.get("record", "").strip(), form.get("reason", "").strip()
    if row is None or not record:
        raise HTTPException(400, request.state.door.say(request, "web.choose_one"))
    return _changed(request, partial(assign.assign, row=row, record=record, reason=reason))


def _set_rows(request: Request, rule: Callable[..., Report], field: str) -> Response:
    door: Door = request.state.door
    form = request.state.form
    rows = {number for row in form.getlist(field) if (number := number_in(row)) is not None}
    if not rows:
        raise HTTPException(400, door.say(request, "web.mark_rows"))
    return _changed(request, partial(rule, rows=rows))


def _changed(request: Request, rule: Callable[..., Report]) -> Response:
    """The plan once ``rule`` has changed its rows, from the page where that was asked."""
    door: Door = request.state.door
    with door.engine.begin() as connection:
        plan = _mine(request, connection).plan
        report = rule(connection, plan.id, as_of=door.now(), actor=request.state.person.signature)
    if report.outcome is Outcome.REFUSED:
        raise HTTPException(409, teller_of(request).reason(report.reasons[0]))
    page = request.state.form.get("pagina", "1")
    return RedirectResponse(f"/piani/{plan.id}" + (f"?pagina={page}" if page.isdecimal() else "") + "#righe", 303)


def _press(request: Request, tool: str, config: Mapping[str, object]) -> Response:
    door: Door = request.state.door
    person: Person = request.state.person
    with door.engine.connect() as connection:
        plan = _mine(request, connection).plan
    given = {**config, "plan": plan.id}
    work = partial(pressing.use, door.settings, door.engine, tool, plan.clinic, given, person=person.signature)
    preview, back = bool(config.get("preview")), f"/piani/{plan.id}"
    return presses.pressed(request, plan.service, plan.clinic, work, preview=preview, back=back)


def opened(request: Request, planned: Callable[[sa.Connection], Plan], same: str) -> Response:
    """Go to the plan that is made; where it would change nothing none is kept, and that is said as the text ``same``
    does."""
    door: Door = request.state.door
    try:
        with door.engine.begin() as connection:
            plan = planned(connection)
            if not plan.writes:
                raise HTTPException(409, door.say(request, same))
    except PolydeskError as error:
        raise HTTPException(409, teller_of(request).reason(error.reason)) from None
    return RedirectResponse(f"/piani/{plan.id}", 303)


def _mine(request: Request, connection: sa.Connection) -> _Seen:
    """A plan that she may decide about."""
    person: Person = request.state.person
    found = _found(request, connection)
    if not person.acts_for(found.plan.clinic) or (_is_emergency(found.plan) and not person.may(May.EMERGENCY)):
        raise HTTPException(403, request.state.door.say(request, "web.not_your_plan"))
    return found


def _found(request: Request, connection: sa.Connection) -> _Seen:
    person: Person = request.state.person
    try:
        plan = plans.load(connection, request.path_params["plan"])
    except LookupError:
        raise HTTPException(404) from None
    if not _hers(person, plan):
        raise HTTPException(404)
    kind = registry.kind(plan.kind)
    return _Seen(plan, kind, not kind.private or (person.may(May.PATIENTS) and person.acts_for(plan.clinic)))


def _hers(person: Person, plan: Plan) -> bool:
    """Whether a person sees that there is such a plan: of her clinics, or of the whole chain."""
    return plan.clinic is None or person.acts_for(plan.clinic)


def _is_emergency(plan: Plan) -> bool:
    return plan.service in BY_KEY and BY_KEY[plan.service].dangerous
