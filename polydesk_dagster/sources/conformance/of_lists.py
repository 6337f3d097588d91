"""What a list must be: whole or refused, wrong records by name, and what the source itself says of merged and gone."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import cycle
from typing import Any

from polydesk_dagster.errors import PermanentError, PolydeskError, TransientError
from polydesk_dagster.sources.conformance.drawn import over_lists
from polydesk_dagster.sources.conformance.stage import (
    Deleting,
    Linking,
    Merging,
    Records,
    Stage,
    in_order,
    read,
    wanted,
)
from polydesk_dagster.sources.port import RECORDS, Merged, Unchanged
from polydesk_dagster.wire import sort_records

LATER = (0, 1, 2, 3)
"""After how many good answers a fault comes: also in the middle of a list."""
LONG = "Baldassarre Ermenegildo Quattrocchi"
"""A name that stands in no reason by chance."""


def a_list_comes_whole(stage: Stage) -> None:
    """What is held is what is read, whatever its texts, prices and dates, an empty list included."""

    def check(kind: str, records: Records) -> None:
        stage.hold(kind, records)
        with closing(stage.open()) as source:
            found, _ = read(source, kind)
        _is_whole(stage, kind, found, records)

    over_lists(stage, check, examples=12)


def _is_whole(stage: Stage, kind: str, found: Records, records: Records) -> None:
    came, held = in_order(found), in_order(wanted(stage, kind, records))
    assert came == held, f"{kind}: what came is not what is held: {came} instead of {held}"


def a_wrong_record_is_set_aside_and_the_rest_is_kept(stage: Stage) -> None:
    """It is rejected under its name, so that nobody takes it for gone, and the reason quotes nothing of it."""

    def check(kind: str, records: Records) -> None:
        names = stage.carries[kind] & {"first_name", "name", "address"}
        records = [records[0] | dict.fromkeys(names, LONG), *records[1:]]
        stage.hold(kind, records)
        stage.spoil(kind)
        with closing(stage.open()) as source:
            pages = list(source.list(kind))
        rejected = [record for page in pages for record in page.rejected]
        found = [record for page in pages for record in page.records]
        if kind == "patients" and not rejected:  # handed on as they came
            rest = sort_records(RECORDS[kind], found, "id")
            rejected, found = list(rest.rejected), list(rest.valid)
        assert len(rejected) == 1, "what cannot be read is handed on as rejected"
        assert len(found) == len(records) - 1, "the rest is kept"
        key = RECORDS[kind].KEY
        assert key is None or rejected[0].key == records[0][key], "a wrong record is called by its name"
        assert LONG not in str(rejected[0].reason.as_dict()), "a reason quotes nothing of the record"

    over_lists(stage, check, least=2)


def an_unchanged_list_says_so(stage: Stage) -> None:
    """Where the source gives ETags: the same one raises Unchanged before a page, and a changed list does not."""

    def check(kind: str, records: Records) -> None:
        stage.hold(kind, records)
        with closing(stage.open()) as source:
            _, first = read(source, kind)
            if first.etag is None:
                return
            assert _is_unchanged(stage, kind, first.etag), "an ETag that holds gives no page"
            stage.hold(kind, records[1:])
            assert not _is_unchanged(stage, kind, first.etag), "another list has another ETag"
            again, _ = read(source, kind, first.etag)
            assert len(again) == len(records) - 1, "another list is read"

    over_lists(stage, check, least=2)


def _is_unchanged(stage: Stage, kind: str, etag: str) -> bool:
    with closing(stage.open()) as source:
        try:
            read(source, kind, etag)
        except Unchanged:
            return True
        return False


def a_failed_read_is_no_list(stage: Stage) -> None:
    """Under each fault, from the first answer on or in the middle of the list, it is whole or the reading raises; it is
    never short, and never empty."""
    kinds = cycle(sorted(stage.carries))
    for fault in sorted(stage.faults):
        for after in LATER:

            def check(kind: str, records: Records, fault: str = fault, after: int = after) -> None:
                stage.hold(kind, records)
                stage.fail(fault, after)
                with closing(stage.open()) as source:
                    try:
                        found, _ = read(source, kind)
                    except (TransientError, PermanentError):
                        assert not after or fault not in stage.overcome, f"{fault} after {after} answers: not overcome"
                        return
                    finally:
                        stage.recover()
                whole = in_order(found) == in_order(wanted(stage, kind, records))
                assert whole, f"{fault} after {after}: neither whole nor refused"

            over_lists(stage, check, least=3, most=5, kinds=[next(kinds)], examples=1)


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
        states = [in_order(wanted(stage, kind, each)) for each in (before, after)]
        assert in_order(found) in states, f"{kind}: neither what was there before nor what came after"

    over_lists(stage, check, least=6, most=8)


def a_link_elsewhere_is_not_followed(stage: Stage) -> None:
    """Where pages name the next one by its address: the token goes nowhere but to the address that was checked."""
    if not isinstance(stage, Linking):
        return

    def check(kind: str, records: Records) -> None:
        with _stranger() as (url, called):
            stage.hold(kind, records)
            stage.lead_to(url)
            with closing(stage.open()) as source:
                try:
                    read(source, kind)
                    raise AssertionError("what another address holds is no part of the list")
                except PermanentError:
                    pass
                finally:
                    stage.recover()
            assert not called(), "another address was asked"

    over_lists(stage, check, least=5, most=6, examples=2)


@contextmanager
def _stranger() -> Iterator[tuple[str, Any]]:
    """An address where nobody has any business, and whether somebody called."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)

        def called() -> bool:
            try:
                listening.accept()[0].close()
            except BlockingIOError:
                return False
            return True

        yield f"http://127.0.0.1:{listening.getsockname()[1]}", called


