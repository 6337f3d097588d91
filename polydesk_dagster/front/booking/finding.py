"""``Appointment/$find``: the first free times."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import StringConstraints

from polydesk_dagster.clinic.bookings import availability
from polydesk_dagster.clinic.bookings.availability import Wanted
from polydesk_dagster.front.booking.access import Asked, allowed
from polydesk_dagster.front.booking.schema import Bundle, Entry, Instant, Number
from polydesk_dagster.front.booking.showing import Time, shown
from polydesk_dagster.front.refusals import RefusedError
from polydesk_dagster.front.tokens import Scope
from polydesk_dagster.values import Reason

router = APIRouter()

MOST_DAYS = 92

Code = Annotated[str, StringConstraints(min_length=1, max_length=40, pattern=r"^[A-Za-z0-9._/-]+$")]
City = Annotated[str, StringConstraints(pattern=r"^[A-Z][0-9]{3}$")]


@router.get("/Appointment/$find", response_model=Bundle, response_model_exclude_none=True, operation_id="find")
def find(
    asked: Annotated[Asked, Depends(allowed(Scope.FIND))],
    code: Annotated[Code, Query(alias="service-type", description="The service's code, the same in all clinics")],
    start: Annotated[Instant, Query(description="From when on")],
    end: Annotated[Instant, Query(description=f"Before when; at most {MOST_DAYS} days after `start`")],
    location: Annotated[Number | None, Query(description="A location's number")] = None,
    municipality: Annotated[City | None, Query(description="A cadastral code")] = None,
    practitioner: Annotated[Number | None, Query(description="A doctor's number; all clinics where she works")] = None,
    agreement: Annotated[Number | None, Query(description="Only with a price under this agreement")] = None,
    count: Annotated[int, Query(alias="_count", ge=1, le=availability.MOST)] = 20,
) -> Bundle:
    """The first times at which a service can be held, in order. What is found is not kept: `$hold` keeps it."""
    if not 0 < (end - start).total_seconds() <= MOST_DAYS * 86_400:
        raise RefusedError(422, Reason("front_days_wrong", {"days": MOST_DAYS}))
    wanted = Wanted(code, start, end, count, asked.caller.clinics, location, municipality, practitioner, agreement)
    with asked.front.engine.connect() as connection:
        starts = availability.first_starts(connection, wanted, asked.as_of)
        times = [Time("proposed", each.slot_id, each.agenda_id, each.service_id, each.starts_at) for each in starts]
        found = shown(connection, times, agreement)
    return Bundle(total=len(found), entry=[Entry(resource=each) for each in found])
