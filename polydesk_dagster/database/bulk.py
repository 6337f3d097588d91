"""Rows in the text format of COPY, many at once: several times faster than handing them over one by one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, time
from decimal import Decimal

import sqlalchemy as sa

Cell = str | int | Decimal | date | time | bytes | Sequence[str | None] | None

_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_QUOTED = str.maketrans({"\\": "\\\\", '"': '\\"'})


LOOKED_UP = "SET LOCAL random_page_cost = 0.1"
"""What an index is asked for lies in memory, some 18 rows of a table are read through in the time of one look: by the
server's own figures, which are a disk's, it would read through 130, all of a chain for one clinic's list."""

BY_INDEX, ANY_WAY = "SET LOCAL enable_seqscan = off", "SET LOCAL enable_seqscan TO DEFAULT"
"""Between the two no statement reads all of a chain's table for one clinic: not where the table is empty when it is
planned and others fill it meanwhile, nor where all rows hashed seem cheaper than looking up those that are wanted."""


def text(value: Cell) -> str:
    r"""One value: ``\N`` for null, arrays in braces, bytes in hexadecimal."""
    if value is None:
        return r"\N"
    if isinstance(value, str):
        return value.translate(_ESCAPES)
    if isinstance(value, bytes):
        return r"\\x" + value.hex()
    if isinstance(value, (list, tuple)):
        items = ("NULL" if item is None else f'"{item.translate(_QUOTED)}"' for item in value)
        return ("{" + ",".join(items) + "}").translate(_ESCAPES)
    return str(value)


def lines(rows: Sequence[Sequence[Cell]]) -> str:
    """The rows, a line each.

    They are joined as they are and looked through once; only where that finds a character to escape is each value
    looked at.
    """
    joined = _joined(rows)
    return "".join(["\t".join([text(cell) for cell in row]) + "\n" for row in rows]) if joined is None else joined


def _joined(rows: Sequence[Sequence[Cell]]) -> str | None:
    """The rows if nothing in them has to be escaped. Where all are text, as often, none is looked at by itself."""
    try:
        joined = "".join(["\t".join([r"\N" if cell is None else cell for cell in row]) + "\n" for row in rows])  # pyrefly: ignore[no-matching-overload]
    except TypeError:
        cells = [[r"\N" if cell is None else cell if type(cell) is str else text(cell) for cell in row] for row in rows]
        joined = "".join(["\t".join(row) + "\n" for row in cells])
    plain = (
        "\r" not in joined
        and joined.count("\n") == len(rows)
        and joined.count("\t") == sum(map(len, rows)) - len(rows)
        and joined.count("\\") == sum([row.count(None) for row in rows])
    )
    return joined if plain else None


def analyze(connection: sa.Connection, what: str, *, target: int) -> None:
    """ANALYZE ``what`` (a table, or some of its columns) by a sample of 300 × ``target`` rows; what the transaction
    analyzes after it is sampled as before."""
    connection.execute(
        sa.text(f"""
            DO $$ DECLARE former text := current_setting('default_statistics_target');
            BEGIN
                PERFORM set_config('default_statistics_target', '{target}', true);
                ANALYZE {what};
                PERFORM set_config('default_statistics_target', former, true);
            END $$""")
    )
