"""The shelf of the knowledge base: every document, what was read of it and what was not, and its text beside it."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from polydesk_dagster.errors import PolydeskError
from polydesk_dagster.knowledge import shelf, unanswered
from polydesk_dagster.resources.meaning import words_alone
from polydesk_dagster.web import looks
from polydesk_dagster.web.door import Door
from polydesk_dagster.web.guard import POLICY
from polydesk_dagster.web.language import teller_of
from polydesk_dagster.web.roles import May, Person
from polydesk_dagster.web.routes import Pages, clinic_of

pages = Pages()

SHELF = sa.text("""
    SELECT d.id, d.path, d.title, c.code AS clinic, d.scoped_by, d.audience, d.state, d.reason_code, d.changed_at,
           d.retracted_at
    FROM document d LEFT JOIN clinic c ON c.id = d.clinic_id
    WHERE d.state <> 'gone' AND role_rank(d.audience) <= role_rank(:role)
      AND (CAST(:clinics AS text[]) IS NULL OR c.code = ANY(:clinics)
           OR (c.code IS NULL AND d.scoped_by <> 'nobody'))
      AND (CAST(:id AS bigint) IS NULL OR d.id = :id)
    ORDER BY d.path""")
"""The documents that a role may read, or the one of ``id`` among them; what is nobody's, for whoever acts for all."""

AUDIENCES = ("patient", "desk", "specialist", "manager", "superuser")
"""Who may be given a document, each with all that come after."""
SHOWN = 300
"""Passages of a document on its page; how many there are in all is said."""
LARGEST = 50_000_000
"""Bytes of a document that is shown or handed out."""
FRAMED = {"Content-Security-Policy": "default-src 'none'; frame-ancestors 'self'", "X-Frame-Options": "SAMEORIGIN"}
"""For a PDF, which stands in a frame of our own page, beside its text."""


@pages.get("/conoscenza", May.SEE)
def knowledge(request: Request) -> Response:
    door: Door = request.state.door
    with door.reader.connect() as connection:
        documents = connection.execute(SHELF, _asked(request)).all()
        person: Person = request.state.person
        questions = [each for each in unanswered.listed(connection) if person.acts_for(each.clinic)]
    alone = words_alone(door.settings)
    return door.page(request, "knowledge.html", documents=documents, questions=questions, alone=alone)


@pages.post("/conoscenza/domande/{question:int}", May.APPLY)
def settle(request: Request) -> Response:
    """Say which document answers an open question, or that none is due."""
    door: Door = request.state.door
    person: Person = request.state.person
    number, document = request.path_params["question"], request.state.form.get("documento", "").strip()
    try:
        with door.engine.begin() as connection:
            whose = [each.clinic for each in unanswered.listed(connection) if each.id == number]
            if not whose or not person.acts_for(whose[0]):
                raise HTTPException(404)
            unanswered.settle(connection, number, document or None, actor=person.signature, as_of=datetime.now(UTC))
    except PolydeskError as error:
        raise HTTPException(409, teller_of(request).reason(error.reason)) from None
    return RedirectResponse("/conoscenza", 303)


@pages.get("/conoscenza/{document:int}", May.SEE)
def document(request: Request) -> Response:
    """A document beside the passages that it answers with, and what of it was not read."""
    from polydesk_dagster.resources.knowledge import library

    door: Door = request.state.door
    with door.reader.connect() as connection:
        shelved = shelf.document(connection, _found(request, connection).path)
        clinics = looks.clinics(connection, request.state.person)
        try:
            passages, problem = shelf.text(connection, library(door.settings), shelved), None
        except PolydeskError as error:
            passages, problem = [], teller_of(request).reason(error.reason)
    page = door.page(
        request,
        "document.html",
        each=shelved,
        number=request.path_params["document"],
        decides=_decides(request, shelved.clinic),
        clinics=clinics,
        roles=AUDIENCES,
        passages=passages[:SHOWN],
        rest=max(0, len(passages) - SHOWN),
        problem=problem,
        framed=_is_pdf(shelved.path),
    )
    page.headers["Content-Security-Policy"] = f"{POLICY}; frame-src 'self'"
    return page


