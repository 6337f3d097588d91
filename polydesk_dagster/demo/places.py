"""Where the demo's clinics stand and their patients live: real municipalities with their codes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib import resources
from typing import NamedTuple

from polydesk_dagster.sources.practice.places import REGION_OF


@dataclass(frozen=True, slots=True)
class Place:
    cadastral_code: str
    istat_code: str
    name: str
    postal_code: str
    other_name: str | None = None
    """In the town's second language."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A town that a clinic of the demo stands in, with the towns around it; the first place is the town itself."""

    code: str
    """Two letters of the clinic's code, also its province."""
    region: str
    area_code: str
    addresses: tuple[tuple[str, str], ...]
    """Locations of the clinic: name and street."""
    places: tuple[Place, ...]
    language: str = "it"


SEATS = (
    Seat(
        "BO",
        "Emilia-Romagna",
        "051",
        (("Centro", "Via Indipendenza 44"), ("Mazzini", "Via Mazzini 120")),
        (
            Place("A944", "037006", "Bologna", "40121"),
            Place("B880", "037011", "Casalecchio di Reno", "40033"),
            Place("H945", "037054", "San Lazzaro di Savena", "40068"),
            Place("E289", "037032", "Imola", "40026"),
            Place("C204", "037019", "Castel Maggiore", "40013"),
            Place("M185", "037060", "Zola Predosa", "40069"),
            Place("B249", "037008", "Budrio", "40054"),
            Place("C292", "037021", "Castenaso", "40055"),
        ),
    ),
    Seat(
        "BZ",
        "Trentino-Alto Adige",
        "0471",
        (("Centro / Zentrum", "Via Museo 12 / Museumstraße 12"),),
        (
            Place("A952", "021008", "Bolzano", "39100", "Bozen"),
            Place("F132", "021051", "Merano", "39012", "Meran"),
            Place("B160", "021011", "Bressanone", "39042", "Brixen"),
            Place("E421", "021040", "Laives", "39055", "Leifers"),
            Place("A332", "021004", "Appiano sulla strada del vino", "39057", "Eppan an der Weinstraße"),
            Place("B220", "021013", "Brunico", "39031", "Bruneck"),
            Place("B397", "021015", "Caldaro sulla strada del vino", "39052", "Kaltern an der Weinstraße"),
            Place("H236", "021072", "Renon", "39054", "Ritten"),
        ),
        language="de",
    ),
    Seat(
        "MI",
        "Lombardia",
        "02",
        (("Porta Venezia", "Corso Buenos Aires 33"), ("Navigli", "Viale Gorizia 8")),
        (
            Place("F205", "015146", "Milano", "20121"),
            Place("I690", "015209", "Sesto San Giovanni", "20099"),
            Place("C707", "015077", "Cinisello Balsamo", "20092"),
            Place("H264", "015182", "Rho", "20017"),
            Place("C895", "015081", "Cologno Monzese", "20093"),
            Place("E514", "015118", "Legnano", "20025"),
            Place("I577", "015205", "Segrate", "20054"),
            Place("D045", "015093", "Corsico", "20094"),
        ),
    ),
    Seat(
        "NA",
        "Campania",
        "081",
        (("Chiaia", "Via dei Mille 16"), ("Vomero", "Via Scarlatti 88")),
        (
            Place("F839", "063049", "Napoli", "80121"),
            Place("G964", "063060", "Pozzuoli", "80078"),
            Place("G902", "063059", "Portici", "80055"),
            Place("H243", "063064", "Ercolano", "80056"),
            Place("B990", "063023", "Casoria", "80026"),
            Place("E054", "063034", "Giugliano in Campania", "80014"),
            Place("H892", "063067", "San Giorgio a Cremano", "80046"),
            Place("C129", "063024", "Castellammare di Stabia", "80053"),
        ),
    ),
    Seat(
        "TO",
        "Piemonte",
        "011",
        (("Crocetta", "Corso Duca degli Abruzzi 40"),),
        (
            Place("L219", "001272", "Torino", "10121"),
            Place("F335", "001156", "Moncalieri", "10024"),
            Place("H355", "001219", "Rivoli", "10098"),
        ),
    ),
    Seat(
        "RM",
        "Lazio",
        "06",
        (("Prati", "Via Cola di Rienzo 200"), ("Eur", "Viale Europa 55")),
        (
            Place("H501", "058091", "Roma", "00118"),
            Place("M297", "058120", "Fiumicino", "00054"),
            Place("L182", "058104", "Tivoli", "00019"),
        ),
    ),
    Seat(
        "FI",
        "Toscana",
        "055",
        (("Novoli", "Viale Guidoni 10"),),
        (
            Place("D612", "048017", "Firenze", "50121"),
            Place("B962", "048041", "Scandicci", "50018"),
            Place("I684", "048043", "Sesto Fiorentino", "50019"),
        ),
    ),
    Seat(
        "GE",
        "Liguria",
        "010",
        (("Brignole", "Via XX Settembre 30"),),
        (
            Place("D969", "010025", "Genova", "16121"),
            Place("H183", "010046", "Rapallo", "16035"),
            Place("C621", "010015", "Chiavari", "16043"),
        ),
    ),
    Seat(
        "BA",
        "Puglia",
        "080",
        (("Murat", "Via Sparano 60"),),
        (
            Place("A662", "072006", "Bari", "70121"),
            Place("A225", "072004", "Altamura", "70022"),
            Place("A893", "072011", "Bitonto", "70032"),
        ),
    ),
    Seat(
        "VR",
        "Veneto",
        "045",
        (("Borgo Trento", "Via Mameli 25"),),
        (
            Place("L781", "023091", "Verona", "37121"),
            Place("L949", "023096", "Villafranca di Verona", "37069"),
            Place("H783", "023069", "San Bonifacio", "37047"),
        ),
    ),
)
"""In the order in which a chain of n clinics takes them; a larger chain begins again from the first."""


