"""Agendina itself, the system that the package ``agendina`` reads, as the conformance kit needs it."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from polydesk_dagster.demo.simulators.faults import Reply, problem
from polydesk_dagster.demo.simulators.server import Handler, Simulator
from polydesk_dagster.sources import vendors
from polydesk_dagster.sources.conformance import Records
from polydesk_dagster.sources.port import Link, Source
from tests.sources.stages import ALL_FIELDS, FAILURES, HURRIED, ONCE

KEY = "the key of BO01"
PAGE = 2


class AgendinaServer(Simulator):
    """Pages of two records, each with the address of the next."""

    name = "agendina"
    prefixes = ("/agendina",)

    def __init__(self) -> None:
        super().__init__("nobody has it yet")
        self.held: dict[str, Records] = {"patients": [], "services": [], "prices": []}
        self.changes: list[dict[str, Any]] = []
        self.merges: list[tuple[str, str]] = []
        self.gone: list[str] = []
        self.following: tuple[str, Records] | None = None
        self.elsewhere: str | None = None

    def handlers(self) -> dict[tuple[str, str], Handler]:
        lists: dict[tuple[str, str], Handler] = {("GET", f"/{kind}"): self._list for kind in self.held}
        told: dict[tuple[str, str], Handler] = {
            ("GET", "/changes"): self._changes,
            ("GET", "/merges"): self._merges,
            ("GET", "/gone/services"): self._gone,
        }
        return lists | told

    def admin(self) -> list[Route]:
        return [Route("/agendina/session", self._session, methods=["POST"])]

    async def _session(self, request: Request) -> Response:
        if request.headers["Authorization"] != f"Bearer {KEY}":
            return JSONResponse({}, 403)
        self.token = str(uuid.uuid4())
        return JSONResponse({"token": self.token})

    async def _list(self, request: Request) -> Reply:
        kind, first = request.url.path.rsplit("/", 1)[-1], int(request.query_params.get("from", 0))
        rows = self.held[kind]
        revision = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
        more = f"{self.elsewhere or request.base_url}agendina/{kind}?from={first + PAGE}"
        if self.following is not None and self.following[0] == kind:
            (_, self.held[kind]), self.following = self.following, None
        return Reply(
            {
                "records": rows[first : first + PAGE],
                "count": len(rows),
                "revision": revision,
                "more": more if first + PAGE < len(rows) else None,
            },
            etag=True,
        )

    async def _changes(self, request: Request) -> Reply:
        after, most = (int(request.query_params[name]) for name in ("after", "most"))
        oldest = self.changes[0]["sequence"] if self.changes else 1
        if after < oldest - 1:
            return problem(410, "Gone", oldest=oldest)
        later = [each for each in self.changes if each["sequence"] > after]
        return Reply({"changes": later[:most], "last": self.changes[-1]["sequence"] if self.changes else 0})

    async def _merges(self, _: Request) -> Reply:
        return Reply({"pairs": self.merges})

    async def _gone(self, _: Request) -> Reply:
        return Reply({"keys": self.gone})


@dataclass
class AgendinaStage:
    """Agendina on a socket."""

    server: AgendinaServer
    url: str
    carries: Mapping[str, frozenset[str]] = field(
        default_factory=lambda: {kind: ALL_FIELDS[kind] for kind in ("patients", "services", "prices")}
    )
    fixed: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    faults: frozenset[str] = frozenset({*FAILURES, "other_type", "emptied", "page_again"})
    overcome: frozenset[str] = frozenset({"expired"})
    secrets: Mapping[str, str] = field(default_factory=lambda: {"POLYDESK_AGENDINA_TOKEN_BO01": KEY})
    silent: bool = False

    @property
    def link(self) -> Link:
        return Link("BO01", "agendina", {"url": self.url, "token": "POLYDESK_AGENDINA_TOKEN_BO01"})

    def hold(self, kind: str, records: Records) -> None:
        self.recover()
        self.server.merges, self.server.gone, self.server.following = [], [], None
        self.server.held[kind] = [written(kind, record) for record in records]

    def spoil(self, kind: str) -> None:
        self.server.held[kind][0][{"prices": "cents", "services": "duration_minutes"}.get(kind, "last_name")] = [7]

    def fail(self, fault: str, after: int) -> None:
        self.silent = fault == "silent"
        again = f"{self.url}/patients?from=0"
        of_pages = {
            "other_type": {"kind": "top", "field": "count", "value": "many"},
            "emptied": {"kind": "top", "field": "records", "value": []},
            "page_again": {"kind": "top", "field": "more", "value": again},
        }
        options = (FAILURES | of_pages)[fault]
        if fault == "other_type":
            self.server.fail(**options | {"field": "changes"}, path="/changes", after=after, times=None)
        self.server.fail(**options, after=after, times=1 if fault == "expired" else None)

    def recover(self) -> None:
        self.silent, self.server.elsewhere = False, None
        self.server.faults.clear()

    def change_while_read(self, kind: str, records: Records) -> None:
        self.server.following = (kind, [written(kind, record) for record in records])

    def lead_to(self, url: str) -> None:
        self.server.elsewhere = f"{url}/"

    def happen(self, key: str) -> None:
        data = {
            "patient_id": "P1", "service_id": "S1", "agenda_id": "A1", "status": "booked",
            "starts_at": "2026-03-12T09:00:00+01:00", "ends_at": "2026-03-12T09:30:00+01:00",
        }  # fmt: skip
        number = self.server.changes[-1]["sequence"] + 1 if self.server.changes else 1
        self.server.changes.append(
            {
                "id": str(uuid.uuid5(uuid.NAMESPACE_URL, key)),
                "sequence": number,
                "type": "appointment.created",
                "version": 1,
                "occurred_at": "2026-03-01T10:00:00+00:00",
                "entity": {"type": "appointment", "id": key},
                "data": data,
            }
        )

    def forget(self) -> None:
        del self.server.changes[:-1]

    def merge(self, gone: str, into: str) -> None:
        self.server.merges.append((gone, into))
        self._drop("patients", gone)

    def delete(self, kind: str, key: str) -> None:
        self.server.gone.append(key)
        self._drop(kind, key)

    def _drop(self, kind: str, key: str) -> None:
        self.server.held[kind] = [row for row in self.server.held[kind] if row["id"] != key]

    def open(self) -> Source:
        return self._opened(self.link)

    def other(self) -> Source:
        return self._opened(Link("BO01", "agendina", {**self.link.settings, "url": f"{self.url}/other"}))

    def _opened(self, link: Link) -> Source:
        return vendors.open_source(link, self.secrets.get, HURRIED if self.silent else ONCE)


def written(kind: str, record: dict[str, Any]) -> dict[str, Any]:
    """A record of ours as Agendina writes it."""
    if kind != "prices":
        return dict(record)
    theirs = {name: value for name, value in record.items() if name not in {"amount", "valid_to"}}
    until = record["valid_to"]
    last = None if until is None else str(date.fromisoformat(until) - timedelta(days=1))
    return theirs | {"cents": int(record["amount"].replace(".", "")), "last_day": last}
