"""Municipalities by name, before any source has given the chain's list: a practice begins with its workbook."""

from __future__ import annotations

from functools import cache

import sqlalchemy as sa

_REGIONS = {
    "Piemonte": "TO VC NO CN AT AL BI VB",
    "Valle d'Aosta": "AO",
    "Liguria": "IM SV GE SP",
    "Lombardia": "VA CO SO MI BG BS PV CR MN LC LO MB",
    "Trentino-Alto Adige": "BZ TN",
    "Veneto": "VR VI BL TV VE PD RO",
    "Friuli-Venezia Giulia": "UD GO TS PN",
    "Emilia-Romagna": "PC PR RE MO BO FE RA FC RN",
    "Marche": "PU AN MC AP FM",
    "Toscana": "MS LU PT FI LI PI AR SI GR PO",
    "Umbria": "PG TR",
    "Lazio": "VT RI RM LT FR",
    "Campania": "CE BN NA AV SA",
    "Abruzzo": "AQ TE PE CH",
    "Molise": "CB IS",
    "Puglia": "FG BA TA BR LE BT",
    "Basilicata": "PZ MT",
    "Calabria": "CS CZ RC KR VV",
    "Sicilia": "TP PA ME AG CL EN CT RG SR",
    "Sardegna": "SS NU CA OR SU",
}

REGION_OF = {province: region for region, provinces in _REGIONS.items() for province in provinces.split()}
"""The region of each province."""


def make_known(connection: sa.Connection) -> None:
    """The temporary table ``known_place`` (code, name, region): the chain's list, or while that is empty the one that
    comes with the library of fiscal codes."""
    connection.execute(sa.text("DROP TABLE IF EXISTS known_place"))
    connection.execute(
        sa.text("""
            CREATE TEMP TABLE known_place ON COMMIT DROP AS
            SELECT cadastral_code AS code, name, region FROM municipality WHERE valid_to IS NULL""")
    )
    if not connection.scalar(sa.text("SELECT count(*) FROM known_place")):
        codes, names, regions = _of_library()
        connection.execute(
            sa.text("""
                INSERT INTO known_place
                SELECT * FROM unnest(string_to_array(:codes, chr(10)), string_to_array(:names, chr(10)),
                                     string_to_array(:regions, chr(10)))"""),
            {"codes": codes, "names": names, "regions": regions},
        )


@cache
def _of_library() -> tuple[str, str, str]:
    """Codes, names and regions of those in force, each a line: in South Tyrol and the Aosta valley under each of their
    names."""
    from codicefiscale.data import get_municipalities_data

    living = [each for each in get_municipalities_data() if each["active"]]
    names = ("name", "name_alt", "name_trans")
    named = {(each["code"], each[name], REGION_OF[each["province"]]) for each in living for name in names if each[name]}
    codes, called, regions = zip(*named, strict=True)
    return "\n".join(codes), "\n".join(called), "\n".join(regions)
