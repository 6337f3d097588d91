"""How a page is added: a view in a module about one thing that a person does, its permission read at a glance.

    pages = Pages()

    @pages.get("/servizi", May.SEE)
    def services(request: Request) -> Response: ...

    @pages.post("/servizi/{key}/esegui", May.RUN)
    def run(request: Request) -> Response: ...

A plain ``def`` runs in a thread and may ask the database; an ``async def`` must not block. Views find
``request.state.door``, ``request.state.person`` and for a post ``request.state.form``; ``clinic_of`` refuses a clinic
that is not hers. A form holds
``<input type="hidden" name="form_token" value="{{ form_token }}">``.
"""

from __future__ import annotations

import functools
import hmac
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, cast
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from polydesk_dagster.web import tokens
from polydesk_dagster.web.door import Door, person_of
from polydesk_dagster.web.language import reads_pages
from polydesk_dagster.web.roles import May, Person

View = Callable[[Request], Response | Awaitable[Response]]
ANYBODY: Final = None
"""Instead of a permission: a page for people who are not logged in."""
LOGIN = "/entra"
DIGITS = 18
"""Of a record's number, at most."""


class Pages:
    """The routes of one module of views."""

    def __init__(self) -> None:
        self.routes: list[Route] = []
        self.permissions: dict[tuple[str, str], May | None] = {}

    def get(self, path: str, may: May | None) -> Callable[[View], View]:
        return self._add("GET", path, may)

    def post(self, path: str, may: May | None) -> Callable[[View], View]:
        """A form's address: its ``form_token`` is checked wherever a person is known."""
        return self._add("POST", path, may)

    def _add(self, method: str, path: str, may: May | None) -> Callable[[View], View]:
        def added(view: View) -> View:
            self.permissions[method, path] = may
            self.routes.append(Route(path, _checked(view, may), methods=[method], name=view.__name__))
            return view

        return added


def _checked(view: View, may: May | None) -> Callable[[Request], Awaitable[Response]]:
    @functools.wraps(view)
    async def endpoint(request: Request) -> Response:
        person = person_of(request)
        if may is not ANYBODY:
            if person is None:
                return _to_login(request)
            if not person.may(may):
                raise HTTPException(403, "door.role")
        _readable(request.query_params.values(), request.path_params)
        if request.method == "POST":
            request.state.form = await _form(request)
            if person is not None:
                _check_form(request)
        if inspect.iscoroutinefunction(view):
            answer: Response = await view(request)
            return answer
        return await run_in_threadpool(cast("Callable[[Request], Response]", view), request)

    return endpoint


def _readable(texts: Iterable[str], numbers: Mapping[str, object]) -> None:
    """Refuse what no record can hold, before a view asks the database for it."""
    if any("\0" in text for text in (*texts, *(each for each in numbers.values() if isinstance(each, str)))):
        raise HTTPException(400, "door.not_text")
    if any(isinstance(number, int) and number >= 10**DIGITS for number in numbers.values()):
        raise HTTPException(404)


async def _form(request: Request) -> FormData:
    """The fields of a form: texts, for no form here sends a file."""
    try:
        form = await request.form(max_files=0)
    except HTTPException:
        raise HTTPException(400, "door.not_text") from None
    _readable((str(text) for text in form.values()), {})
    return form


def _to_login(request: Request) -> Response:
    if request.method != "GET" or not reads_pages(request):
        raise HTTPException(401, "door.session_over")
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(LOGIN if here == "/" else f"{LOGIN}?da={quote(here)}", 303)


def _check_form(request: Request) -> None:
    door: Door = request.state.door
    given = request.state.form.get("form_token") or request.headers.get("x-form-token", "")
    expected = tokens.of_form(door.token(request) or "")
    if not isinstance(given, str) or not hmac.compare_digest(given.encode(), expected.encode()):
        raise HTTPException(403, "door.other_form")


def number_in(text: object) -> int | None:
    """The number of a record that a form or an address writes; None where it is none that a record can have."""
    return int(text) if isinstance(text, str) and text.isdecimal() and len(text) <= DIGITS else None


def number_given(request: Request, field: str) -> int | None:
    """The number of a record in a field of the form; None where the field is empty, which means all, or none of them.

    Raises:
        HTTPException: 404 where something else stands there.
    """
    text = request.state.form.get(field, "")
    number = number_in(text)
    if text and number is None:
        raise HTTPException(404)
    return number


def clinic_asked(request: Request) -> str | None:
    """Whose page is looked at: of the clinic in ``?clinica=``; without one the chain's (None) for who acts for it, or
    else the first of hers."""
    person: Person = request.state.person
    code = request.query_params.get("clinica") or None
    if code is None and person.clinics is not None:
        code = min(person.clinics, default=None)
    return clinic_of(request, code)


def clinic_of(request: Request, clinic: str | None) -> str | None:
    """The clinic that a form or an address names (None: the whole chain), if the person acts for it.

    Raises:
        HTTPException: 403 if she does not.
    """
    person: Person = request.state.person
    if not person.acts_for(clinic):
        raise HTTPException(403, "door.your_clinics" if clinic else "door.name_a_clinic")
    return clinic
