"""The command ``polydesk``."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Annotated

import psycopg
import typer
from sqlalchemy.exc import SQLAlchemyError

from polydesk_dagster.commands import (
    ask,
    clinics,
    db,
    demo,
    doctor,
    events,
    messages,
    patients,
    plan,
    report,
    run,
    services,
    show,
    up,
    users,
)
from polydesk_dagster.commands.show import say
from polydesk_dagster.errors import ConfigurationError, PolydeskError, in_brief
from polydesk_dagster.told import LANGUAGES

app = typer.Typer(
    name="polydesk",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(*, asked: bool) -> None:
    if asked:
        typer.echo(f"polydesk {version('polydesk-dagster')}")
        raise typer.Exit


@app.callback()
def polydesk(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Scrive la versione ed esce.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Il motore di Impostazioni → Servizi di Polydesk."""


app.command()(up.up)
app.command()(demo.demo)
app.command()(services.services)
app.command()(run.run)
app.add_typer(plan.app, name="plan")
app.command()(ask.ask)
app.command()(report.report)
app.command()(clinics.clinics)
app.command()(clinics.integration)
app.add_typer(db.app, name="db")
app.add_typer(patients.app, name="patients")
app.add_typer(messages.app, name="messages")
app.add_typer(events.app, name="events")
app.add_typer(users.app, name="users")
app.command()(doctor.doctor)


def main() -> None:
    """Entry of the console script. Exit status: 2 for wrong usage or configuration, 4 for what failed."""
    os.umask(0o077)  # whatever this process and its children write is the installation's alone
    arguments = _language(sys.argv[1:])
    try:
        app(args=arguments, prog_name="polydesk")
    except PolydeskError as error:
        show.err().print(show.told().reason(error.reason), style="red")
        raise SystemExit(2 if isinstance(error, ConfigurationError) else 4) from None
    except (SQLAlchemyError, psycopg.Error) as error:  # its message and its traceback may quote a patient's row
        italian = (
            f"Il database non ha accettato l'operazione ({in_brief(error)}). Nessuna modifica a metà: riprova, e se"
        )
        english = (
            f"The database did not take it ({in_brief(error)}). Nothing is half done: try again, then call for help."
        )
        show.err().print(say(f"{italian} si ripete chiama l'assistenza.", english), style="red")
        raise SystemExit(4) from None


def _language(arguments: list[str]) -> list[str]:
    """Take ``--lang it|en|de`` out of the arguments, wherever it stands."""
    rest: list[str] = []
    waiting = False
    for argument in arguments:
        if waiting or argument.startswith("--lang="):
            language = argument.removeprefix("--lang=")
            if language not in LANGUAGES:
                show.err().print(f"--lang {language}: {', '.join(LANGUAGES)}", style="red")
                raise SystemExit(2)
            show.speak(language)
            waiting = False
        elif argument == "--lang":
            waiting = True
        else:
            rest.append(argument)
    return rest


if __name__ == "__main__":
    main()
