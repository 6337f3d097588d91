"""A FHIR server as one clinic uses it: lists that did not change while they were read, and what happened since."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import httpx
from pydantic import ValidationError

from polydesk_dagster.errors import PermanentError, TransientError
from polydesk_dagster.remote import Policy
from polydesk_dagster.sources import restarts
from polydesk_dagster.sources.fhir import records
from polydesk_dagster.sources.fhir.records import MAKE, Options, Unfit, referred, replaced_by, replaces
from polydesk_dagster.sources.fhir.server import Server
from polydesk_dagster.sources.fhir.tokens import SmartTokens
from polydesk_dagster.sources.port import RECORDS, Capabilities, Merged, News, Numbers, Page, Unchanged
from polydesk_dagster.sources.records import Event
from polydesk_dagster.values import Reason
from polydesk_dagster.wire import Rejected, sort_records
from polydesk_dagster.wrong import reason

PAGE = 200
CAPABILITIES = Capabilities(frozenset(MAKE), Numbers.OURS, merged=True)

STATUSES = {
    "booked": "booked", "arrived": "booked", "checked-in": "booked", "fulfilled": "completed", "noshow": "no_show",
    "cancelled": "cancelled", "entered-in-error": "cancelled",
}  # fmt: skip
"""Of appointments; what is merely proposed, pending or on a waiting list is none yet."""


class Fhir:
    """The source; close it."""

    capabilities = CAPABILITIES

    def __init__(
        self,
        epoch: str,
        url: str,
        auth: str | httpx.Auth,
        options: Options,
        system: Reason,
        policy: Policy | None = None,
    ) -> None:
        self.epoch, self.options, self.system = epoch, options, system
        self.auth = auth
        self.server = Server(system, url, auth, policy)
        self._merged: tuple[Merged, ...] | None = None

    def close(self) -> None:
        self.server.close()
        if isinstance(self.auth, SmartTokens):
            self.auth.close()

    def list(self, kind: str, *, etag: str | None = None) -> Iterator[Page[Any]]:
        """A whole list. FHIR marks no state of one, so how many there are and which is the newest is asked before and
        after; where the server counts, that is the list's ETag.

        Raises:
            Unchanged, TransientError, PermanentError: as every source.
        """
        resource, _ = MAKE[kind]
        yield from restarts.read(lambda _: self._once(kind, etag), self.system, f"/{resource}")

    def _state(self, resource: str) -> tuple[int | None, str]:
        total = self.server.count(resource)
        newest = next(self.server.search(resource, {"_sort": "-_lastUpdated", "_count": 1})).matches[:1]
        return total, hashlib.sha256(json.dumps(newest, default=str).encode()).hexdigest() + f" {total}"

    def _etag(self, kind: str, total: int | None, state: str) -> str | None:
        if total is None or kind == "prices":  # whose services have a state of their own
            return None
        return hashlib.sha256((state + self.options.model_dump_json()).encode()).hexdigest()

    def _once(self, kind: str, etag: str | None) -> Iterator[Page[Any]]:
        resource, _ = MAKE[kind]
        total, state = self._state(resource)
        mark = self._etag(kind, total, state)
        if etag is not None and etag == mark:
            raise Unchanged
        options = self._options(kind)
        gone: set[str] = set()
        if kind == "patients":
            self._merged = tuple(self._marked())
            gone = {pair.gone for pair in self._merged}
        seen: set[str] = set()
        held: Page[Any] | None = None
        read = left_out = 0
        for number, bundle in enumerate(self.server.search(resource, {"_count": PAGE}), 1):
            ids = [it["id"] for it in bundle.matches if isinstance(it, dict) and isinstance(it.get("id"), str)]
            if not seen.isdisjoint(ids) or len(set(ids)) < len(ids):
                raise restarts.Moved  # it was shifted, or a page came twice
            seen.update(ids)
            if held is not None:
                yield held
            live = [it for it in bundle.matches if not (isinstance(it, dict) and it.get("id") in gone)]
            left_out += len(bundle.matches) - len(live)
            held = self._page(kind, number, live, read, state, mark, options)
            read += len(live)
        if total is not None and read + left_out != total:
            after, _ = self._state(resource)
            if after != total:
                raise restarts.Moved
            path = f"/{resource}"
            raise TransientError("list_incomplete", system=self.system, path=path, read=read + left_out, total=total)
        if self._state(resource)[1] != state:
            raise restarts.Moved
        assert held is not None
        yield held

    def _options(self, kind: str) -> Options:
        return self.options.model_copy(update={"services": self._services()}) if kind == "prices" else self.options

    def _services(self) -> dict[str, str]:
        """Ids of services by their code."""
        codes: dict[str, str] = {}
        for bundle in self.server.search("HealthcareService", {"_count": PAGE}):
            for it in bundle.matches:
                made = records.service(it, self.options) if isinstance(it, dict) and "id" in it else {}
                if made.get("code"):
                    codes.setdefault(made["code"], made["id"])
        return codes

    def _page(
        self, kind: str, number: int, found: Iterable[Any], read: int, state: str, mark: str | None, options: Options
    ) -> Page[Any]:
        resource, make = MAKE[kind]
        check = records.model(resource)
        made: list[dict[str, Any]] = []
        places: list[int] = []
        rejected: list[Rejected] = []
        for place, it in enumerate(found, read):
            try:
                check.model_validate(it)
                made.append(make(it, options))
                places.append(place)
            except ValidationError as error:
                rejected.append(Rejected(place, _id(it), reason(error), it))
            except Unfit as unfit:
                rejected.append(Rejected(place, _id(it), unfit.why, it))
        model = RECORDS[kind]
        ours = sort_records(model, made, model.KEY)
        wrong = {each.position for each in ours.rejected}
        rejected += [Rejected(places[each.position], each.key, each.reason, each.raw) for each in ours.rejected]
        valid: tuple[Any, ...] = ours.valid
        if kind == "patients":
            valid = tuple(it for place, it in enumerate(made) if place not in wrong)
        return Page(number, valid, tuple(rejected), None, state, mark if number == 1 else None)

    def merged(self) -> tuple[Merged, ...]:
        """Patients with a link ``replaced-by``, and those that another's link ``replaces``: of the two records a server
        may mark only the one that stays. As the list was last read: before its first page, for who is gone may stand
        before who says so."""
        return tuple(self._marked()) if self._merged is None else self._merged

    def _marked(self) -> Iterator[Merged]:
        pairs: dict[Merged, None] = {}
        for bundle in self.server.search("Patient", {"_count": PAGE}):
            for it in bundle.matches:
                if isinstance(it, dict) and isinstance(name := it.get("id"), str):
                    into = replaced_by(it)
                    pairs |= {Merged(name, into): None} if into is not None else {}
                    pairs |= {Merged(gone, name): None for gone in replaces(it)}
        yield from pairs

    def deleted(self, kind: str) -> tuple[str, ...]:  # noqa: ARG002
        """A server may delete for good and tell nobody: what is gone is found by its absence."""
        return ()

    def news(self, token: str | None, limit: int) -> News:
        """Appointments and patients that changed, oldest first. A token holds, for each, the moment of the last and the
        versions that were seen of that moment: a search can only begin at a moment, not after it."""
        place = json.loads(token) if token else {}
        made: list[dict[str, Any] | Rejected] = []
        size = 0
        for resource in ("Patient", "Appointment"):
            since, seen = place.get(resource, (None, []))
            fresh, slots = self._changed(resource, since, seen, limit - size)
            size += len(fresh)
            made += self._told(resource, fresh, slots, len(made))
            if fresh:
                last = _moment(fresh[-1])
                if last is None:
                    raise PermanentError("fhir_no_moment", system=self.system, path=f"/{resource}")
                versions = [_version(it) for it in fresh if _moment(it) == last]
                place[resource] = (last, (seen if last == since else []) + versions)
        events = [each | {"sequence": n} for n, each in enumerate(made, 1) if not isinstance(each, Rejected)]
        wrong = [each for each in made if isinstance(each, Rejected)]
        found = sort_records(Event, events, "id")
        return News(found.valid, (*found.rejected, *wrong), 0, size, token=json.dumps(place))

    def _changed(
        self, resource: str, since: str | None, seen: Collection[str], most: int
    ) -> tuple[Sequence[dict[str, Any]], dict[str, Any]]:
        """At most so many that changed, of the first page that has any new ones: of a moment at which many changed all
        at once a server may give fewer than we have seen. And the slots that came along, by id."""
        query: dict[str, str | int] = {"_sort": "_lastUpdated", "_count": most + len(seen)}
        query |= {"_lastUpdated": f"ge{since}"} if since else {}
        query |= {"_include": "Appointment:slot"} if resource == "Appointment" else {}
        for bundle in self.server.search(resource, query) if most > 0 else ():
            fresh = [it for it in bundle.matches if isinstance(it, dict) and _version(it) not in seen][:most]
            if fresh:
                return fresh, {it["id"]: it for it in bundle.included if isinstance(it, dict) and "id" in it}
        return [], {}

    def _told(
        self, resource: str, fresh: Sequence[dict[str, Any]], slots: dict[str, Any], before: int
    ) -> Sequence[dict[str, Any] | Rejected]:
        """The events of these, those apart that are none; a resource that is not well formed is a rejected one."""
        check = records.model(resource) if fresh else None
        services: dict[str, str] | None = None
        made: list[dict[str, Any] | Rejected] = []
        for it in fresh:
            try:
                if check is not None:
                    check.model_validate(it)
            except ValidationError as error:
                made.append(Rejected(before + len(made), _id(it), reason(error), it))
                continue
            if services is None and resource == "Appointment" and _actor(it, "HealthcareService") is None and _type(it):
                services = self._services()
            if (event := self._event(resource, it, slots, services or {})) is not None:
                made.append(event)
        return made

    def _event(
        self, resource: str, it: dict[str, Any], slots: dict[str, Any], services: dict[str, str]
    ) -> dict[str, Any] | None:
        key = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.epoch} {resource}/{_version(it)}"))
        common = {"id": key, "version": 1, "occurred_at": _moment(it)}
        if resource == "Patient":
            if replaced_by(it) is not None:
                return None
            entity = {"type": "patient", "id": it.get("id")}
            return common | {"type": "patient.updated", "entity": entity, "data": records.patient(it, self.options)}
        status = STATUSES.get(it.get("status") or "")
        if status is None:
            return None
        named = {name: _actor(it, of) for name, of in _ACTORS.items()}
        if named["service_id"] is None and (code := _type(it)) is not None:
            named["service_id"] = services.get(code, code)  # one that nobody knows is asked about by its code
        slot = next(filter(None, (referred(each, "Slot") for each in it.get("slot") or [])), None)
        schedule = referred((slots.get(slot or "") or {}).get("schedule"), "Schedule")
        data = named | {"agenda_id": schedule, "starts_at": it.get("start"), "ends_at": it.get("end"), "status": status}
        kind = "appointment.cancelled" if status == "cancelled" else "appointment.created"
        return common | {"type": kind, "entity": {"type": "appointment", "id": it.get("id")}, "data": data}


_ACTORS = {"patient_id": "Patient", "collaborator_id": "Practitioner", "service_id": "HealthcareService"}


def _actor(appointment: dict[str, Any], resource: str) -> str | None:
    """The first participant of that kind."""
    actors = (each.get("actor") for each in appointment.get("participant") or [])
    return next(filter(None, (referred(each, resource) for each in actors)), None)


def _type(appointment: dict[str, Any]) -> str | None:
    """The code of what is done."""
    return next(filter(None, map(records.code, appointment.get("serviceType") or [])), None)


def _id(it: Any) -> str | None:
    found = it.get("id") if isinstance(it, dict) else None
    return found if isinstance(found, str) else None


def _moment(it: dict[str, Any]) -> str | None:
    """When it last changed."""
    meta = it.get("meta")
    said = meta.get("lastUpdated") if isinstance(meta, dict) else None
    return said if isinstance(said, str) else None


def _version(it: dict[str, Any]) -> str:
    meta = it["meta"] if isinstance(it.get("meta"), dict) else {}
    return f"{it.get('id')}/{meta.get('versionId') or meta.get('lastUpdated')}"
