"""Municipalities by name, before any source has given the chain's list: a practice begins with its workbook."""

from __future__ import annotations

from functools import cache

import sqlalchemy as sa


def make_known(connection: sa.Connection) -> None:
    """The temporary table ``known_place`` (code, name, region): the chain's list, or while that is empty the one that
    comes with the library of fiscal codes, which knows no regions."""
    connection.execute(sa.text("DROP TABLE IF EXISTS known_place"))
    connection.execute(
        sa.text("""
            CREATE TEMP TABLE known_place ON COMMIT DROP AS
            SELECT cadastral_code AS code, name, region FROM municipality WHERE valid_to IS NULL""")
    )
    if not connection.scalar(sa.text("SELECT count(*) FROM known_place")):
        codes, names = _of_library()
        connection.execute(
            sa.text("""
                INSERT INTO known_place (code, name)
                SELECT * FROM unnest(string_to_array(:codes, chr(10)), string_to_array(:names, chr(10)))"""),
            {"codes": codes, "names": names},
        )


@cache
def _of_library() -> tuple[str, str]:
    """Codes and names of those in force, each a line: in South Tyrol and the Aosta valley under each of their names."""
    from codicefiscale.data import get_municipalities_data

    living = [each for each in get_municipalities_data() if each["active"]]
    named = {(each["code"], each[name]) for each in living for name in ("name", "name_alt", "name_trans") if each[name]}
    return "\n".join(code for code, _ in named), "\n".join(name for _, name in named)
