"""Lists as they are drawn: names that look like numbers and like nothing, accents, quotes, prices to the cent."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import TYPE_CHECKING, Any

from polydesk_dagster.sources.conformance.stage import Records, Stage
from polydesk_dagster.sources.port import RECORDS
from polydesk_dagster.wire import clean

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

EXAMPLES = 2
"""Lists that a check draws of each kind, where it is not about what stands in them."""

_DAY = date(2026, 3, 1)


def over_lists(stage: Stage, check: Callable[[str, Records], None], **options: Any) -> None:
    """Hold ``check`` to lists of every kind that the stage carries, each kind by itself: none is left to chance."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    kinds = options.pop("kinds", stage.carries)
    examples = options.pop("examples", EXAMPLES)
    for kind in sorted(kinds):

        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(st.just(kind), lists(stage, kind, **options))
        def holds(kind: str, records: Records) -> None:
            check(kind, records)

        holds()


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
