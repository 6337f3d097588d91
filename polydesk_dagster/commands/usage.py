"""The command's help and what it says of a wrong usage, in the language that is asked for: what typer would say itself.

Typer keeps the titles of its panels as constants of ``rich_utils`` and has no other way to say them, and of the classes
of its errors it exports one: the rest are told by their names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import typer

from polydesk_dagster.commands import show
from polydesk_dagster.commands.show import say

TITLES: Mapping[str, str] = {
    "ARGUMENTS_PANEL_TITLE": "help.arguments",
    "OPTIONS_PANEL_TITLE": "help.options",
    "COMMANDS_PANEL_TITLE": "help.commands",
    "DEFAULT_STRING": "help.default",
    "REQUIRED_LONG_STRING": "help.required",
}
"""By the constant's name, the sentence of the catalogues."""

SENTENCES: Mapping[str, str] = {
    r"Option '(?P<given>[^']+)' requires .*": "needs_value",
    r"Option '(?P<given>[^']+)' does not take a value.": "takes_none",
    r"Got unexpected extra argument\(s\) \((?P<given>.*)\)": "extra",
    r"No such command '(?P<given>.*)'.": "unknown",
    r"Missing command.": "which",
    r".*'[^']*' is not one of (?P<known>.*)\.": "choice",
    r"\w+ '(?P<given>.*)' does not exist.": "absent",
    r"\w+ '(?P<given>.*)' is a file.": "a_file",
    r"\w+ '(?P<given>.*)' is a directory.": "a_directory",
    r"\w+ '(?P<given>.*)' is not readable.": "unreadable",
    r"\w+ '(?P<given>.*)' is not writable.": "unwritable",
}
"""By what typer says, the rest of ``command.usage.…``."""


def explain(command: Any, path: str) -> None:
    """Give ``command``, its sub-commands and theirs what they say in their help. What an option is for stands in the
    catalogues as ``help.<path>.<name>``, or as ``help.<name>`` where it is the same everywhere."""
    command.options_metavar = say("help.options_metavar")
    command.subcommand_metavar = say("help.command_metavar")
    command.format_usage = partial(_format_usage, command)
    command.format_help = partial(_format_help, command, command.format_help)
    command.get_help_option = partial(_help_option, command.get_help_option)
    for parameter in command.params:
        here = f"help.{path}.{parameter.name}"
        parameter.help = say(here if show.told().knows(here) else f"help.{parameter.name}")
        _show_type(parameter)
    for name, each in getattr(command, "commands", {}).items():
        each.help = say(f"help.{path}.{name}")
        explain(each, f"{path}.{name}")


def _show_type(parameter: Any) -> None:
    """What an option takes, in words; nothing for a switch, and for an argument, which its name says already."""
    if parameter.metavar is not None:
        parameter.metavar = _metavar(parameter.metavar)
    if parameter.param_type_name == "argument" or getattr(parameter, "is_flag", False):
        parameter.display_type_rich = lambda ctx: None  # noqa: ARG005
    elif parameter.metavar is None:
        shown = parameter.display_type_rich
        parameter.display_type_rich = lambda ctx: _metavar(str(shown(ctx=ctx)).strip("<>"))


def _metavar(name: str) -> str:
    plain = name.removesuffix(" range")
    return say(f"metavar.{plain}") if show.told().knows(f"metavar.{plain}") else name


def _format_usage(command: Any, ctx: Any, formatter: Any) -> None:
    formatter.write_usage(ctx.command_path, " ".join(command.collect_usage_pieces(ctx)), prefix=say("help.usage"))


def _format_help(command: Any, shown: Any, ctx: Any, formatter: Any) -> None:  # noqa: ARG001
    from typer import rich_utils

    for constant, name in TITLES.items():
        setattr(rich_utils, constant, say(name))
    shown(ctx, formatter)


def _help_option(found: Any, ctx: Any) -> Any:
    option = found(ctx)
    if option is not None:
        option.help = say("help.help")
        _show_type(option)
    return option


def what_is_wrong(error: Any) -> str:
    """Of typer's error about how the command was called, as one sentence."""
    match type(error).__name__:
        case "NoSuchOption":
            return say("command.usage.option", given=error.option_name)
        case "MissingParameter":
            return say("command.usage.missing", name=_hint(error))
        case "BadParameter" if error.param is not None:
            return say("command.usage.value", name=_hint(error), why=_why(error))
        case _:
            return _sentence(error)


_OF_TYPER = "Value error, "
"""What pydantic puts before that which typer itself found of a value: a name that is not on its list."""


def _hint(error: Any) -> str:
    return str(error.param.get_error_hint()).replace("'", "")


def _why(error: Any) -> str:
    """What is wrong with a value; what pydantic found of it, by its type."""
    cause = error.__cause__
    if type(cause).__name__ != "ValidationError" or error.message.startswith(_OF_TYPER):
        return _sentence(error)
    from polydesk_dagster.wrong import reason

    return show.told().value(reason(cause))


def _sentence(error: typer.BadParameter) -> str:
    for pattern, name in SENTENCES.items():
        if (found := re.fullmatch(pattern, error.message.removeprefix(_OF_TYPER))) is not None:
            known = ", ".join(getattr(error.ctx.command, "commands", {})) if error.ctx else ""
            return say(f"command.usage.{name}", **{"known": known, **found.groupdict()})
    return error.message
