"""A dispatcher as a process of its own, to be killed: prints a line when it starts to work and one when it is done."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.engine import make_url

from polydesk_dagster.clinic.messages import hours
from polydesk_dagster.clinic.messages.dispatch import dispatch
from polydesk_dagster.clinic.messages.kinds import KINDS, Channel
from polydesk_dagster.clinic.messages.pace import Limits
from polydesk_dagster.clinic.messages.provider import Provider
from polydesk_dagster.database.engine import create_engine
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN
from polydesk_dagster.providers.sms import SmsGateway
from polydesk_dagster.providers.smtp import MailRelay
from tests.waiting import PATIENCE


def main(database: str, carrier: str, instant: str) -> None:
    as_of = datetime.fromisoformat(instant)
    providers: dict[Channel, Provider] = (
        {"email": MailRelay(carrier, "Polydesk <no-reply@polydesk.example>", patience=PATIENCE)}
        if carrier.startswith("smtp")
        else {"sms": SmsGateway(carrier, DEMO_TOKEN, "Polydesk", patience=3)}
    )
    engine = create_engine(make_url(database))
    with engine.connect() as connection:
        clinics = hours.load(connection, as_of)
    limits = Limits(
        run_cap=100_000,
        hourly_cap=100_000,
        sms_per_second=1e6,
        mail_per_second=1e6,
        claimed_at_once=40,  # each that is claimed when we are killed has to be looked up by the next
    )
    print("working", flush=True)
    tally = dispatch(engine, as_of, providers=providers, clinics=clinics, kinds=list(KINDS), limits=limits)
    print("done", dict(tally.closed), flush=True)
