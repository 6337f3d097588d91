"""A process of its own that synchronises a list or applies or undoes a plan, to be killed at any moment."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import sqlalchemy as sa
from sqlalchemy import event

from polydesk_dagster import changes
from polydesk_dagster.changes import plans
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.changes.stage import Page
from polydesk_dagster.changes.synchronise import Evidence, settle, synchronise
from polydesk_dagster.database.engine import create_engine
from polydesk_dagster.sources.kinds.prices import PRICE
from polydesk_dagster.sources.kinds.services import SERVICE
from tests.changes import world as w
from tests.world import AS_OF

COUNT = 300


def prices(amount: int) -> list[object]:
    return [w.price(f"S{n}", f"{amount + n % 7}.00") for n in range(COUNT)]


def die_after(engine: sa.Engine, statements: int) -> None:
    """SIGKILL this process before its statement number ``statements``."""
    done = 0

    @event.listens_for(engine, "before_cursor_execute")
    def count(*_: object) -> None:
        nonlocal done
        done += 1
        if done == statements:
            os.kill(os.getpid(), signal.SIGKILL)


def services(first: int = 0) -> list[SimpleNamespace]:
    return [w.service(f"S{n}", f"89.{n:02d}", f"Visita {n}") for n in range(first, 30)]


def dying_pages(records: Iterable[object], last: int, size: int) -> Iterator[Page]:
    for page in w.pages(records, size=size):
        if page.number == last:
            os.kill(os.getpid(), signal.SIGKILL)
        yield page


def main(url: str, job: str, moment: int, argument: int, clinic: int) -> None:
    engine = create_engine(sa.engine.make_url(url))
    scope = Scope("sync_prices", "BO01", clinic)
    if job == "read":
        synchronise(engine, PRICE, scope, dying_pages(prices(argument), moment, 50), as_of=AS_OF)
        return
    if job == "absent":
        evidence = Evidence(lambda: dying_pages(services(argument), moment, 10))
        pages = w.pages(services(argument), size=10)
        synchronise(engine, SERVICE, replace(scope, service="sync_services"), pages, as_of=AS_OF, evidence=evidence)
        return
    with engine.connect():
        pass  # the first connection asks the server things of its own
    if moment:
        die_after(engine, moment)
    if job == "sync":
        report = synchronise(engine, PRICE, scope, w.pages(prices(argument)), as_of=AS_OF)
    elif job == "apply":
        with engine.connect() as connection:
            plan = plans.load(connection, argument)
        report = settle(engine, PRICE, scope, plan, as_of=AS_OF, actor="desk:anna")
    else:
        with engine.begin() as connection:
            report = changes.undo(connection, argument, as_of=AS_OF, actor="desk:anna")
    sys.stdout.write(report.outcome)
