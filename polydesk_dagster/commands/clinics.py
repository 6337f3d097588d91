"""``polydesk clinics`` and ``polydesk integration``: the clinics, and whether each has its studiolab."""

from __future__ import annotations

import os
import re
from typing import Annotated

import sqlalchemy as sa
import typer

from polydesk_dagster.commands import show
from polydesk_dagster.commands.installation import opened
from polydesk_dagster.commands.show import say

CLINICS = """
    SELECT c.code, c.name, c.time_zone, c.language, c.active,
           (SELECT count(*) FROM agenda a WHERE a.clinic_id = c.id AND a.active) AS agendas,
           i.base_url, i.token_env, coalesce(i.active, false) AS integration
    FROM clinic c LEFT JOIN integration i ON i.clinic_id = c.id ORDER BY c.code
"""


def clinics(json: Annotated[bool, typer.Option("--json", help="Una lista di oggetti JSON.")] = False) -> None:
    """Elenca le cliniche e il loro collegamento a studiolab."""
    with opened(create=False) as installation, installation.engine.connect() as connection:
        rows = connection.execute(sa.text(CLINICS)).mappings().all()
    if json:
        show.as_json([dict(row) for row in rows])
        return
    columns = ("Codice", "Clinica", "Fuso", "Agende", "studiolab")
    if say("it", "en") == "en":
        columns = ("Code", "Clinic", "Time zone", "Agendas", "studiolab")
    show.table(None, columns, [(r["code"], r["name"], r["time_zone"], r["agendas"], _state(r)) for r in rows])


def _state(row: sa.RowMapping) -> str:
    if row["base_url"] is None:
        return say("mai configurato", "never configured")
    word = say("attivo", "on") if row["integration"] else say("spento", "off")
    missing = (
        "" if os.environ.get(row["token_env"]) else say(f", manca {row['token_env']}", f", {row['token_env']} unset")
    )
    return f"{word} ({row['base_url']}{missing})"


def integration(
    code: Annotated[str, typer.Argument(help="Codice della clinica.", metavar="CODICE")],
    url: Annotated[str | None, typer.Option(help="Indirizzo di studiolab, con /api/v1.")] = None,
    token_env: Annotated[
        str | None, typer.Option(help="NOME della variabile d'ambiente che contiene il token.")
    ] = None,
    active: Annotated[bool | None, typer.Option("--on/--off", help="Accende o spegne il collegamento.")] = None,
    reports: Annotated[
        bool | None, typer.Option("--tell-reports/--no-tell-reports", help="Scrive ai pazienti dei referti pronti.")
    ] = None,
) -> None:
    """Configura, accende o spegne il collegamento di una clinica a studiolab; senza opzioni lo mostra."""
    if url is not None and not re.match(r"^https?://[^/\s]+", url):
        raise typer.BadParameter(say("serve un indirizzo http:// o https://", "an http(s):// address is needed"))
    if token_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", token_env):
        raise typer.BadParameter(
            say(
                "serve il nome di una variabile (lettere maiuscole, cifre, _), mai il token stesso",
                "the name of a variable is needed (A-Z, 0-9, _), never the token itself",
            )
        )
    with opened(create=False) as installation, installation.engine.begin() as connection:
        clinic_id = connection.scalar(sa.text("SELECT id FROM clinic WHERE code = :code"), {"code": code})
        if clinic_id is None:
            known = ", ".join(connection.scalars(sa.text("SELECT code FROM clinic ORDER BY code")))
            raise typer.BadParameter(
                say(f"clinica «{code}» sconosciuta; ci sono: {known}", f"unknown clinic {code}; there are: {known}")
            )
        _change(
            connection,
            clinic_id,
            {"url": url and url.rstrip("/"), "token": token_env, "active": active, "reports": reports},
        )
        row = connection.execute(sa.text(f"SELECT * FROM ({CLINICS}) c WHERE code = :code"), {"code": code}).mappings()
        show.out().print(f"{code}: studiolab {_state(row.one())}")


def _change(connection: sa.Connection, clinic_id: int, wanted: dict[str, str | bool | None]) -> None:
    values = wanted | {"clinic": clinic_id}
    known = connection.scalar(sa.text("SELECT 1 FROM integration WHERE clinic_id = :clinic"), values)
    if known:
        connection.execute(
            sa.text("""
                UPDATE integration SET base_url = coalesce(:url, base_url), token_env = coalesce(:token, token_env),
                       active = coalesce(:active, active), report_messages = coalesce(:reports, report_messages),
                       updated_at = now()
                WHERE clinic_id = :clinic AND num_nonnulls(CAST(:url AS text), CAST(:token AS text),
                                                           CAST(:active AS boolean), CAST(:reports AS boolean)) > 0"""),
            values,
        )
    elif wanted["url"] and wanted["token"]:
        connection.execute(
            sa.text("""
                INSERT INTO integration (clinic_id, base_url, token_env, active, report_messages)
                VALUES (:clinic, :url, :token, coalesce(:active, false), coalesce(:reports, false))"""),
            values,
        )
    elif any(value is not None for value in wanted.values()):
        raise typer.BadParameter(
            say("la prima volta servono --url e --token-env insieme", "--url and --token-env are both needed first")
        )
