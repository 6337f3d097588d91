"""The central server: the chain's default closures, from Italy's holidays unless it is told others.

``PUT /admin/closures/{year}`` replaces a year's items; ``DELETE`` returns to the holidays.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from polydesk_dagster.demo.simulators.faults import Reply, problem
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, Handler, Simulator, main

PATRONS = (
    # (month, day, feast, cadastral code)
    (10, 4, "San Petronio", "A944"),
    (1, 31, "San Geminiano", "F257"),
    (4, 25, "San Marco", "L736"),
    (6, 24, "San Giovanni Battista", "D612"),
    (6, 24, "San Giovanni Battista", "L219"),
    (6, 29, "Santi Pietro e Paolo", "H501"),
    (9, 19, "San Gennaro", "F839"),
    (12, 6, "San Nicola", "A662"),
    (12, 7, "Sant'Ambrogio", "F205"),
)


def holidays(year: int) -> list[dict[str, Any]]:
    """National holidays, the half days before the great ones, one region's and the patron saints of some cities."""
    from holidays import country_holidays

    items: list[dict[str, Any]] = []

    def add(key: str, name: str, first: date, **more: Any) -> None:
        item = {"id": f"{key}-{year}", "name": name, "date_from": first.isoformat(), "date_to": first.isoformat()}
        items.append(item | {"part": "day", "scope": "national", "region": None, "municipality": None} | more)

    national = country_holidays("IT", years=year, language="it_IT")
    for day, name in sorted(national.items()):
        add(f"it-{day:%m%d}", name, day)
    add("vigilia", "Vigilia di Natale", date(year, 12, 24), part="afternoon")
    add("sansilvestro", "San Silvestro", date(year, 12, 31), part="afternoon")
    easter_monday = next(day for day, name in national.items() if "Angelo" in name)
    add(
        "pentecoste",
        "Lunedì di Pentecoste",
        easter_monday + timedelta(days=49),
        scope="region",
        region="Trentino-Alto Adige",
    )
    for month, day_of_month, feast, municipality in PATRONS:
        key = f"patrono-{municipality}"
        add(key, feast, date(year, month, day_of_month), scope="municipality", municipality=municipality)
    return items


class CentralSimulator(Simulator):
    """``state`` is a folder for what it was told; without it, that ends with the process."""

    name = "central"

    def __init__(self, token: str = DEMO_TOKEN, state: Path | None = None) -> None:
        super().__init__(token)
        self._file = state / "closures.json" if state else None
        self._told: dict[str, list[Any]] = (
            json.loads(self._file.read_text()) if self._file and self._file.exists() else {}
        )

    def handlers(self) -> dict[tuple[str, str], Handler]:
        return {("GET", "/closures"): self._closures}

    def admin(self) -> list[Route]:
        return [Route("/admin/closures/{year:int}", self._tell, methods=["GET", "PUT", "DELETE"])]

    def closures(self, year: int) -> list[Any]:
        told = self._told.get(str(year))
        return holidays(year) if told is None else told

    def tell(self, year: int, items: list[Any] | None) -> None:
        """Have ``items`` as the year's closures; None for the holidays again."""
        if items is None:
            self._told.pop(str(year), None)
        else:
            self._told[str(year)] = items
        if self._file:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(json.dumps(self._told))

    async def _closures(self, request: Request) -> Reply:
        try:
            year = int(request.query_params["year"])
        except (KeyError, ValueError):
            return problem(400, "year is required")
        items = self.closures(year)
        version = hashlib.sha256(json.dumps(items).encode()).hexdigest()[:12]
        return Reply({"year": year, "version": version, "items": items}, etag=True)

    async def _tell(self, request: Request) -> Response:
        year = request.path_params["year"]
        if request.method == "PUT":
            self.tell(year, json.loads(await request.body()))
        elif request.method == "DELETE":
            self.tell(year, None)
        return JSONResponse(self.closures(year))


def _build(arguments: argparse.Namespace) -> Simulator:
    return CentralSimulator(arguments.token, arguments.state)


if __name__ == "__main__":
    main("Simulatore del server centrale", _build, 8082)
