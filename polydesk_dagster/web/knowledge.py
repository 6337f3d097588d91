"""The shelf of the knowledge base: every document, what was read of it, and its text beside."""

from __future__ import annotations

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response

from polydesk_dagster.web.door import Door
from polydesk_dagster.web.roles import May, Person
from polydesk_dagster.web.routes import Pages

pages = Pages()

SHELF = sa.text("""
    SELECT d.id, d.path, d.title, c.code AS clinic, d.audience, d.state, d.reason_code, d.changed_at, d.retracted_at
    FROM document d LEFT JOIN clinic c ON c.id = d.clinic_id
    WHERE d.state <> 'gone' AND role_rank(d.audience) <= role_rank(:role)
      AND (CAST(:clinics AS text[]) IS NULL OR c.code IS NULL OR c.code = ANY(:clinics))
    ORDER BY d.path""")
"""The documents that a role may read."""


@pages.get("/conoscenza", May.SEE)
def knowledge(request: Request) -> Response:
    door: Door = request.state.door
    person: Person = request.state.person
    clinics = None if person.clinics is None else sorted(person.clinics)
    with door.engine.connect() as connection:
        documents = connection.execute(SHELF, {"role": str(person.role), "clinics": clinics}).all()
    return door.page(request, "knowledge.html", documents=documents)
