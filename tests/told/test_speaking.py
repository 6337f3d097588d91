"""How values, counts and outcomes read, in each language."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polydesk_dagster.outcome import Counts, Outcome, Report
from polydesk_dagster.told import teller
from polydesk_dagster.values import (
    Count,
    Duration,
    Instant,
    Money,
    Named,
    Reason,
    ServiceKey,
    Several,
    Share,
    Term,
    Value,
    from_json,
    to_json,
)
from tests.words import ANY

SUMMER_NIGHT = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "italian", "english", "german"),
    [
        (Money(Decimal("1130.5")), "1.130,50\xa0€", "€1,130.50", "1.130,50\xa0€"),
        (Share(0.125), "12,5 %", "12.5 %", "12,5 %"),
        (Instant(SUMMER_NIGHT), "29/03/2026 03:30", "29 Mar 2026 03:30", "29.03.2026 03:30"),
        (Instant(SUMMER_NIGHT, "Atlantic/Canary"), "29/03/2026 02:30", "29 Mar 2026 02:30", "29.03.2026 02:30"),
        (date(2026, 11, 2), "02/11/2026", "2 Nov 2026", "02.11.2026"),
        (time(9, 5), "09:05", "09:05", "09:05"),
        (Duration(4153), "1 ora e 9 minuti", "1 hour and 9 minutes", "1 Stunde und 9 Minuten"),
        (Duration(0), "0 secondi", "0 seconds", "0 Sekunden"),
        (Several(("a", 2)), "a e 2", "a and 2", "a und 2"),
        (True, "sì", "yes", "ja"),
        (None, "—", "—", "—"),
        (1234, "1234", "1234", "1234"),
        (Decimal("12.5"), "12,5", "12.5", "12,5"),
        (Count("counts.updated", 1), "1 modifica", "1 change", "1 Änderung"),
        (Count("counts.retired", 3), "3 tolte", "3 removed", "3 entfernt"),
        (ServiceKey("clear_caches"), "Svuota tutta la cache", "Clear all caches", "Alle Zwischenspeicher leeren"),
        (Named("89.01", "Visita"), "Visita (89.01)", "Visita (89.01)", "Visita (89.01)"),
        (Term("outcome", "partial"), "riuscito in parte", "partly done", "teilweise erledigt"),
        ("Anna\u202e\x00 Bo\u200b", "Anna Bo", "Anna Bo", "Anna Bo"),
    ],
)
def test_a_value_reads_as_people_write_it(value: Value, italian: str, english: str, german: str) -> None:
    assert [teller(language).value(value) for language in ("it", "en", "de")] == [italian, english, german]


def test_how_often_a_reason_held_is_said_once() -> None:
    italian = teller("it")
    assert italian.times(Reason("conflict", {"plan": 9}, "BO01", 2)) == ""
    assert italian.times(Reason("too_late", {}, None, 12)) == "(12)"
    assert italian.times(Reason("too_late", {}, None, 1)) == ""


def test_a_preview_never_reads_like_the_deed() -> None:
    seen = Report(Outcome.OK, Counts(updated=2), preview=True)
    assert teller().summary(seen) == "anteprima: niente è cambiato (2 da modificare)"
    assert teller().summary(Report(Outcome.OK, Counts(updated=2))) == "riuscito (2 modifiche)"


def test_a_reason_names_its_cause_and_one_that_is_unknown_shows_what_it_holds() -> None:
    cause = Reason("no_instant", {"given": "ieri"})
    assert teller().value(cause) == "«ieri» non è un istante RFC 3339."
    assert teller().reason(Reason("never_heard_of", {"n": 3, "why": cause})) == (
        "never_heard_of (count=1, n=3, why=«ieri» non è un istante RFC 3339.)"
    )
    assert teller().reason(Reason.from_dict({"code": "x", "message": "Com'era.", "clinic": None, "count": 1})) == (
        "Com'era."
    )


VALUES: st.SearchStrategy[Value] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.text(ANY),
        st.floats(allow_nan=False, allow_infinity=False),
        st.decimals(allow_nan=False, allow_infinity=False),
        st.dates(),
        st.times(),
        st.builds(Instant, st.datetimes(timezones=st.just(UTC))),
        st.builds(Money, st.decimals(allow_nan=False, allow_infinity=False)),
        st.builds(Share, st.floats(0, 1)),
        st.builds(Count, st.text(ANY), st.integers(0)),
        st.builds(Term, st.text(ANY), st.text(ANY)),
        st.builds(Named, st.text(ANY), st.text(ANY)),
        st.builds(ServiceKey, st.text(ANY)),
        st.builds(Duration, st.floats(0, 1e6)),
    ),
    lambda inner: st.one_of(
        st.builds(lambda items: Several(tuple(items)), st.lists(inner, max_size=3)),
        st.builds(Reason, st.text(ANY), st.dictionaries(st.text(ANY, min_size=1), inner, max_size=3)),
    ),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # deep values take long to draw on a busy machine
@given(VALUES)
def test_a_value_comes_back_out_of_json_as_it_was(value: Value) -> None:
    assert from_json(json.loads(json.dumps(to_json(value)))) == value