_ISTAT = (
    "TO001 VC002 NO003 CN004 AT005 AL006 BI096 VB103 AO007 IM008 SV009 GE010 SP011 VA012 CO013 SO014 MI015 BG016 "
    "BS017 PV018 CR019 MN020 LC097 LO098 MB108 BZ021 TN022 VR023 VI024 BL025 TV026 VE027 PD028 RO029 UD030 GO031 "
    "TS032 PN093 PC033 PR034 RE035 MO036 BO037 FE038 RA039 FC040 RN099 PU041 AN042 MC043 AP044 FM109 MS045 LU046 "
    "PT047 FI048 LI049 PI050 AR051 SI052 GR053 PO100 PG054 TR055 VT056 RI057 RM058 LT059 FR060 CE061 BN062 NA063 "
    "AV064 SA065 AQ066 TE067 PE068 CH069 CB070 IS094 FG071 BA072 TA073 BR074 LE075 BT110 PZ076 MT077 CS078 CZ079 "
    "RC080 KR101 VV102 TP081 PA082 ME083 AG084 CL085 EN086 CT087 RG088 SR089 SS090 NU091 CA092 OR095 SU111"
)
"""Provinces, each with the first three digits of its ISTAT codes."""

_UNKNOWN_ISTAT = 401
"""Where the last three digits begin of towns whose ISTAT code is not told here; no province has so many."""


_PARTICLES = re.compile(
    r"(?<= )(?:(?:Di|Del|Della|Dei|Degli|Delle|Dello|In|Con|Sul|Sulla|Sullo|Al|Alla|Alle|Ai|Allo|A|E|Ed|Da|Dal|Nel"
    r"|Nella|Nei|Nelle|Il|Per|Tra|Su|Sopra|Sotto|Presso)(?= )|(?:D|Dell|Sull|Nell|All|Dall)(?='))"
)
"""What the package writes with a capital letter inside a town's name and ISTAT does not."""


class Municipality(NamedTuple):
    cadastral_code: str
    valid_from: date
    istat_code: str
    name: str
    other_name: str | None
    province: str
    region: str
    postal_codes: tuple[str, ...]


def _name(name: str, other_name: str) -> str:
    """The Italian name as ISTAT spells it; the package sometimes appends the other one with a hyphen."""
    italian = name.removesuffix(f"-{other_name}") if other_name else name
    return _PARTICLES.sub(lambda found: found.group().lower(), italian)


@cache
def municipalities() -> tuple[Municipality, ...]:
    """Every municipality in force, ordered by cadastral code, as python-codicefiscale carries it.

    It knows no ISTAT codes: those of the towns above are real, the others' last digits only look like one.
    """
    packaged = (resources.files("codicefiscale") / "data" / "municipalities.json").read_text(encoding="utf-8")
    digits_of = {item[:2]: item[2:] for item in _ISTAT.split()}
    told = {place.cadastral_code: place for seat in SEATS for place in seat.places}
    numbered: dict[str, int] = {}
    found = []
    for item in sorted((item for item in json.loads(packaged) if item["active"]), key=lambda item: str(item["code"])):
        province = item["province"]
        region, digits = REGION_OF[province], digits_of[province]
        place = told.get(item["code"])
        numbered[province] = numbered.get(province, _UNKNOWN_ISTAT - 1) + 1
        found.append(
            Municipality(
                item["code"],
                date.fromisoformat(item["date_created"][:10]),
                place.istat_code if place else f"{digits}{numbered[province]}",
                place.name if place else _name(item["name"], item["name_alt"]),
                (place.other_name if place else item["name_alt"]) or None,
                province,
                region,
                (place.postal_code,) if place else (),
            )
        )
    return tuple(found)
