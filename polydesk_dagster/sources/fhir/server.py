"""Searches of a FHIR server: bundles page by page along their links, which never lead elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from polydesk_dagster.errors import PermanentError
from polydesk_dagster.remote import Dialect, Policy, Query, Remote
from polydesk_dagster.values import Value
from polydesk_dagster.wire import is_number

MOST_PAGES = 100_000
"""Pages of one search; more is a circle with ever new names."""

DIALECT = Dialect(root="/fhir", accept="application/fhir+json")


@dataclass(frozen=True, slots=True)
class Bundle:
    """One page of a search: the resources that match, and those that came with them."""

    matches: tuple[Any, ...]
    included: tuple[Any, ...]
    total: int | None
    following: str | None
    """What to ask for next, below the server's address."""


class Server:
    """The client of one server; close it. Raises TransientError and PermanentError and nothing else."""

    def __init__(self, system: Value, url: str, auth: str | httpx.Auth, policy: Policy | None = None) -> None:
        self.system = system
        self.remote = Remote(system, url, auth, policy, DIALECT)

    def close(self) -> None:
        self.remote.close()

    def count(self, resource: str) -> int | None:
        """How many there are, if the server says."""
        return self._bundle(f"/{resource}", {"_summary": "count"}).total

    def search(self, resource: str, query: Query) -> Iterator[Bundle]:
        """The pages of a search, until there is no link to a next one."""
        path: str | None = f"/{resource}"
        asked: Query | None = query
        seen: set[str] = set()
        while path is not None:
            bundle = self._bundle(path, asked)
            yield bundle
            path, asked = bundle.following, None
            if path is not None and (path in seen or len(seen) > MOST_PAGES):
                raise PermanentError("list_repeats_page", system=self.system, path=f"/{resource}")
            seen.add(path or "")

    def _bundle(self, path: str, query: Query | None) -> Bundle:
        body = self.remote.get(path, query).body
        entries = body.get("entry", []) if isinstance(body, dict) else None
        if not isinstance(body, dict) or body.get("resourceType") != "Bundle" or not isinstance(entries, list):
            raise PermanentError("remote_shape", system=self.system, path=path.partition("?")[0])
        matches: list[Any] = []
        included: list[Any] = []
        for entry in entries:
            resource = entry.get("resource") if isinstance(entry, dict) else entry
            mode = (entry.get("search") or {}).get("mode") if isinstance(entry, dict) else None
            if mode != "outcome":
                (included if mode == "include" else matches).append(resource)
        total = body.get("total")
        return Bundle(tuple(matches), tuple(included), total if is_number(total) else None, self._following(body))

    def _following(self, body: dict[str, Any]) -> str | None:
        links = body.get("link") or []
        urls = [link.get("url") for link in links if isinstance(link, dict) and link.get("relation") == "next"]
        if not urls:
            return None
        return self.below(urls[0])

    def below(self, url: object) -> str:
        """``url``, absolute or not, as a path below the server's address. Raises PermanentError where it leads anywhere
        else: the token would go with it."""
        base = self.remote.url
        if isinstance(url, str) and not urlsplit(url).scheme and not url.startswith("//"):
            relative = url if url.startswith(("/", "?")) else f"/{url}"
            root = urlsplit(base).path
            url = base + (relative.removeprefix(root) if relative.startswith(f"{root}/") else relative)
        if isinstance(url, str) and url.startswith(base) and url[len(base) : len(base) + 1] in {"/", "?"}:
            rest = url[len(base) :]
            if ".." not in urlsplit(rest).path.split("/") and not any(sign in rest for sign in "\\\r\n#"):
                return rest
        raise PermanentError("next_elsewhere", system=self.system)
