"""``polydesk setup`` and ``check``: what an installation is told, asked or out of a file, and whether it holds."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from polydesk_dagster import settings as configuration
from polydesk_dagster.commands import show
from polydesk_dagster.commands.show import say
from polydesk_dagster.database import embedded
from polydesk_dagster.errors import ConfigurationError
from polydesk_dagster.home import make
from polydesk_dagster.keeping import checking, environment, setting_up, units
from polydesk_dagster.settings import variable
from polydesk_dagster.values import Several

Source = Annotated[Path | None, typer.Option("--file", exists=True, dir_okay=False, readable=True)]


def setup(
    file: Source = None,
    look: Annotated[bool, typer.Option("--look")] = False,
    anyway: Annotated[bool, typer.Option("--anyway")] = False,
    unit_folder: Annotated[Path | None, typer.Option("--units", file_okay=False)] = None,
    json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Prepara l'installazione: chiede, o legge un file; prova ogni indirizzo; scrive .env e, se vuoi, le unità."""
    home = configuration.home()
    given = environment.read(home / ".env") if (home / ".env").exists() else {}
    if file is not None:
        given |= environment.read(file)
    elif sys.stdin.isatty():
        given = _asked(given)
    else:
        raise typer.BadParameter(say("command.setup.no_terminal"))
    if strange := setting_up.unknown(given):
        raise ConfigurationError("setting_unknown", names=Several(strange))
    settings = configuration.of(home, given)
    results = list(setting_up.tried(settings, datetime.now(UTC)))
    bad = [each for each in results if each.why is not None]
    written: list[str] = []
    if not look and (anyway or not bad):
        written.append(str(environment.put(make(settings.home), given)))
        if unit_folder is not None:
            written += map(str, units.write(settings.home, unit_folder, person=_account()))
    if json:
        show.as_json({"tried": _rows(results), "written": written})
    else:
        _tell(results)
        for path in written:
            show.out().print(say("command.setup.written", file=path), soft_wrap=True)
        if not written:
            show.out().print(say("command.setup.looked" if look else "command.setup.not_written"), style="yellow")
    if bad and not anyway:
        raise typer.Exit(3)


def check(json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Controlla l'installazione com'è: i due database e ogni indirizzo configurato; non cambia nulla."""
    settings = configuration.load()
    if settings.embedded and embedded.exists(settings.home):
        embedded.start(settings.home)
    databases = [
        setting_up.Tried(show.told().term("database_check", each.what), each.why) for each in checking.look(settings)
    ]
    addresses = list(setting_up.addresses(settings, datetime.now(UTC)))
    if json:
        show.as_json({"tried": _rows([*databases, *addresses])})
    else:
        _tell(databases, say("doctor.well"))
        _tell(addresses)
    raise typer.Exit(1 if any(each.why is not None for each in (*databases, *addresses)) else 0)


def _rows(results: list[setting_up.Tried]) -> list[dict[str, object]]:
    return [{"what": each.what, "why": each.why.as_dict() if each.why else None} for each in results]


def _asked(known: Mapping[str, str]) -> dict[str, str]:
    """Ask for each; Enter keeps what is known, and a blank leaves out what is not."""
    given = dict(known)
    for field in setting_up.ASKED:
        name = variable(field)
        secret = field in configuration.SECRETS
        shown = None if secret or name not in known else known[name]
        answer = typer.prompt(
            say(f"command.setup.ask.{field}"), default=shown or "", show_default=bool(shown), hide_input=secret
        ).strip()
        if answer:
            given[name] = answer
    return given


def _tell(results: list[setting_up.Tried], well: str | None = None) -> None:
    """What came of each; ``well`` is said instead of that it answers."""
    console = show.out()
    for each in results:
        if each.why is not None:
            console.print(say("command.setup.bad", what=each.what, why=each.why), style="red", soft_wrap=True)
        elif well is not None:
            console.print(f"{each.what}: {well}", style="green")
        else:
            console.print(say("command.setup.well", what=each.what), style="green")


def _account() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name
