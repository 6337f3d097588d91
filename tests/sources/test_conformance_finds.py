"""The kit finds what it is for: an adapter that does one thing wrong does not pass the check that is about it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from types import ModuleType
from typing import Any

import httpx
import pytest
from hypothesis import Phase, settings

from polydesk_dagster.demo.simulators.server import in_thread
from polydesk_dagster.errors import PolydeskError
from polydesk_dagster.sources import conformance
from polydesk_dagster.sources.port import GoneError, Merged, News, Numbers, Page, Unchanged
from polydesk_dagster.values import Reason
from tests.sources.agendina_server import KEY, AgendinaServer, AgendinaStage

CHECKS = {check.__name__: check for check in conformance.CHECKS}
Changes = Mapping[str, Any]


def theirs(wrong: Any) -> Any:
    """What it is without what it does wrong."""
    return super(type(wrong), wrong)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """What is found once is not made smaller; whether it is found is not left to chance."""
    before = settings.get_current_profile_name()
    settings.register_profile("quick", phases=[Phase.generate], report_multiple_bugs=False, derandomize=True)
    settings.load_profile("quick")
    yield
    settings.load_profile(before)


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[AgendinaServer, str]]:
    server = AgendinaServer()
    with in_thread(server) as url:
        yield server, url.replace("/api/v1", "/agendina")


@pytest.fixture
def stage(served: tuple[AgendinaServer, str], agendina: ModuleType) -> AgendinaStage:
    server, url = served
    state = vars(AgendinaServer())
    vars(server).update({name: state[name] for name in ("held", "changes", "merges", "gone", "faults", "following")})
    return AgendinaStage(server, url)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_an_adapter_of_another_package_conforms(check: Callable[[Any], None], stage: AgendinaStage) -> None:
    check(stage)


def pages(change: Callable[[Page[Any]], Page[Any] | None]) -> Changes:
    """Whose pages are changed; None is left out."""

    def once(self: Any, kind: str, etag: str | None) -> Iterator[Page[Any]]:
        number = 0
        for page in theirs(self).once(kind, etag):
            if (changed := change(page)) is not None:
                number += 1
                yield replace(changed, number=number)

    return {"once": once}


def records(change: Callable[[Any], Any]) -> Changes:
    def record(self: Any, kind: str, item: Any) -> Any:
        return change(theirs(self).record(kind, dict(item) if isinstance(item, dict) else item))

    return {"record": record}


def news(change: Callable[[Any], Any]) -> Changes:
    return {"news": lambda self, token, limit: change(theirs(self).news(token, limit))}


def says(**capabilities: Any) -> Callable[[Any], Changes]:
    return lambda base: {"capabilities": replace(base.capabilities, **capabilities)}


def quoted(page: Page[Any]) -> Page[Any]:
    said = (replace(each, reason=Reason("wrong", {"what": str(each.raw)})) for each in page.rejected)
    return replace(page, rejected=tuple(said))


def swallowed(empty: bool) -> Changes:
    """Whose list ends where the reading fails."""

    def listed(self: Any, kind: str, *, etag: str | None = None) -> Iterator[Page[Any]]:
        read = 0
        try:
            for page in theirs(self).list(kind, etag=etag):
                read += 1
                yield replace(page, total=None)
        except PolydeskError:
            if empty and not read:
                yield Page(1, (), (), 0, "", None)
            elif not read:
                raise

    return {"list": listed}


def careless(self: Any, kind: str, etag: str | None) -> Iterator[Page[Any]]:
    """Looks neither at the revision nor at the count, nor whether a page comes again."""
    path, number = f"/{kind}", 0
    while path is not None:
        body, number = self.ask(path).body, number + 1
        path = self.below(body["more"])
        yield Page(number, tuple(self.record(kind, item) for item in body["records"]), (), None, "", None)


def led_away(self: Any, url: Any) -> Any:
    if url is not None and not str(url).startswith(self.url):
        with suppress(httpx.HTTPError):
            httpx.get(url, timeout=0.1)
    return theirs(self).below(url)


def asked_once(self: Any, path: str, etag: str | None = None) -> Any:
    if self.inside is None:
        return theirs(self).ask(path, etag)
    return self.inside.get(path, etag=etag, expected=frozenset({410}))


def in_the_middle(self: Any, kind: str, etag: str | None) -> Iterator[Page[Any]]:
    for page in theirs(self).once(kind, None):
        yield page
        if etag is not None:
            raise Unchanged


def beyond(self: Any, token: str | None, limit: int) -> Any:
    return theirs(self).news(token, limit + 1)


def consumed(self: Any, token: str | None, limit: int) -> Any:
    read = vars(type(self)).get("read", 0)
    found = theirs(self).news(str(max(int(token or 0), read)), limit)
    type(self).read = int(found.token)
    return found


def from_the_oldest(self: Any, token: str | None, limit: int) -> Any:
    try:
        return theirs(self).news(token, limit)
    except GoneError as gone:
        return theirs(self).news(str((gone.oldest or 1) - 1), limit)


def nothing_new(self: Any, token: str | None, limit: int) -> Any:
    try:
        return theirs(self).news(token, limit)
    except PolydeskError:
        return News((), (), 0, 0, token=token or "")


def anew(found: Any) -> Any:
    events = tuple(event.model_copy(update={"id": str(uuid.uuid4())}) for event in found.events)
    return replace(found, events=events)


def without_patient(found: Any) -> Any:
    return replace(found, events=tuple(event.model_copy(update={"data": {}}) for event in found.events))


def all_one(found: Any) -> Any:
    return replace(found, events=tuple(event.model_copy(update={"sequence": 1}) for event in found.events))


def one_etag(self: Any, kind: str, etag: str | None) -> Iterator[Page[Any]]:
    if etag is not None:
        raise Unchanged
    yield from (replace(page, etag="1") for page in theirs(self).once(kind, None))


def with_merged(self: Any, kind: str, etag: str | None) -> Iterator[Page[Any]]:
    for page in theirs(self).once(kind, etag):
        again = tuple(page.records[-1] | {"id": each.gone} for each in self.merged()) if page.records else ()
        yield replace(page, records=page.records + again, total=None)


def all_deleted(self: Any, kind: str) -> list[str]:
    if kind not in self.capabilities.deleted:
        return []
    return [each.id for page in self.list(kind) for each in page.records] + theirs(self).deleted(kind)


WHOLE, WRONG, ETAG, FAILED, MIXED, AWAY, MERGED, DELETED, ORDER, TOKEN, NEWS_FAILED, KEPT, SAME, VENDOR = CHECKS
MUTANTS: dict[str, tuple[str, str, Any, frozenset[str]]] = {
    name: (check, said, changes, frozenset(faults))
    for name, (check, said, changes, *faults) in {
        "leaves out a page": (
            WHOLE,
            "what came is not what is held",
            pages(lambda page: None if page.number == 2 else replace(page, total=None)),
        ),
        "gives a record twice": (
            WHOLE,
            "total counts every record",
            pages(lambda page: replace(page, records=page.records + page.records[:1])),
        ),
        "counts what is not there": (
            WHOLE,
            "total counts every record",
            pages(lambda page: replace(page, total=(page.total or 0) + 1)),
        ),
        "no page for an empty list": (
            WHOLE,
            "an empty list is a page",
            pages(lambda page: page if page.total else None),
        ),
        "drops cents": (
            WHOLE,
            "what came is not",
            records(lambda it: it | {"amount": it["amount"][:-3]} if "amount" in it else it),
        ),
        "ends a day early": (
            WHOLE,
            "what came is not",
            records(lambda it: it | {"valid_to": None} if "valid_to" in it else it),
        ),
        "hides a wrong record": (
            WRONG,
            "handed on as rejected",
            pages(lambda page: replace(page, rejected=(), total=None)),
        ),
        "names no wrong record": (
            WRONG,
            "called by its name",
            pages(lambda page: replace(page, rejected=tuple(replace(each, key=None) for each in page.rejected))),
        ),
        "quotes a wrong record": (WRONG, "quotes nothing", pages(quoted)),
        "one ETag for all": (
            ETAG,
            "another list has another ETag",
            {"once": one_etag},
        ),
        "never unchanged": (ETAG, "gives no page", {"once": lambda self, kind, _: theirs(self).once(kind, None)}),
        "unchanged in the middle": (ETAG, "before its first page", {"once": in_the_middle}),
        "a failed list is short": (FAILED, "status_500 after 1: neither whole", swallowed(empty=False), "status_500"),
        "a failed list is empty": (FAILED, "cut after 0: neither whole", swallowed(empty=True), "cut"),
        "pages without records": (FAILED, "emptied after 0: neither whole", {"once": careless}, "emptied"),
        "a page for ever": (FAILED, "a list ends", {"once": careless}, "page_again"),
        "keeps an old token": (FAILED, "expired after 1 answers: not overcome", {"ask": asked_once}, "expired"),
        "before and after": (MIXED, "neither what was there before", {"once": careless}),
        "goes where it is led": (AWAY, "another address was asked", {"below": led_away}),
        "no word on merged": (MERGED, "before the list was read", {"merged": lambda _: []}),
        "lists merged": (MERGED, "what came is not", {"once": with_merged}),
        "unasked of merged": (
            MERGED,
            "does not say so",
            lambda base: says(merged=False)(base) | {"merged": lambda _: [Merged("a", "b")]},
        ),
        "no word on deleted": (DELETED, "deleted and is not told", {"deleted": lambda *_: []}),
        "all deleted": (DELETED, "still there", {"deleted": all_deleted}),
        "unasked of deleted": (DELETED, "does not say so", {"deleted": lambda *_: ["P1"]}),
        "newest first": (ORDER, "numbers rise", news(lambda found: replace(found, events=found.events[::-1]))),
        "stays where it is": (ORDER, "numbers rise from page", news(lambda found: replace(found, token="0"))),
        "more than asked for": (ORDER, "no more than were asked for", {"news": beyond}),
        "leaves out an event": (ORDER, "1 at a time", news(lambda found: replace(found, events=found.events[1:]))),
        "one number for all": (ORDER, "numbers rise", news(all_one)),
        "knows no last number": (ORDER, "its own last number", news(lambda found: replace(found, last_sequence=0))),
        "events without their data": (ORDER, "cannot be read", news(without_patient)),
        "news that it has not": (ORDER, "says that it has none", says(news=Numbers.NONE)),
        "given once": (TOKEN, "asked twice", {"news": consumed}),
        "another id each time": (TOKEN, "asked twice", news(anew)),
        "a failure is no news": (NEWS_FAILED, "neither right nor refused", {"news": nothing_new}, "status_500"),
        "no word on what is gone": (KEPT, "nobody says so", {"news": from_the_oldest}),
        "an epoch each time": (
            SAME,
            "the same system",
            {"epoch": property(lambda _: str(uuid.uuid4()), lambda *_: None)},
        ),
        "one epoch for all": (SAME, "two systems", {"epoch": property(lambda _: "agendina", lambda *_: None)}),
        "an epoch with the key": (
            SAME,
            "holds no secret",
            {"epoch": property(lambda self: f"{self.url} {KEY}", lambda *_: None)},
        ),
        "lists that it has not": (
            SAME,
            "those that there are",
            says(lists=frozenset({"patients", "services", "prices", "agreements"})),
        ),
        "an epoch of its own": (
            VENDOR,
            "the vendor's epoch",
            {"epoch": property(lambda self: self.url, lambda *_: None)},
        ),
        "news of its own": (VENDOR, "the vendor's word on news", says(news=Numbers.OURS)),
    }.items()
}


@pytest.mark.parametrize(("check", "said", "changes", "faults"), MUTANTS.values(), ids=MUTANTS)
def test_what_an_adapter_does_wrong_is_found(
    check: str, said: str, changes: Any, faults: frozenset[str], stage: AgendinaStage, agendina: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    base = agendina.Agendina
    monkeypatch.setattr(agendina, "Agendina", type("Wrong", (base,), changes(base) if callable(changes) else changes))
    stage.faults = faults or stage.faults
    with pytest.raises(AssertionError, match=said):
        CHECKS[check](stage)


@pytest.mark.parametrize("loose", [{"extra": "ignore"}, {}], ids=["any setting", "any variable"])
def test_settings_that_take_anything_are_found(
    loose: Any, stage: AgendinaStage, agendina: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pydantic import BaseModel, create_model

    fields: Any = {"url": (str, ...), "token": (str, ...)}
    model: type[BaseModel] = create_model("Loose", __config__={"extra": "forbid"} | loose, **fields)
    monkeypatch.setattr(agendina.Vendor, "settings", model)
    with pytest.raises(AssertionError, match="settings that make no sense"):
        CHECKS[VENDOR](stage)


@pytest.mark.parametrize(
    ("name", "check"), [("happen", ORDER), ("merge", MERGED), ("delete", DELETED), ("forget", KEPT)]
)
def test_a_stage_that_lets_nothing_happen_is_told(name: str, check: str, stage: AgendinaStage) -> None:
    class Without:
        def __getattr__(self, wanted: str) -> Any:
            if wanted == name:
                raise AttributeError(name)
            return getattr(stage, wanted)

    with pytest.raises(AssertionError, match="the stage must"):
        CHECKS[check](Without())  # type: ignore[arg-type]
