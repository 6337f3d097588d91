"""``polydesk services``: the catalogue as the page shows it, with what really happens next and what happened last."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import sqlalchemy as sa
import typer
from rich.text import Text

from polydesk_dagster.catalog import ROME, SERVICES, next_run
from polydesk_dagster.commands import show
from polydesk_dagster.commands.installation import opened
from polydesk_dagster.commands.show import say
from polydesk_dagster.errors import ConfigurationError, PermanentError

LAST = """
    SELECT DISTINCT ON (service, coalesce(clinic_id, 0)) service, outcome, started_at
    FROM service_run WHERE NOT preview OR service = ANY(:only_look)
    ORDER BY service, coalesce(clinic_id, 0), started_at DESC, id DESC
"""
WORST_FIRST = ("failed", "refused", "partial", "skipped", "ok", "nothing_to_do")


def services(
    json: Annotated[bool, typer.Option("--json", help="Un oggetto JSON per servizio, in una lista.")] = False,
) -> None:
    """Elenca i servizi: cadenza, prossima esecuzione vera, ultimo esito."""
    now = datetime.now(UTC)
    last = _last_outcomes()
    rows: list[dict[str, Any]] = []
    for service in SERVICES:
        coming = next_run(service, now)
        outcome, when = last.get(service.key, (None, None))
        rows.append(
            {
                "key": service.key,
                "name": show.told().service(service.key),
                "summary": show.told().summary_of(service.key),
                "cadence": show.told().cadence(service.cadence),
                "next_run": coming.isoformat() if coming else None,
                "last_outcome": outcome,
                "last_run_at": when.isoformat() if when else None,
                "location": service.place,
                "per_clinic": service.per_clinic,
            }
        )
    if json:
        show.as_json(rows)
        return
    columns = (
        say("Servizio", "Service"),
        say("Chiave", "Key"),
        say("Quando", "When"),
        say("Prossima", "Next"),
        say("Ultimo esito", "Last outcome"),
    )
    show.table(None, columns, [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    coming = "—"
    if row["next_run"]:
        coming = datetime.fromisoformat(row["next_run"]).astimezone(ROME).strftime("%d/%m %H:%M")
    last = show.outcome(row["last_outcome"]) if row["last_outcome"] else say("mai eseguito", "never ran")
    name = Text(row["name"], "red") if row["location"] == "polydesk_emergency" else row["name"]
    return name, row["key"], row["cadence"], coming, last


def _last_outcomes() -> dict[str, tuple[str, datetime]]:
    """Of each service the last outcome; where clinics run apart, the worst of their last ones. A preview is no run of
    a service, but of one that only looks."""
    try:
        with opened(create=False) as installation, installation.engine.connect() as connection:
            only_look = [service.key for service in SERVICES if service.only_looks]
            rows = connection.execute(sa.text(LAST), {"only_look": only_look}).all()
    except ConfigurationError:
        raise
    except PermanentError:
        return {}
    found: dict[str, tuple[str, datetime]] = {}
    for service, outcome, when in rows:
        known = found.get(service)
        if known is None or WORST_FIRST.index(outcome) < WORST_FIRST.index(known[0]):
            found[service] = (outcome, max(when, known[1]) if known else when)
    return found
