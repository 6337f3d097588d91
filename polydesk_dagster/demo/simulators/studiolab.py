"""The practice-management systems of any number of clinics, one under each path ``/{clinic}/api/v1``.

A clinic that nobody spoke of is empty. ``/api/v1`` without a clinic is clinic ``DEMO``.

- ``PUT /admin/data/{clinic}``     its lists: ``{"patients": […], "prices": […], …}``; ``GET`` shows them;
- ``POST /admin/events/{clinic}``  one event or a list (``Publication``), each given what it leaves out;
- ``POST /admin/burst/{clinic}``   ``{"count": n, "seed": s}``: random events about the clinic's own records;
- ``POST /admin/skip/{clinic}``    ``{"count": n}``: sequence numbers that will never be used;
- ``POST /admin/forget/{clinic}``  ``{"before": n}``: older events are no longer kept, asking for them answers 410;
- fault ``shuffle`` of the feed    ``POST /admin/shuffle/{clinic}`` ``{"on": true}``: pages in no order.
"""

from __future__ import annotations

import argparse
import bisect
import hashlib
import json
import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from polydesk_dagster.demo.simulators.faults import Reply, problem
from polydesk_dagster.demo.simulators.server import API, DEMO_TOKEN, Handler, Simulator, main

LISTS = ("municipalities", "patients", "collaborators", "services", "agreements", "prices")
AGENDAS = "agendas"
"""No list of the contract; random events need to know the clinic's agendas."""
DEMO = "DEMO"
Rows = list[dict[str, Any]]


class Publication(BaseModel):
    """An event to be published: what is left out is filled in."""

    model_config = ConfigDict(extra="forbid")

    type: Any
    entity: Any = None
    data: Any = Field(default_factory=dict)
    version: Any = 1
    id: Any = None
    sequence: int | None = None
    occurred_at: Any = None
    late: int = Field(0, ge=0, description="answers of the feed after which it becomes visible")
    again: int = Field(0, ge=0, description="how many times more it is delivered, under sequence numbers of its own")
    twice: bool = Field(False, description="delivered twice under its one sequence number")


@dataclass(slots=True)
class Feed:
    """The events of one clinic, by sequence number."""

    events: Rows = field(default_factory=list)
    late: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    """(answers still to go, event)."""
    last: int = 0
    oldest: int = 1
    shuffled: bool = False
    history: str | None = None
    """What it calls this history of itself, if it says."""

    def publish(self, publication: Publication) -> list[dict[str, Any]]:
        sequence = self.last + 1 if publication.sequence is None else publication.sequence
        self.last = max(self.last, sequence)
        event = {
            "id": publication.id or str(uuid.uuid4()),
            "sequence": sequence,
            "type": publication.type,
            "version": publication.version,
            "occurred_at": publication.occurred_at or datetime.now(UTC).isoformat(),
            "entity": publication.entity,
            "data": publication.data,
        }
        published = [event]
        if publication.late:
            self.late.append((publication.late, event))
        else:
            self.add(event)
        if publication.twice:
            self.add(event)
        for _ in range(publication.again):
            self.last += 1
            published.append(event | {"sequence": self.last})
            self.add(published[-1])
        return published

    def add(self, event: dict[str, Any]) -> None:
        if not self.events or self.events[-1]["sequence"] <= event["sequence"]:
            self.events.append(event)
        else:
            bisect.insort(self.events, event, key=lambda known: known["sequence"])

    def page(self, after: int, limit: int) -> Rows:
        first = bisect.bisect_right(self.events, after, key=lambda known: known["sequence"])
        page = self.events[first : first + limit]
        self.late = [(left - 1, event) for left, event in self.late]
        for _, event in (due for due in self.late if due[0] <= 0):
            self.add(event)
        self.late = [waiting for waiting in self.late if waiting[0] > 0]
        if self.shuffled:
            random.Random(after).shuffle(page)  # noqa: S311
        return page

    def forget(self, before: int) -> None:
        self.oldest = before
        self.events = [event for event in self.events if event["sequence"] >= before]


