"""Municipalities by name, before any source has given the chain's list: a practice begins with its workbook."""

from __future__ import annotations

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
        codes, names = zip(*_of_library(), strict=True)
        connection.execute(
            sa.text("""
                INSERT INTO known_place (code, name)
                SELECT * FROM unnest(CAST(:codes AS text[]), CAST(:names AS text[]))"""),
            {"codes": list(codes), "names": list(names)},
        )


def _of_library() -> set[tuple[str, str]]:
    """Those in force: in South Tyrol and the Aosta valley under each of their names."""
    from codicefiscale.data import get_municipalities_data

    living = [each for each in get_municipalities_data() if each["active"]]
    named = {(each["code"], each[name]) for each in living for name in ("name", "name_alt", "name_trans")}
    return {(code, name) for code, name in named if name}
