"""What every adapter must pass, for whoever writes one: a stage is all that the author brings.

A stage is the system itself, as real as it gets (a server on a socket, files in a folder), which can be told what to
hold and how to misbehave. In the author's tests::

    @pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
    def test_it_conforms(check, stage):
        check(stage)

Needs ``hypothesis``; what a check finds wrong is an AssertionError.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from datetime import date
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, Protocol

from msgspec.structs import asdict

from polydesk_dagster.errors import PermanentError, PolydeskError, TransientError
from polydesk_dagster.sources.port import RECORDS, Numbers, Page, Source, Unchanged
from polydesk_dagster.sources.records import Listed
from polydesk_dagster.wire import clean, sort_records

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

FAULTS = ("silent", "status_500", "status_429", "cut", "other_type", "page_again")
"""Says nothing, fails, is asked too often, breaks off, answers in another shape, gives a page twice."""

EXAMPLES = 8
_DAY = date(2026, 3, 1)
Records = list[dict[str, Any]]


class Stage(Protocol):
    """A system that an adapter reads. Records are in the field names of ``port.RECORDS``."""

    @property
    def carries(self) -> Mapping[str, frozenset[str]]:
        """The lists that it has, and the fields of each that it can express."""

    @property
    def fixed(self) -> Mapping[str, dict[str, Any]]:
        """Fields that a list needs and the system cannot express: what every record has in them."""

    @property
    def faults(self) -> frozenset[str]:
        """Those of ``FAULTS`` that can befall it."""

    @property
    def secret(self) -> str:
        """What lets the adapter in."""

    def hold(self, kind: str, records: Records) -> None:
        """Have exactly ``records`` as the list ``kind``."""

    def spoil(self, kind: str) -> None:
        """Make the first record of what it holds one that cannot be read, but for its name."""

    def fail(self, fault: str) -> None:
        """Suffer ``fault`` from now on, until ``hold``."""

    def change_while_read(self, kind: str, records: Records) -> None:
        """Hold ``records`` instead, once the reading of ``kind`` has begun."""

    def open(self) -> Source: ...


def read(source: Source, kind: str, etag: str | None = None) -> tuple[Records, Page[Any]]:
    """A whole list as its reader collects it, by field, and its first page.

    Raises:
        AssertionError: pages are not numbered from 1, positions not from the start, or the total is another.
    """
    found: list[Any] = []
    first: Page[Any] | None = None
    rejected = expected = 0
    page: Page[Any] | None = None
    for page in source.list(kind, etag=etag):
        if page.number == 1:
            found, first, rejected, expected = [], page, 0, 1
        assert page.number == expected, "pages follow each other, and a list that begins again begins with 1"
        assert all(record.position >= 0 for record in page.rejected)
        expected += 1
        found += page.records
        rejected += len(page.rejected)
    assert first is not None, "an empty list is a page without records"
    assert page is not None
    assert page.total in {None, len(found) + rejected}, "the total counts every record"
    return [_plain(kind, record) for record in found], first


def _plain(kind: str, record: Any) -> dict[str, Any]:
    return asdict(record if isinstance(record, Listed) else RECORDS[kind].read(record))


def _wanted(stage: Stage, kind: str, records: Records) -> Records:
    fixed = stage.fixed.get(kind, {})
    return [asdict(RECORDS[kind].read(fixed | record)) for record in records]


def _sorted(records: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted(json.dumps(record, default=str, sort_keys=True) for record in records)


def _property(stage: Stage, check: Callable[[str, Records], None], **options: Any) -> None:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    cases = st.one_of([st.tuples(st.just(kind), lists(stage, kind, **options)) for kind in sorted(stage.carries)])

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(cases)
    def holds(case: tuple[str, Records]) -> None:
        check(*case)

    holds()


def a_list_comes_whole(stage: Stage) -> None:
    """What is held is what is read, whatever its texts, prices and dates, an empty list included."""

    def check(kind: str, records: Records) -> None:
        stage.hold(kind, records)
        with closing(stage.open()) as source:
            found, _ = read(source, kind)
        assert _sorted(found) == _sorted(_wanted(stage, kind, records))

    _property(stage, check)


def a_wrong_record_is_set_aside_and_the_rest_is_kept(stage: Stage) -> None:
    """It is rejected under its name, so that nobody takes it for gone, and the reason quotes nothing of it."""

    def check(kind: str, records: Records) -> None:
        stage.hold(kind, records)
        stage.spoil(kind)
        with closing(stage.open()) as source:
            pages = list(source.list(kind))
        rejected = [record for page in pages for record in page.rejected]
        found = [record for page in pages for record in page.records]
        if kind == "patients" and not rejected:  # handed on as they came
            rest = sort_records(RECORDS[kind], found, "id")
            rejected, found = list(rest.rejected), list(rest.valid)
        assert len(rejected) == 1
        assert len(found) == len(records) - 1
        key = RECORDS[kind].KEY
        if key is not None:
            assert rejected[0].key == records[0][key]
        said = str(rejected[0].reason.as_dict())
        texts = {str(records[0].get(name)) for name in ("last_name", "first_name", "name") if records[0].get(name)}
        assert not [text for text in texts if len(text) > 20 and text in said]

    _property(stage, check, least=2)


def an_unchanged_list_says_so(stage: Stage) -> None:
    """Where the source gives ETags: the same one raises Unchanged before a page, and a changed list does not."""

    def check(kind: str, records: Records) -> None:
        stage.hold(kind, records)
        with closing(stage.open()) as source:
            _, first = read(source, kind)
            if first.etag is None:
                return
            try:
                found = list(source.list(kind, etag=first.etag))
            except Unchanged:
                found = []
            assert not found, "an ETag that holds gives no page"
            stage.hold(kind, records[1:])
            again, _ = read(source, kind, first.etag)
            assert len(again) == len(records) - 1

    _property(stage, check, least=2)


def a_failed_read_is_no_list(stage: Stage) -> None:
    """Under each fault the list is whole or the reading raises; it is never short, and never empty."""

    faults = cycle(sorted(stage.faults))

    def check(kind: str, records: Records) -> None:
        for fault in islice(faults, 2):
            stage.hold(kind, records)
            stage.fail(fault)
            with closing(stage.open()) as source:
                try:
                    found, _ = read(source, kind)
                except (TransientError, PermanentError):
                    continue
            assert _sorted(found) == _sorted(_wanted(stage, kind, records)), f"{fault}: neither whole nor refused"

    _property(stage, check, least=3, most=4)


def a_list_that_changes_while_it_is_read_is_one_of_the_two(stage: Stage) -> None:
    """Never a mixture of what was there before and after."""

    def check(kind: str, records: Records) -> None:
        before, after = records[: len(records) // 2], records[len(records) // 2 :]
        stage.hold(kind, before)
        stage.change_while_read(kind, after)
        with closing(stage.open()) as source:
            try:
                found, _ = read(source, kind)
            except PolydeskError:
                return
        assert _sorted(found) in (_sorted(_wanted(stage, kind, before)), _sorted(_wanted(stage, kind, after)))

    _property(stage, check, least=6, most=8)


def it_is_the_same_source_each_time(stage: Stage) -> None:
    """Its epoch is stable and holds no secret, and it only has the lists that it says."""
    with closing(stage.open()) as first, closing(stage.open()) as second:
        assert first.epoch == second.epoch
        assert first.epoch
        assert stage.secret not in first.epoch
        assert first.capabilities.lists == frozenset(stage.carries)
        assert first.capabilities.lists <= frozenset(RECORDS)
        assert isinstance(first.capabilities.news, Numbers)
        assert first.capabilities.merged or not list(first.merged())


CHECKS: tuple[Callable[[Stage], None], ...] = (
    a_list_comes_whole,
    a_wrong_record_is_set_aside_and_the_rest_is_kept,
    an_unchanged_list_says_so,
    a_failed_read_is_no_list,
    a_list_that_changes_while_it_is_read_is_one_of_the_two,
    it_is_the_same_source_each_time,
)


def lists(stage: Stage, kind: str, *, least: int = 0, most: int = 6) -> SearchStrategy[Records]:
    """Lists of ``kind`` with the fields that the stage can express: names that look like numbers and like nothing
    (``NA``, ``007``), accents, quotes and separators, prices to the cent."""
    from hypothesis import strategies as st

    key = RECORDS[kind].KEY
    unique = (lambda record: record[key]) if key else (lambda record: (record["service_id"], record["valid_from"]))
    built = st.fixed_dictionaries({name: each for name, each in _fields(kind).items() if name in stage.carries[kind]})
    return st.lists(built, min_size=least, max_size=most, unique_by=unique)


def _fields(kind: str) -> dict[str, SearchStrategy[Any]]:
    from hypothesis import strategies as st

    letters = st.characters(codec="utf-8", categories=("L", "N", "P", "Zs"))
    odd = st.sampled_from(["NA", "null", "007", "1e5", "D'Alò", 'detto "Nino"', "a;b,c|d", "Straße", "=1+1"])
    text = st.one_of(odd, st.text(letters, min_size=1, max_size=12)).map(clean).filter(bool)
    name = st.from_regex(r"[A-Z][0-9]{1,5}", fullmatch=True) | st.sampled_from(["NA", "007", "0012", "54.00"])
    maybe = st.none() | text
    cents = st.decimals(0, 9999, places=2, allow_nan=False).map(lambda price: f"{price:.2f}")
    day = st.dates(min_value=_DAY.replace(year=1930), max_value=_DAY).map(str)
    later = st.none() | st.dates(min_value=_DAY).map(str)
    code = st.from_regex(r"[A-Z][0-9]{3}", fullmatch=True)
    fields: dict[str, dict[str, SearchStrategy[Any]]] = {
        "patients": {
            "id": name,
            "fiscal_code": st.none() | st.from_regex(r"[A-Z]{6}([0-9]{2}[A-Z]){2}[0-9]{3}[A-Z]", fullmatch=True),
            "last_name": text,
            "first_name": text,
            "sex": st.sampled_from(["M", "F", None]),
            "birth_date": st.none() | day,
            "address": maybe,
            "postal_code": st.none() | st.from_regex(r"[0-9]{5}", fullmatch=True),
            "email": st.none() | st.emails(),
            "mobile": st.none() | st.from_regex(r"3[0-9]{8}", fullmatch=True),
            "deceased_on": st.none() | day,
            "updated_at": st.just("2026-03-01T10:00:00+00:00"),
        },
        "collaborators": {
            "id": name,
            "title": st.sampled_from([None, "Dott.", "Prof.ssa"]),
            "last_name": text,
            "first_name": text,
            "fiscal_code": st.none() | st.just("RSSMRA80A01H501U"),
            "specialties": st.lists(st.sampled_from(["Cardiologia", "ORL", "Medicina generale"]), unique=True),
            "email": st.none() | st.emails(),
            "active": st.booleans(),
            "ends_on": st.none() | day,
        },
        "services": {
            "id": name,
            "code": name,
            "name": text,
            "duration_minutes": st.integers(1, 480),
            "preparation": maybe,
            "active": st.booleans(),
        },
        "agreements": {
            "id": name,
            "name": text,
            "kind": st.sampled_from(["insurance", "fund", "company", "public"]),
            "valid_from": day,
            "valid_to": later,
        },
        "prices": {
            "service_id": name,
            "agreement_id": st.none() | name,
            "collaborator_id": st.none() | name,
            "amount": cents,
            "currency": st.just("EUR"),
            "valid_from": day,
            "valid_to": later,
        },
        "municipalities": {
            "cadastral_code": code,
            "istat_code": st.from_regex(r"[0-9]{6}", fullmatch=True),
            "name": text,
            "other_name": maybe,
            "province": st.sampled_from(["NA", "MI", "BO"]),
            "region": st.sampled_from(["Campania", "Lombardia"]),
            "postal_codes": st.lists(st.from_regex(r"[0-9]{5}", fullmatch=True), max_size=2),
            "valid_from": day,
            "valid_to": later,
        },
    }
    return fields[kind]