class StudiolabSimulator(Simulator):
    """``state`` is a folder with one file of lists and one of events for each clinic, read at start and kept."""

    name = "studiolab"
    prefixes = ("/{clinic}" + API, API)

    def __init__(self, token: str = DEMO_TOKEN, state: Path | None = None) -> None:
        super().__init__(token)
        self.data: dict[str, dict[str, Rows]] = {}
        self.feeds: dict[str, Feed] = {}
        self._snapshots: dict[tuple[str, str], str] = {}
        self._state = state
        for file in sorted(state.glob("*.data.json")) if state else ():
            self.data[file.name.removesuffix(".data.json")] = json.loads(file.read_text())
        for file in sorted(state.glob("*.events.json")) if state else ():
            self.feeds[file.name.removesuffix(".events.json")] = Feed(**json.loads(file.read_text()))

    def handlers(self) -> dict[tuple[str, str], Handler]:
        handlers: dict[tuple[str, str], Handler] = {("GET", f"/{name}"): self._list for name in LISTS}
        return handlers | {("GET", "/events"): self._events}

    def admin(self) -> list[Route]:
        return [
            Route("/admin/data/{clinic}", self._data, methods=["GET", "PUT"]),
            *(
                Route(f"/admin/{name}/{{clinic}}", self._order, methods=["POST"])
                for name in ("events", "burst", "skip", "forget", "shuffle")
            ),
        ]

    def feed(self, clinic: str = DEMO) -> Feed:
        return self.feeds.setdefault(clinic, Feed())

    def hold(self, clinic: str, data: Mapping[str, Rows]) -> None:
        """Have ``data`` as the clinic's lists."""
        self.data[clinic] = {name: list(data.get(name, ())) for name in (*LISTS, AGENDAS)}
        self._snapshots.clear()
        if self._state:
            self._state.mkdir(parents=True, exist_ok=True)
            (self._state / f"{clinic}.data.json").write_text(json.dumps(self.data[clinic]))

    def publish(self, clinic: str, *publications: Mapping[str, Any]) -> Rows:
        """Publish events; returns them as they will be delivered."""
        feed = self.feed(clinic)
        published = [e for wanted in publications for e in feed.publish(Publication.model_validate(wanted))]
        self._keep(clinic)
        return published

    def burst(self, clinic: str, count: int, seed: int) -> None:
        self.publish(clinic, *random_events(self.data.get(clinic, {}), count, seed))

    def _keep(self, clinic: str) -> None:
        if self._state:
            feed = self.feed(clinic)
            kept = {"events": feed.events, "late": feed.late, "last": feed.last, "oldest": feed.oldest}
            self._state.mkdir(parents=True, exist_ok=True)
            (self._state / f"{clinic}.events.json").write_text(json.dumps(kept))

    async def _events(self, request: Request) -> Reply:
        after, limit = _number(request, "after", 0), _number(request, "limit", 500)
        if after is None or after < 0 or limit is None or not 1 <= limit <= 1000:
            return problem(400, "after or limit out of bounds")
        feed = self.feed(request.path_params.get("clinic", DEMO))
        if after < feed.oldest - 1:
            return problem(410, "Gone", oldest_sequence=feed.oldest)
        named = {} if feed.history is None else {"epoch": feed.history}
        return Reply({"items": feed.page(after, limit), "last_sequence": feed.last, **named})

    async def _list(self, request: Request) -> Reply:
        name = request.url.path.rsplit("/", 1)[-1]
        clinic = request.path_params.get("clinic", DEMO)
        rows = self.data.get(clinic, {}).get(name, [])
        if (clinic, name) not in self._snapshots:
            self._snapshots[clinic, name] = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
        since = request.query_params.get("updated_since")
        if since is not None:
            try:
                moment = datetime.fromisoformat(since)
            except ValueError:
                return problem(400, "updated_since is no instant")
            rows = [row for row in rows if datetime.fromisoformat(row["updated_at"]) >= moment]
        first, limit = _number(request, "page", 0), _number(request, "limit", 500)
        if first is None or first < 0 or limit is None or not 1 <= limit <= 1000:
            return problem(400, "page or limit out of bounds")
        following = first + limit
        return Reply(
            {
                "items": rows[first:following],
                "next_page": str(following) if following < len(rows) else None,
                "total": len(rows),
                "snapshot": self._snapshots[clinic, name],
            },
            etag=True,
        )

    async def _data(self, request: Request) -> Response:
        clinic = request.path_params["clinic"]
        if request.method == "PUT":
            self.hold(clinic, json.loads(await request.body()))
        return JSONResponse(self.data.get(clinic, {}))

    async def _order(self, request: Request) -> Response:
        clinic, order = request.path_params["clinic"], request.url.path.split("/")[2]
        body = json.loads(await request.body())
        feed = self.feed(clinic)
        if order == "events":
            wanted = TypeAdapter(list[Publication]).validate_python(body if isinstance(body, list) else [body])
            self.publish(clinic, *(publication.model_dump() for publication in wanted))
        elif order == "burst":
            self.burst(clinic, int(body["count"]), int(body.get("seed", 1)))
        elif order == "skip":
            feed.last += int(body["count"])
        elif order == "forget":
            feed.forget(int(body["before"]))
        else:
            feed.shuffled = bool(body["on"])
        self._keep(clinic)
        return JSONResponse({"last_sequence": feed.last, "oldest_sequence": feed.oldest, "events": len(feed.events)})


