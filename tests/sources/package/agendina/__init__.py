"""An adapter for a system that nobody has, in a package of its own: the smallest that uses all of the port.

Agendina has patients, services and prices. Its pages name the next one by its address, its tokens last as long as it
likes, its prices are whole cents and its validities end with their last day; it tells what was deleted and merged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import date, timedelta
from typing import Any

from polydesk_dagster.errors import PermanentError, TransientError
from polydesk_dagster.remote import Dialect, Policy, Remote, base_url
from polydesk_dagster.sources import restarts
from polydesk_dagster.sources.access import Address, Settings, TokenName
from polydesk_dagster.sources.port import (
    RECORDS,
    Capabilities,
    GoneError,
    Merged,
    News,
    Numbers,
    Page,
    Secret,
    Unchanged,
)
from polydesk_dagster.sources.records import Event
from polydesk_dagster.values import Reason
from polydesk_dagster.wire import Rejected, is_number, sort_records

DIALECT = Dialect(root="/agendina")
LATE, GONE = frozenset({401}), frozenset({410})


class Mine(Settings):
    """What an integration says of its Agendina."""

    url: Address
    token: TokenName


class Agendina:
    """The source of one clinic."""

    capabilities = Capabilities(
        frozenset({"patients", "services", "prices"}), Numbers.DENSE, merged=True, deleted=frozenset({"services"})
    )

    def __init__(self, clinic: str, settings: Mine, key: str, policy: Policy | None = None) -> None:
        self.system = Reason("system_source", {"of": clinic})
        self.epoch = epoch(settings)
        self.url, self.policy = settings.url, policy
        self.door = Remote(self.system, self.url, key, policy, DIALECT)
        self.inside: Remote | None = None

    def close(self) -> None:
        self.door.close()
        if self.inside is not None:
            self.inside.close()

    def ask(self, path: str, etag: str | None = None) -> Any:
        """What it answers, with a new token where it does not take the one that we have any more."""
        for _ in range(2):
            if self.inside is None:
                token = self.door.post("/session", {}, headers={}).body["token"]
                self.inside = Remote(self.system, self.url, token, self.policy, DIALECT)
            answer = self.inside.get(path, etag=etag, expected=LATE | GONE)
            if answer.status not in LATE:
                return answer
            self.inside.close()
            self.inside = None
        raise PermanentError("remote_token", system=self.system, path=path, status=401)

    def list(self, kind: str, *, etag: str | None = None) -> Iterator[Page[Any]]:
        yield from restarts.read(lambda restart: self.once(kind, None if restart else etag), self.system, f"/{kind}")

    def once(self, kind: str, etag: str | None) -> Iterator[Page[Any]]:
        path: str | None = f"/{kind}"
        model = RECORDS[kind]
        revision = None
        number = read = 0
        seen: set[str] = set()
        while path is not None:
            if path in seen:
                raise PermanentError("list_repeats_page", system=self.system, path=f"/{kind}")
            seen.add(path)
            answer = self.ask(path, etag if number == 0 else None)
            if answer.not_modified:
                raise Unchanged
            body = self.shaped(answer.body, path, records=list, count=int, revision=str)
            if revision not in {None, body["revision"]}:
                raise restarts.Moved
            revision, number = body["revision"], number + 1
            found = sort_records(model, [self.record(kind, item) for item in body["records"]], model.KEY)
            wrong = tuple(Rejected(each.position + read, each.key, each.reason, each.raw) for each in found.rejected)
            read += len(body["records"])
            path = self.below(body.get("more"))
            if path is None and read != body["count"]:
                raise TransientError(
                    "list_incomplete", system=self.system, path=f"/{kind}", read=read, total=body["count"]
                )
            valid: tuple[Any, ...] = found.valid
            if kind == "patients":  # as they came: an import looks closer only at those that it does not know
                bad = {each.position for each in found.rejected}
                valid = tuple(item for place, item in enumerate(body["records"]) if place not in bad)
            yield Page(number, valid, wrong, body["count"], revision, answer.etag if number == 1 else None)

    def record(self, kind: str, item: Any) -> Any:
        """Its record in our field names; what it cannot be is left for the record's type to refuse."""
        if kind != "prices" or not isinstance(item, dict):
            return item
        ours = {name: value for name, value in item.items() if name not in {"cents", "last_day"}}
        cents, last = item.get("cents"), item.get("last_day")
        ours["amount"] = f"{cents // 100}.{cents % 100:02}" if is_number(cents) else cents
        with suppress(TypeError, ValueError):
            last = (date.fromisoformat(last) + timedelta(days=1)).isoformat() if last else None
        ours["valid_to"] = last
        return ours

    def news(self, token: str | None, limit: int) -> News:
        after = int(token or 0)
        answer = self.ask(f"/changes?after={after}&most={limit}")
        if answer.status in GONE:
            raise GoneError(self.system, after, answer.body.get("oldest"))
        body = self.shaped(answer.body, "/changes", changes=list, last=int)
        found = sort_records(Event, body["changes"], "id")
        last = max((event.sequence for event in found.valid), default=after)
        return News(found.valid, found.rejected, body["last"], len(body["changes"]), token=str(last))

    def merged(self) -> list[Merged]:
        body = self.shaped(self.ask("/merges").body, "/merges", pairs=list)
        return [Merged(gone, into) for gone, into in body["pairs"]]

    def deleted(self, kind: str) -> list[str]:
        if kind not in self.capabilities.deleted:
            return []
        return list(self.shaped(self.ask(f"/gone/{kind}").body, f"/gone/{kind}", keys=list)["keys"])

    def below(self, url: Any) -> str | None:
        """The path of the next page, which is below the address that was checked."""
        base = f"{base_url(self.url, DIALECT.root)}/"
        if url is not None and not (isinstance(url, str) and url.startswith(base)):
            raise PermanentError("next_elsewhere", system=self.system)
        return None if url is None else f"/{url.removeprefix(base)}"

    def shaped(self, body: Any, path: str, **fields: type) -> dict[str, Any]:
        if isinstance(body, dict) and all(type(body.get(name)) is kind for name, kind in fields.items()):
            return body
        raise PermanentError("remote_shape", system=self.system, path=path)


def epoch(settings: Mine) -> str:
    return f"agendina {base_url(settings.url, DIALECT.root)}"


class Vendor:
    settings = Mine
    news = Numbers.DENSE

    def epoch(self, settings: Mine) -> str:
        return epoch(settings)

    def open(self, clinic: str, settings: Mine, secret: Secret, policy: Policy | None = None) -> Agendina:
        return Agendina(clinic, settings, secret(settings.token), policy)


VENDOR = Vendor()