@pages.post("/conoscenza/{document:int}", May.APPLY)
def decide(request: Request) -> Response:
    """Take a document out of all answers or let it back, say that it was looked at, or whose it is."""
    door: Door = request.state.door
    person: Person = request.state.person
    form, number = request.state.form, request.path_params["document"]
    verdict = form.get("verdict")
    with door.engine.begin() as connection:
        found = _found(request, connection)
        clinic_of(request, found.clinic)
        if verdict in {"retract", "restore", "scope"} and looks.copies_elsewhere(connection, person, number):
            raise HTTPException(403, door.say(request, "web.copies_elsewhere"))
        given: dict[str, Any] = {
            "actor": person.signature,
            "reason": form.get("reason", "").strip(),
            "as_of": door.now(),
        }
        try:
            match verdict:
                case "retract" | "restore":
                    shelf.retract(connection, found.path, undo=verdict == "restore", **given)
                case "clear":
                    shelf.clear(connection, found.path, **given)
                case "scope":
                    whose = clinic_of(request, form.get("whose") or None)
                    audience = form.get("audience")
                    if audience not in AUDIENCES:
                        raise HTTPException(400, door.say(request, "web.choose_one"))
                    shelf.scope(
                        connection,
                        found.path,
                        clinic=whose,
                        audience=audience,
                        valid_from=None,
                        valid_to=None,
                        **given,
                    )
                case _:
                    raise HTTPException(400, door.say(request, "web.choose_one"))
        except PolydeskError as error:
            raise HTTPException(409, teller_of(request).reason(error.reason)) from None
    return RedirectResponse("/da-fare#documents" if form.get("back") == "documents" else f"/conoscenza/{number}", 303)


def _decides(request: Request, clinic: str | None) -> bool:
    """Whether she may decide about a document of a clinic, or of the whole chain (None)."""
    person: Person = request.state.person
    return person.may(May.APPLY) and person.acts_for(clinic)


@pages.get("/conoscenza/{document:int}/file", May.SEE)
def file(request: Request) -> Response:
    """The file as it was laid on the shelf: a PDF to be shown in its frame, anything else to be kept."""
    from polydesk_dagster.knowledge.library import listing

    door: Door = request.state.door
    with door.reader.connect() as connection:
        path = _found(request, connection).path
    try:
        known = listing(door.settings.documents_folder).files.get(path)
        if known is None or known.size > LARGEST:
            raise HTTPException(404, door.say(request, "web.file_away"))
        handle = os.open(known.location, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(handle, "rb") as opened:
            content = opened.read(LARGEST)
    except (PolydeskError, OSError):
        raise HTTPException(404, door.say(request, "web.file_away")) from None
    name = quote(PurePosixPath(path).name)
    if _is_pdf(path) and content.startswith(b"%PDF-"):
        disposition = f"inline; filename*=UTF-8''{name}"
        return Response(content, media_type="application/pdf", headers={**FRAMED, "Content-Disposition": disposition})
    disposition = f"attachment; filename*=UTF-8''{name}"
    return Response(content, media_type="application/octet-stream", headers={"Content-Disposition": disposition})


def _is_pdf(path: str) -> bool:
    return path.lower().endswith(".pdf")


def _asked(request: Request, document: int | None = None) -> dict[str, Any]:
    person: Person = request.state.person
    clinics = None if person.clinics is None else sorted(person.clinics)
    return {"role": str(person.role), "clinics": clinics, "id": document}


def _found(request: Request, connection: sa.Connection) -> sa.Row[Any]:
    """The document that was asked for, if she may read it."""
    found = connection.execute(SHELF, _asked(request, request.path_params["document"])).one_or_none()
    if found is None:
        raise HTTPException(404)
    return found
