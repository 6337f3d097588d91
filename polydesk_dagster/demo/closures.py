"""The default closures that the demo's central server answers with: national holidays, patron saints, two half days."""

from __future__ import annotations

from datetime import date

from polydesk_dagster.demo.places import SEATS

_REGIONAL = {"Trentino-Alto Adige"}
"""Where what the package gives a province is no patron saint of its town."""

_NOT_DAYS_OFF = {"Giorno dell'unità nazionale"}


def central_closures(year: int) -> list[dict[str, object]]:
    """The full set of one year, each item as the central server's contract has it, ordered by date."""
    national = _italy(year)
    items = []
    for day, names in national.items():
        off = [name for name in names if name not in _NOT_DAYS_OFF]
        if off:
            items.append(_item(f"it-{day:%m-%d}", "; ".join(off), day, scope="national"))
    for month_day, name in (("12-24", "Vigilia di Natale"), ("12-31", "Ultimo dell'anno")):
        items.append(
            _item(
                f"it-{month_day}-pm",
                name,
                date.fromisoformat(f"{year}-{month_day}"),
                scope="national",
                part="afternoon",
            )
        )
    for seat in SEATS:
        local = _italy(year, seat.code)
        for day, names in local.items():
            own = [name for name in names if name not in national.get(day, [])]
            if not own:
                continue
            if seat.region in _REGIONAL:
                key, where = seat.code.lower(), {"scope": "region", "region": seat.region}
            else:
                town = seat.places[0].cadastral_code
                key, where = town, {"scope": "municipality", "municipality": town}
            items.append(_item(f"{key}-{day:%m-%d}", own[0], day, **where))
    return sorted(items, key=lambda item: (str(item["date_from"]), str(item["id"])))


def _italy(year: int, province: str | None = None) -> dict[date, list[str]]:
    from holidays.countries.italy import Italy  # the package's index of all countries costs a second

    days = Italy(years=[year], subdiv=province, language="it_IT")
    return {day: days.get_list(day) for day in sorted(days)}


def _item(
    id_: str,
    name: str,
    day: date,
    *,
    scope: str,
    part: str = "day",
    region: str | None = None,
    municipality: str | None = None,
) -> dict[str, object]:
    return {
        "id": id_,
        "name": name,
        "date_from": day.isoformat(),
        "date_to": day.isoformat(),
        "part": part,
        "scope": scope,
        "region": region,
        "municipality": municipality,
    }
