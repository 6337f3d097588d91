"""The pictures that runs show on Dagster's page, drawn when somebody looks; a run itself leaves their address."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial

import sqlalchemy as sa
from anyio import CapacityLimiter, to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from polydesk_dagster.clinic.clinics import clinic_id
from polydesk_dagster.clinic.messages import health
from polydesk_dagster.clinic.messages.kinds import PREPARATION, REMINDER
from polydesk_dagster.clinic.statistics.drawing import Drawing
from polydesk_dagster.clinic.statistics.reading import Period
from polydesk_dagster.clinic.statistics.views import VIEWS, View
from polydesk_dagster.database import service_runs
from polydesk_dagster.knowledge import generations
from polydesk_dagster.told import pictures
from polydesk_dagster.values import Instant
from polydesk_dagster.web.door import Door
from polydesk_dagster.web.language import teller_of
from polydesk_dagster.web.roles import May, Person
from polydesk_dagster.web.routes import Pages

pages = Pages()

Draw = Callable[[sa.Connection, datetime, str | None], Drawing]
"""What is drawn of a run's instant and clinic (a code; None is the whole chain)."""


@pages.get(f"{pictures.SHOWN_AT}/{{run}}/{{key}}", May.SEE)
async def drawn(request: Request) -> Response:
    """The picture of a run for whose clinic she acts: of the run's days, by what is known of them now.

    One at a time is drawn: that is all work of the processor, and whoever waits for it keeps no other page's thread.
    """
    door: Door = request.state.door
    alone = door.kept.setdefault("drawn", CapacityLimiter(1))
    return Response(await to_thread.run_sync(_png, request, limiter=alone), media_type="image/png")


def _png(request: Request) -> bytes:
    door: Door = request.state.door
    person: Person = request.state.person
    service, draw = DRAWN.get(request.path_params["key"], ("", None))
    if draw is None:
        raise HTTPException(404)
    with door.reader.connect() as connection:
        asked = service_runs.asked(connection, request.path_params["run"], service)
        if asked is None or not person.acts_for(asked[0]):
            raise HTTPException(404)
        clinic, as_of = asked
        drawing = draw(connection, as_of, clinic)
    t = teller_of(request)
    return pictures.png(drawing, t, t.text("picture.of_run", run=Instant(as_of), now=Instant(door.now())))


def _statistic(view: View, connection: sa.Connection, as_of: datetime, clinic: str | None) -> Drawing:
    return view.picture(connection, Period.around(as_of, clinic_id(connection, clinic)))


def _messages(kind: str, connection: sa.Connection, as_of: datetime, _clinic: str | None) -> Drawing:
    """Sent, withheld and failed by day, of the whole chain, as bars."""
    import pandas as pd

    days = health.days(connection, kind, as_of)
    frame = pd.DataFrame(
        [(day.sent, day.withheld, day.lost) for day in days],
        index=pd.DatetimeIndex([day.day for day in days]),
        columns=["message_sent", "message_withheld", "message_lost"],
    )
    return Drawing(kind, frame, "messages", True)


def _probes(connection: sa.Connection, as_of: datetime, _clinic: str | None) -> Drawing:
    """The share of the probe questions that each generation of the index answered, as a line."""
    import pandas as pd

    answered = generations.answered(connection, as_of)
    foot = [str(generation) for generation, _ in answered]
    shares = pd.DataFrame({"index_probes": [100 * share for _, share in answered]}, foot, dtype=float)
    return Drawing("index_probes", shares, "percent", False)


DRAWN: Mapping[str, tuple[str, Draw]] = {
    **{key: ("refresh_statistics", partial(_statistic, view)) for key, view in VIEWS.items()},
    REMINDER.key: ("send_reminders", partial(_messages, REMINDER.key)),
    PREPARATION.key: ("send_preparation_notices", partial(_messages, PREPARATION.key)),
    "index_probes": ("reindex_knowledge", _probes),
}
"""Every picture by its key: the service whose runs show it, and what it is drawn from."""
