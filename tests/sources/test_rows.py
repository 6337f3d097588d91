"""Records of long lists: what is taken at once is what the careful reading makes of it, and nothing else."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict
from pydantic import ValidationError

from polydesk_dagster.answers import Answer, decode
from polydesk_dagster.sources.port import RECORDS
from polydesk_dagster.sources.records import Listed, Price
from polydesk_dagster.sources.studiolab import client
from polydesk_dagster.told import teller
from polydesk_dagster.values import Reason
from polydesk_dagster.wire import carefully, sort_records
from polydesk_dagster.wrong import reason
from tests.words import ANY

SOUND: dict[str, dict[str, Any]] = {
    "municipalities": {"cadastral_code": "A944", "istat_code": "037006", "name": "Bologna", "province": "BO",
                       "region": "Emilia-Romagna", "postal_codes": ["40121"], "valid_from": "1861-03-17"},
    "patients": {"id": "P1", "last_name": "Rossi", "first_name": "Anna", "sex": "F", "birth_date": "1980-01-02",
                 "birth_place": "A944", "updated_at": "2026-01-01T10:00:00+01:00"},
    "collaborators": {"id": "D1", "last_name": "Bianchi", "first_name": "Elena", "specialties": ["Cardiologia"],
                      "active": True},
    "services": {"id": "S1", "code": "89.7", "name": "Visita", "duration_minutes": 20, "active": True},
    "agreements": {"id": "A1", "name": "Fondo", "kind": "fund", "valid_from": "2026-01-01"},
    "prices": {"service_id": "S1", "agreement_id": "A1", "amount": "51.00", "patient_share": "20.50",
               "currency": "EUR", "vat_rate": "22", "valid_from": "2026-01-01", "valid_to": "2027-01-01"},
}  # fmt: skip

HOSTILE = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.decimals(), st.floats(), st.text(ANY, max_size=4),
    st.sampled_from([
        "", " ", " S1 ", "S1\n", "\ufeffS1", "é", "S" * 255, "S" * 256, "51,00", "1.234,50", "1.234", "1e3", "NaN",
        "-1", "100", "100.01", "00.00", "99999999.99", "999999999", "2026-02-30", "2026-1-1", "2026-01-01Z",
        "0000-01-01", "2026-01-01T00:00:00.9999999Z", "2026-01-01t00:00:00z",
        "2026-01-01T00:00:00", "2026-01-01T00:00:00Z", "2026-01-01 00:00:00+01:00", "2026-01-01T24:00:00Z", "a944",
        "A944\n", "٣", "usd", "M", "fund", "480", 0, 1, 480, 481, 20.0, "1900-01-01", "2999-12-31",
    ]),
    st.lists(st.sampled_from(["40121", " 40121", 40121, None, "x"]), max_size=3),
    st.dictionaries(st.text(ANY, max_size=2), st.integers(), max_size=2),
)  # fmt: skip


@pytest.mark.parametrize("field", ["amount", "patient_share", "vat_rate"])
def test_a_number_that_begins_with_a_nought_is_read_without_it_beside_whatever_else(field: str) -> None:
    model, sound = RECORDS["prices"], SOUND["prices"]
    given = "05" if field == "vat_rate" else "00.00" if field == "patient_share" else "051.00"
    for more in ({}, {"more": 1}):
        (record,) = sort_records(model, [sound | {field: given} | more]).valid
        assert asdict(record)[field] == str(Decimal(given))


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECORDS)
@given(data=st.data())
def test_both_readings_of_a_record_agree(kind: str, data: st.DataObject) -> None:
    model, sound = RECORDS[kind], SOUND[kind]
    spoilt = data.draw(st.dictionaries(st.sampled_from([*model.__struct_fields__, "more"]), HOSTILE, max_size=3))
    left_out = data.draw(st.sets(st.sampled_from(model.__struct_fields__), max_size=1))
    item = {name: value for name, value in (sound | spoilt).items() if name not in left_out}
    read = sort_records(model, [item])
    assert ([asdict(record) for record in read.valid], [each.reason for each in read.rejected]) == _meant(model, item)
    assert [each.raw for each in read.rejected] == [item][: len(read.rejected)]


ODD = HOSTILE.filter(lambda value: type(value) is not Decimal)


@pytest.mark.parametrize("kind", RECORDS)
@given(data=st.data())
def test_a_page_that_is_read_in_one_go_is_what_is_read_record_by_record(kind: str, data: st.DataObject) -> None:
    model = RECORDS[kind]
    spoilt = data.draw(st.dictionaries(st.sampled_from([*model.__struct_fields__, "more"]), ODD, max_size=2))
    page = {"items": [SOUND[kind], SOUND[kind] | spoilt], "total": 2, "snapshot": "s", "next_page": "2"}
    page |= data.draw(st.dictionaries(st.sampled_from([*page, "more"]), ODD, max_size=1))
    body = json.dumps(page, ensure_ascii=data.draw(st.booleans())).encode("utf-8", "surrogatepass")
    try:
        at_once = client._shape(model).decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    items, *about = client._page("lab", "/x", Answer(200, decode("lab", body)))
    assert tuple(about) == client._page("lab", "/x", Answer(200, at_once))[1:]
    if kind == "patients":
        assert at_once.items == items
    else:
        read = sort_records(model, items)
        assert (list(map(asdict, at_once.items)), ()) == (list(map(asdict, read.valid)), read.rejected)


@pytest.mark.parametrize("kind", RECORDS)
def test_a_page_that_is_written_as_it_should_be_is_read_in_one_go(kind: str) -> None:
    page = {"items": [SOUND[kind]], "total": 1, "snapshot": "s", "next_page": None}
    (item,) = client._shape(RECORDS[kind]).decode(json.dumps(page).encode()).items
    assert item == SOUND[kind] if kind == "patients" else isinstance(item, RECORDS[kind])


def _meant(model: type[Listed], item: dict[str, Any]) -> tuple[list[dict[str, Any]], list[Reason]]:
    try:
        return [dict(carefully(model).model_validate(item))], []
    except ValidationError as error:
        return [], [reason(error)]


@pytest.mark.parametrize("kind", [kind for kind, model in RECORDS.items() if model.AT_ONCE])
def test_what_is_written_as_it_should_be_is_taken_at_once(kind: str) -> None:
    msgspec.convert(SOUND[kind], RECORDS[kind])


def test_everything_that_is_wrong_with_a_price_is_said_at_once() -> None:
    item = SOUND["prices"] | {"amount": 51.0, "valid_from": "2026-02-30", "currency": "CHF"}
    (rejected,) = sort_records(Price, [item]).rejected
    said = teller("it").reason(rejected.reason)
    assert all(field in said for field in ("amount", "valid_from", "currency"))


def test_a_price_is_exact_text_and_its_days_are_days() -> None:
    (price,) = sort_records(Price, [SOUND["prices"] | {"amount": "1.234,50", "valid_to": " "}]).valid
    assert (price.amount, price.valid_from, price.valid_to) == ("1234.50", date(2026, 1, 1), None)
    contradicting = SOUND["prices"] | {"amount": "9.00", "patient_share": "10.00"}
    (rejected,) = sort_records(Price, [contradicting]).rejected
    assert rejected.reason.code == "wire_share_above_amount"
