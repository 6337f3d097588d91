"""A sender that says what memory it takes: ``python -m tests.messages.appetite DATABASE INSTANT``."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from polydesk_dagster.clinic.messages import hours, planning
from polydesk_dagster.clinic.messages.dispatch import dispatch
from polydesk_dagster.clinic.messages.kinds import Channel
from polydesk_dagster.clinic.messages.pace import Limits
from polydesk_dagster.clinic.messages.provider import Answer, Fate, Outgoing
from polydesk_dagster.database.engine import create_engine

FEW, MANY = 700, 2_000


class Swift:
    """A carrier that takes everything at once."""

    name = "swift"
    channel: Channel = "sms"
    can_look_up = True

    async def __aenter__(self) -> object:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def send(self, outgoing: Outgoing) -> Answer:
        return Answer(Fate.ACCEPTED, reference=outgoing.key)

    async def look_up(self, key: str) -> Answer:
        raise NotImplementedError


def send(engine: sa.Engine, as_of: datetime, count: int) -> None:
    limits = Limits(run_cap=count, hourly_cap=10**6, sms_per_second=1e6, mail_per_second=1e6)
    with engine.connect() as connection:
        clinics = hours.load(connection, as_of)
    tally = dispatch(engine, as_of, providers={"sms": Swift()}, clinics=clinics, kinds=["reminder"], limits=limits)
    assert tally.total("sent") == count


def own_mb() -> float:
    """The most that this program itself has had: what ``getrusage`` says counts whoever started it too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main(database: str, instant: str) -> None:
    as_of = datetime.fromisoformat(instant)
    engine = create_engine(make_url(database))
    with engine.begin() as connection:
        planning.plan(connection, "reminder", as_of, hours.load(connection, as_of))
    took = []
    for count in (FEW, MANY):
        send(engine, as_of, count)
        took.append(own_mb())
    print(json.dumps({"few_mb": took[0], "many_mb": took[1]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
