"""What ``polydesk up`` says once everything answers, and the first night of a fresh demo: ``python -m
polydesk_dagster.commands.welcome LANGUAGE FRESH [LINE …]``, in a process that ends with it. Every start waits for what
is imported here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime

import sqlalchemy as sa

from polydesk_dagster import settings as configuration
from polydesk_dagster.commands import show
from polydesk_dagster.commands.installation import Installation, is_demo
from polydesk_dagster.commands.prepared import FRESH
from polydesk_dagster.commands.show import say
from polydesk_dagster.database.engine import business_url
from polydesk_dagster.database.migrate import serving
from polydesk_dagster.demo import house
from polydesk_dagster.errors import PolydeskError, in_brief
from polydesk_dagster.front.addresses import BOOKING, FRONT
from polydesk_dagster.home import keep_to_ourselves
from polydesk_dagster.runtime.loaded import code_loads
from polydesk_dagster.told.state import told_of_finding
from polydesk_dagster.web import users


def main(arguments: Sequence[str]) -> int:
    """Exit status 4, and why, for what failed."""
    keep_to_ourselves()
    language, fresh, *lines = arguments
    show.speak(language)
    settings = configuration.load()
    engine = serving(business_url(settings))
    try:
        _welcome(Installation(settings, engine), lines, fresh=fresh == FRESH)
    except PolydeskError as error:
        show.err().print(show.told().reason(error.reason), style="red")
        return 4
    except Exception as error:  # noqa: BLE001 - its words may quote a patient's row
        show.err().print(in_brief(error), style="red")
        return 4
    finally:
        engine.dispose()
    return 0


def _welcome(installation: Installation, lines: Sequence[str], *, fresh: bool) -> None:
    settings = installation.settings
    console = show.out()
    for line in lines:
        console.print("  " + line)
    if is_demo(installation.engine):
        _let_in(installation)
    else:
        with installation.engine.connect() as connection:
            if not users.listed(connection):
                console.print(say("command.up.nobody"), style="yellow")
            if not connection.scalar(sa.text("SELECT count(*) FROM clinic")):
                console.print(say("command.up.no_clinic"), style="yellow")
    console.print(say("command.up.booking", where=f"{settings.address}{FRONT}{BOOKING}"), soft_wrap=True)
    console.print(
        f'  polydesk tokens issue prova --reason "{say("command.up.booking_why")}"', style="bold", soft_wrap=True
    )
    if fresh:
        from polydesk_dagster.commands import night

        console.print(say("command.up.night"))
        night.tell(night.run(installation))
    for finding in code_loads(settings.home):
        if not finding.ok:
            console.print(told_of_finding(show.told(), finding), style="red", soft_wrap=True)
    console.print(say("command.up.ready", address=settings.address), style="bold green")


def _let_in(installation: Installation) -> None:
    """Let the demo's owner in by one link, and say who else is there."""
    now = datetime.now(UTC)
    with installation.engine.begin() as connection:
        token = house.welcome(connection, now)
        people, password = house.others(connection, now)
    console = show.out()
    console.print(say("command.up.enter"))
    console.print(f"  {installation.settings.address}/ingresso?gettone={token}", style="bold", soft_wrap=True)
    console.print(say("command.up.others", password=password))
    for role, email in people:
        console.print(f"  {role:<12}{email}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
