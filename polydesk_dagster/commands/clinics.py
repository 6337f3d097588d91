"""``polydesk clinics`` and ``polydesk integration``: the clinics, and whether each has its studiolab."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from tomllib import TOMLDecodeError, loads
from typing import Annotated, Any

import sqlalchemy as sa
import typer

from polydesk_dagster.changes.audit import LEAST_REASON, is_reason
from polydesk_dagster.commands import show
from polydesk_dagster.commands.installation import opened
from polydesk_dagster.commands.show import say
from polydesk_dagster.errors import ConfigurationError
from polydesk_dagster.runtime.state.integrations import asked_every, integration_state, integration_states
from polydesk_dagster.runtime.state.model import IntegrationState, Link
from polydesk_dagster.settings import person
from polydesk_dagster.sources import epochs, integrations, vendors
from polydesk_dagster.sources.access import check_address, check_token
from polydesk_dagster.told.state import linked

STUDIOLAB = "studiolab"
"""The vendor where none is named."""


def clinics(json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Elenca le cliniche e il loro collegamento a studiolab."""
    with opened() as installation, installation.engine.connect() as connection:
        states = integration_states(connection, installation.has_token)
    if json:
        now = datetime.now(UTC)
        show.as_json([as_object(state, now) for state in states])
        return
    columns = tuple(say(f"column.{name}") for name in ("code", "clinic", "time_zone", "agendas", "studiolab"))
    told = show.told()
    show.table(None, columns, [(s.clinic, s.name, s.time_zone, s.agendas, linked(told, s)) for s in states])


def as_object(state: IntegrationState, as_of: datetime) -> dict[str, Any]:
    return {
        "code": state.clinic,
        "name": state.name,
        "time_zone": state.time_zone,
        "language": state.language,
        "active": state.active,
        "agendas": state.agendas,
        "base_url": state.base_url,
        "token_env": state.token_env,
        "integration": state.link not in {Link.ABSENT, Link.OFF},
        "link": state.link,
        "since": state.since and state.since.isoformat(),
        "asked_again_at": state.asked_again_at and state.asked_again_at.isoformat(),
        "read_at": state.read_at and state.read_at.isoformat(),
        "listed_at": state.listed_at and state.listed_at.isoformat(),
        "asked_every_minutes": asked_every(state, as_of),
    }


def integration(
    code: Annotated[str, typer.Argument(metavar="CODE")],
    url: Annotated[str | None, typer.Option()] = None,
    token_env: Annotated[str | None, typer.Option()] = None,
    vendor: Annotated[str | None, typer.Option()] = None,
    settings: Annotated[Path | None, typer.Option(exists=True, dir_okay=False)] = None,
    active: Annotated[bool | None, typer.Option("--on/--off")] = None,
    reports: Annotated[bool | None, typer.Option("--tell-reports/--no-tell-reports")] = None,
    same: Annotated[bool | None, typer.Option("--same-system/--new-system")] = None,
    reason: Annotated[str | None, typer.Option(metavar="REASON")] = None,
) -> None:
    """Configura, accende o spegne il collegamento di una clinica alla sua fonte; senza opzioni lo mostra."""
    try:
        if url is not None:
            check_address(url, code, "sftp" if url.startswith("sftp:") else "https")
        if token_env is not None:
            check_token(token_env, code)
    except ConfigurationError as error:
        raise typer.BadParameter(show.why(error.reason)) from None
    if same is not None and not is_reason(reason):
        raise typer.BadParameter(say("reason.reason_missing", least=LEAST_REASON))
    given = None if settings is None else read_settings(settings)
    wanted: dict[str, Any] = {
        "url": url and url.rstrip("/"),
        "token": token_env,
        "vendor": vendor,
        "settings": None if given is None else json.dumps(given),
        "active": active,
        "reports": reports,
    }
    with opened() as installation, installation.engine.begin() as connection:
        clinic_id = connection.scalar(sa.text("SELECT id FROM clinic WHERE code = :code"), {"code": code})
        if clinic_id is None:
            known = ", ".join(connection.scalars(sa.text("SELECT code FROM clinic ORDER BY code")))
            if not known:
                raise typer.BadParameter(say("reason.no_clinics", given=code))
            raise typer.BadParameter(say("reason.unknown_clinic", given=code, known=known))
        _change(connection, clinic_id, wanted)
        try:
            if vendor is not None or given is not None:
                vendors.settings(integrations.configured(connection, code))
            if same is not None:
                epoch, why = vendors.epoch(integrations.configured(connection, code)), (reason or "").strip()
                as_of = datetime.now(UTC)
                epochs.decide(connection, code, epoch, same=same, actor=person(), reason=why, as_of=as_of)
        except ConfigurationError as error:
            raise typer.BadParameter(show.why(error.reason)) from None
        state = integration_state(connection, code, installation.has_token)
        sharing: list[str] = []
        with suppress(ConfigurationError):  # told with the state
            sharing = integrations.at_the_same(connection, code) if url is not None or active else []
    assert state is not None
    show.out().print(f"{code}: {linked(show.told(), state)}")
    if sharing:
        show.out().print(say("command.integration.shared", others=", ".join(sharing)), style="yellow")


def read_settings(file: Path) -> dict[str, Any]:
    """What a vendor's file of settings (TOML) says, as JSON can hold it: days, times and decimals as text."""
    try:
        said = loads(file.read_text("utf-8"), parse_float=str)
    except (TOMLDecodeError, UnicodeDecodeError) as error:
        raise typer.BadParameter(say("command.integration.not_toml", file=file.name, why=str(error))) from None
    as_json: dict[str, Any] = json.loads(json.dumps(said, default=str))
    return as_json


def _change(connection: sa.Connection, clinic_id: int, wanted: dict[str, Any]) -> None:
    values = wanted | {"clinic": clinic_id}
    known = connection.scalar(sa.text("SELECT 1 FROM integration WHERE clinic_id = :clinic"), values)
    if all(value is None for value in wanted.values()):
        return
    if known:
        connection.execute(
            sa.text("""
                UPDATE integration SET base_url = coalesce(:url, base_url), token_env = coalesce(:token, token_env),
                       vendor = coalesce(:vendor, vendor), settings = coalesce(CAST(:settings AS jsonb), settings),
                       active = coalesce(:active, active), report_messages = coalesce(:reports, report_messages),
                       updated_at = now()
                WHERE clinic_id = :clinic"""),
            values,
        )
        return
    if (wanted["vendor"] or STUDIOLAB) == STUDIOLAB and not (wanted["url"] and wanted["token"]):
        raise typer.BadParameter(say("command.integration.both_first"))
    connection.execute(
        sa.text("""
            INSERT INTO integration (clinic_id, base_url, token_env, vendor, settings, active, report_messages)
            VALUES (:clinic, :url, :token, coalesce(:vendor, 'studiolab'), coalesce(CAST(:settings AS jsonb), '{}'),
                    coalesce(:active, false), coalesce(:reports, false))"""),
        values,
    )
