"""The command ``polydesk``. A sub-command is imported when it is used: this module imports only what speaks."""

from __future__ import annotations

import errno
import gc
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from polydesk_dagster.commands import show
from polydesk_dagster.commands.show import say
from polydesk_dagster.errors import ConfigurationError, PolydeskError, in_brief
from polydesk_dagster.home import keep_to_ourselves
from polydesk_dagster.told import LANGUAGES
from polydesk_dagster.values import Term

COMMANDS: Mapping[str, str] = {
    "up": "up:up",
    "demo": "demo:demo",
    "services": "services:services",
    "run": "run:run",
    "plan": "plan:app",
    "go-live": "activity:go_live",
    "pause": "activity:pause",
    "resume": "activity:resume",
    "ask": "ask:ask",
    "knowledge": "knowledge:app",
    "report": "report:report",
    "clinics": "clinics:clinics",
    "integration": "clinics:integration",
    "authority": "authority:authority",
    "practice": "practice:app",
    "closures": "closures:app",
    "bookings": "bookings:app",
    "patients": "patients:app",
    "messages": "messages:app",
    "events": "events:app",
    "users": "users:app",
    "tokens": "tokens:app",
    "db": "db:app",
    "setup": "setup:setup",
    "check": "setup:check",
    "backup": "keeping:backup",
    "restore": "keeping:restore",
    "move": "keeping:move",
    "doctor": "doctor:doctor",
}
"""Each sub-command by its module under ``commands`` and the function or group in it; ``command.<name>`` is its line in
the help, in the catalogues."""

USAGE = typer.BadParameter.__mro__[1]
"""What every wrong usage is; of its kinds typer exports this one only."""

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""


class _Commands(TyperGroup):
    """The sub-commands by name; one is imported once it is its turn."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """What the help says of it; ``resolve_command`` gives the command itself."""
        if cmd_name not in COMMANDS:
            return None
        return TyperCommand(cmd_name, help=say(f"command.{cmd_name}"))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in COMMANDS:
            known = ", ".join(COMMANDS)
            raise typer.BadParameter(say("command.usage.unknown", given=args[0], known=known), ctx)
        name, _, rest = super().resolve_command(ctx, args)
        return name, loaded(str(name)), rest

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from polydesk_dagster.commands import usage

        self.help = say("command")
        self.format_help = super().format_help  # pyrefly: ignore[method-assign]
        usage.explain(self, "polydesk")
        self.format_help(ctx, formatter)


def loaded(name: str) -> Any:
    """The command or group ``name``, imported now."""
    module, _, attribute = COMMANDS[name].partition(":")
    found = getattr(import_module(f"polydesk_dagster.commands.{module}"), attribute)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False)
        alone.command(name)(found)
        found = alone
    from polydesk_dagster.commands import usage

    command = typer.main.get_command(found)
    command.name = name
    command.help = say(f"command.{name}")
    usage.explain(command, name)
    return command


app = typer.Typer(
    name="polydesk",
    cls=_Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _version(*, asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"polydesk {version('polydesk-dagster')}")
        raise typer.Exit


@app.callback()
def polydesk(
    *,
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version)] = False,
    lang: Annotated[  # taken out of the arguments before anything is read, wherever it stands
        str, typer.Option("--lang", metavar="|".join(LANGUAGES))
    ] = LANGUAGES[0],
) -> None:
    """The engine of Impostazioni → Servizi; what its help says stands in the catalogues."""


def main() -> None:
    """Entry of the console script. Exit status: 2 for wrong usage or configuration, 4 for what failed, 130 after
    Ctrl-C; whatever happens is said in one sentence."""
    gc.set_threshold(100_000)  # what is imported stays: looking through it again and again is a sixth of the import
    keep_to_ourselves()
    arguments = _language(sys.argv[1:])
    try:
        status = app(args=arguments, prog_name="polydesk", standalone_mode=False)
        if status == INTERRUPTED:
            _last_words(say("command.interrupted"), INTERRUPTED)
        sys.exit(status if isinstance(status, int) else 0)
    except (KeyboardInterrupt, typer.Abort):
        _last_words(say("command.interrupted"), INTERRUPTED)
    except PolydeskError as error:
        _last_words(show.told().reason(error.reason), 2 if isinstance(error, ConfigurationError) else 4)
    except OSError as error:
        where = say("command.file", path=str(error.filename)) if error.filename else ""
        code = errno.errorcode.get(error.errno or 0, type(error).__name__)
        known = show.told().knows(f"term.errno_remedy.{code}")
        remedy = Term("errno_remedy", code if known else "other")
        _last_words(say("command.system", why=Term("errno", code), where=where, remedy=remedy), 4)
    except Exception as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # as Python wraps one that comes while a class is made
            _last_words(say("command.interrupted"), INTERRUPTED)
        if isinstance(error, USAGE):
            _wrong_usage(error, arguments)
        # The message and the traceback of a database's error may quote a patient's row.
        if type(error).__module__.partition(".")[0] not in {"sqlalchemy", "psycopg"}:
            raise
        _last_words(say("command.database", why=in_brief(error)), 4)


def _wrong_usage(error: Any, arguments: list[str]) -> NoReturn:
    """Say what is wrong with how the command was called, and where its help is."""
    from polydesk_dagster.commands import usage

    asked = " ".join(["polydesk", *arguments[:1]]) if arguments and arguments[0] in COMMANDS else "polydesk"
    if error.ctx is not None and error.ctx.command_path != "polydesk":
        asked = error.ctx.command_path
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        raise SystemExit(2) from None
    what = usage.what_is_wrong(error)
    _last_words(say("command.usage", what=what, asked=asked), 2)


def _last_words(text: str, status: int) -> NoReturn:
    show.err().print(text, style="red")
    raise SystemExit(status) from None


def _language(arguments: list[str]) -> list[str]:
    """Take ``--lang it|en|de`` out of the arguments, wherever it stands."""
    rest: list[str] = []
    waiting = False
    for argument in arguments:
        if waiting or argument.startswith("--lang="):
            language = argument.removeprefix("--lang=")
            if language not in LANGUAGES:
                _wrong_usage(typer.BadParameter(say("command.lang", given=language)), arguments)
            show.speak(language)
            waiting = False
        elif argument == "--lang":
            waiting = True
        else:
            rest.append(argument)
    if waiting:
        _wrong_usage(typer.BadParameter(say("command.lang", given="")), arguments)
    return rest


if __name__ == "__main__":
    main()