def who_was_merged_is_told_and_listed_no_more(stage: Stage) -> None:
    """Where the adapter says so; otherwise it tells of nobody."""
    with closing(stage.open()) as source:
        says = source.capabilities.merged
        assert says or not list(source.merged()), "it tells of merged patients and does not say so"
    if not says:
        return
    assert isinstance(stage, Merging), "the adapter says that it tells of merged patients: the stage must merge some"

    def check(kind: str, records: Records) -> None:
        gone, into = records[0]["id"], records[-1]["id"]
        stage.hold(kind, records)
        with closing(stage.open()) as source:
            assert not list(source.merged()), "nobody is merged yet"
        stage.merge(gone, into)
        with closing(stage.open()) as source:
            assert list(source.merged()) == [Merged(gone, into)], "also before the list was read"
        with closing(stage.open()) as source:
            found, _ = read(source, kind)
            assert list(source.merged()) == [Merged(gone, into)], "also after it was read"
        _is_whole(stage, kind, found, records[1:])

    over_lists(stage, check, least=2, kinds=["patients"], examples=4)


def whom_it_says_to_be_gone_is_gone(stage: Stage) -> None:
    """Where the adapter says so, list by list; of the others it says nothing."""
    with closing(stage.open()) as source:
        says = source.capabilities.deleted
        assert says <= source.capabilities.lists, "lists that it does not have"
        for kind in source.capabilities.lists - says:
            assert not list(source.deleted(kind)), f"it tells what of {kind} was deleted and does not say so"
    if not says:
        return
    assert isinstance(stage, Deleting), "the adapter says that it tells what was deleted: the stage must delete some"

    def check(kind: str, records: Records) -> None:
        key = RECORDS[kind].KEY
        assert key is not None, f"a record of {kind} has no name by which it could be told"
        stage.hold(kind, records)
        with closing(stage.open()) as source:
            assert records[0][key] not in set(source.deleted(kind)), "it is still there"
        stage.delete(kind, records[0][key])
        with closing(stage.open()) as source:
            assert records[0][key] in set(source.deleted(kind)), "it was deleted and is not told"
            assert not {each[key] for each in records[1:]} & set(source.deleted(kind)), "they are still there"
            found, _ = read(source, kind)
        _is_whole(stage, kind, found, records[1:])

    over_lists(stage, check, least=2, kinds=says, examples=4)
