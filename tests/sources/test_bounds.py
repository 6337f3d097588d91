"""Numbers beyond all bounds and depth without end, before whoever reads what a system sends: refused by name, or read
as something that the database can keep; never an error of the language's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress

import httpx
import pytest

from polydesk_dagster import answers
from polydesk_dagster.errors import PermanentError, TransientError
from polydesk_dagster.providers import news, sms
from polydesk_dagster.sources.fhir import tokens
from polydesk_dagster.wire import is_number, storable

NUMBERS = (b"1e400", b"-1e400", b"1e999999999999", b"NaN", b"Infinity", b"-Infinity", b"9" * 400, b"9" * 5_000)
HOSTILE = {
    **{f"{number[:14].decode()} {len(number)}": b'{"id": "1", "total": %b}' % number for number in NUMBERS},
    **{f"bare {number[:14].decode()} {len(number)}": number for number in NUMBERS},
    "arrays": b"[" * 3_000,
    "closed arrays": b"[" * 3_000 + b"]" * 3_000,
    "objects": b'{"id":' * 3_000 + b"1" + b"}" * 3_000,
}


def _kept(read: Callable[[bytes], object]) -> Callable[[bytes], None]:
    def kept(body: bytes) -> None:
        found: object = None
        with suppress(TransientError, PermanentError):  # and nothing else
            found = read(body)
        json.dumps(storable(found), allow_nan=False, default=str)
        assert not (isinstance(found, dict) and is_number(found["total"]))

    return kept


def _unreadable(read: Callable[[bytes], object]) -> Callable[[bytes], None]:
    def refused(body: bytes) -> None:
        with pytest.raises(news.UnreadableError):
            read(body)

    return refused


def _nothing(read: Callable[[bytes], object]) -> Callable[[bytes], None]:
    def nothing(body: bytes) -> None:
        assert read(body) is None

    return nothing


READERS = {
    "a list": _kept(lambda body: answers.decode("Prova", body)),
    "a receipt": _unreadable(news.receipt),
    "a reply": _unreadable(news.reply),
    "the gateway's answer": _nothing(sms._told),
    "a token": _nothing(lambda body: tokens._token(httpx.Response(200, content=body))),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_nothing_that_is_sent_is_beyond_a_name(reader: Callable[[bytes], None], body: bytes) -> None:
    reader(body)


DEEP = {
    "lists": b"[" * 300 + b"]" * 300,
    "objects": b'{"id":' * 300 + b"1" + b"}" * 300,
    "behind brackets in texts": b'["]",' * 300 + b"1" + b',"["]' * 300,
    "behind quotes in texts": rb'["\"]\\",' * 300 + b"1" + rb',"[\\"]' * 300,
}


@pytest.mark.parametrize("body", DEEP.values(), ids=DEEP.keys())
def test_depth_is_refused_whatever_the_language_could_read(body: bytes) -> None:
    assert json.loads(body)
    with pytest.raises(PermanentError, match="remote_nested"):
        answers.decode("Prova", body)


def test_brackets_in_texts_are_no_depth() -> None:
    items = [{"nota": text, "voci": [[{}], []]} for text in ("[{(" * 500, '"[' * 500, "\\[" * 500, "]" * 500)]
    assert answers.decode("Prova", json.dumps(items).encode()) == items
