"""Searches of a FHIR server: bundles page by page along their links, which never lead elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard
from urllib.parse import urlsplit

import httpx

from polydesk_dagster.errors import PermanentError
from polydesk_dagster.remote import Dialect, Policy, Query, Remote
from polydesk_dagster.values import Value
from polydesk_dagster.wire import is_number

MOST_PAGES = 100_000
"""Pages of one search; more is a circle with ever new names."""

UNFINISHED = frozenset({"suppressed", "incomplete", "too-costly", "timeout", "throttled", "exception", "transient"})
"""Codes of https://hl7.org/fhir/R4/valueset-issue-type.html by which a server says that there is more than it gave."""

DIALECT = Dialect(root="/fhir", accept="application/fhir+json")


@dataclass(frozen=True, slots=True)
class Bundle:
    """One page of a search: the resources that match, and those that came with them."""

    matches: tuple[Any, ...]
    included: tuple[Any, ...]
    total: int | None
    following: str | None
    """What to ask for next, below the server's address."""


def _is_outcome(resource: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(resource, dict) and resource.get("resourceType") == "OperationOutcome"


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
        if _is_outcome(body):
            self._check_outcome(body, path)
        if not isinstance(body, dict) or body.get("resourceType") != "Bundle" or not isinstance(entries, list):
            raise PermanentError("remote_shape", system=self.system, path=path.partition("?")[0])
        matches: list[Any] = []
        included: list[Any] = []
        for entry in entries:
            resource = entry.get("resource") if isinstance(entry, dict) else entry
            mode = (entry.get("search") or {}).get("mode") if isinstance(entry, dict) else None
            if _is_outcome(resource):
                self._check_outcome(resource, path)
            elif mode != "outcome":
                (included if mode == "include" else matches).append(resource)
        total = body.get("total")
        return Bundle(tuple(matches), tuple(included), total if is_number(total) else None, self._following(body))

    def _check_outcome(self, outcome: dict[str, Any], path: str) -> None:
        """Raises PermanentError where the server says that something went wrong, or that it has not given everything:
        what is missing would be taken for gone. What it says is not quoted."""
        for issue in outcome.get("issue") or []:
            severity, code = (issue.get("severity"), issue.get("code")) if isinstance(issue, dict) else (None, None)
            if severity in {"fatal", "error"} or code in UNFINISHED:
                code = code if isinstance(code, str) and re.fullmatch("[a-z-]{1,30}", code) else "?"
                raise PermanentError("fhir_outcome", system=self.system, path=path.partition("?")[0], code=code)

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