def _number(request: Request, name: str, default: int) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return default
    return int(text) if text.isascii() and text.isdigit() else None


def random_events(data: Mapping[str, Sequence[Mapping[str, Any]]], count: int, seed: int) -> Rows:
    """``count`` events about the clinic's records in a believable mix: most bookings are made, a fifth is moved, some
    are cancelled, most are accepted and end with a report. Bookings of one agenda never overlap."""
    dice = random.Random(seed)  # noqa: S311
    patients = [row["id"] for row in data.get("patients", ())]
    services = [row["id"] for row in data.get("services", ())]
    collaborators = [row["id"] for row in data.get("collaborators", ())]
    agendas = [row["id"] for row in data.get(AGENDAS, ())]
    if not (patients and services and agendas):
        raise ValueError("the clinic needs patients, services and agendas for events about them")
    start = datetime.now(UTC).replace(hour=6, minute=0, second=0, microsecond=0) + timedelta(days=1)
    occurred = datetime.now(UTC) - timedelta(hours=6)
    free = dict.fromkeys(agendas, start)
    events: Rows = []
    serial = 0

    def say(kind: str, entity: str, key: str, **values: Any) -> None:
        nonlocal occurred
        occurred += timedelta(milliseconds=400)
        events.append(
            {
                "type": kind,
                "id": str(uuid.UUID(int=dice.getrandbits(128), version=4)),
                "occurred_at": occurred.isoformat(),
                "entity": {"type": entity, "id": key},
                "data": values,
            }
        )

    def place() -> dict[str, Any]:
        agenda = dice.choice(agendas)
        begins = free[agenda]
        free[agenda] = begins + timedelta(minutes=30)
        return {
            "agenda_id": agenda,
            "starts_at": begins.isoformat(),
            "ends_at": (begins + timedelta(minutes=30)).isoformat(),
        }

    while len(events) < count:
        serial += 1
        appointment, patient = f"A{seed}-{serial}", dice.choice(patients)
        who = {"patient_id": patient, "service_id": dice.choice(services)}
        who["collaborator_id"] = dice.choice(collaborators) if collaborators else None
        where = place()
        say("appointment.created", "appointment", appointment, **who, **where, status="booked")
        fate = dice.random()
        if fate < 0.2:
            where = place()
            say("appointment.rescheduled", "appointment", appointment, **who, **where, status="booked")
        elif fate < 0.3:
            say("appointment.cancelled", "appointment", appointment, **who, **where, status="cancelled")
            continue
        if dice.random() < 0.6:
            arrival = {"appointment_id": appointment, "patient_id": patient, "accepted_at": occurred.isoformat()}
            say(
                "acceptance.created", "acceptance", f"C{appointment}", **arrival, desk=f"Sportello {dice.randint(1, 4)}"
            )
            report = {
                "appointment_id": appointment,
                "patient_id": patient,
                "title": "Referto",
                "url": "https://r.example",
            }
            say("report.published", "report", f"R{appointment}", **report, published_at=occurred.isoformat())
            if dice.random() < 0.05:
                say("report.withdrawn", "report", f"R{appointment}", **report, published_at=occurred.isoformat())
    return events[:count]


def _build(arguments: argparse.Namespace) -> Simulator:
    return StudiolabSimulator(arguments.token, arguments.state)


if __name__ == "__main__":
    main("Simulatore di studiolab", _build, 8081)
