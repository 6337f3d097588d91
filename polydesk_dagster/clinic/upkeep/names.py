"""The name by which a specialist stands in a list: what an Italian reader looks under, whatever was typed."""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import Kind
from polydesk_dagster.clinic.clinics import clinic_id
from polydesk_dagster.outcome import Report

_PLAIN_TITLES = {
    *("dott", "dottssa", "dottore", "dottoressa", "dr", "drssa", "dssa", "prof", "profssa"),
    *("professore", "professoressa", "primdr"),
}
"""Titles even without a point (written here without any)."""

_POINTED_TITLES = {"avv", "ing", "sig", "sigra", "signa", "rag", "geom", "arch", "med", "dent", "univ", "prim", "chir"}
"""Titles only with a point: without one they may be a name (Ing, Med)."""

_PARTICLES = {
    *("de", "di", "da", "d", "del", "dello", "della", "dell", "dei", "degli", "delle", "dal", "dallo", "dalla"),
    *("dall", "dai", "dagli", "dalle", "lo", "la", "li", "le", "von", "van", "zu", "der", "den"),
    *("zur", "zum", "vom", "ter", "ten"),
}

_WITHOUT_DECOMPOSITION = str.maketrans(
    {"Ø": "O", "Ł": "L", "Đ": "D", "Æ": "AE", "Œ": "OE", "Þ": "TH", "Ð": "D", "İ": "I", "Ħ": "H", "Ŧ": "T"}
)

_APOSTROPHES = re.compile(r"['’‘`´ʼ′]")
_TITLE = re.compile(r"^\s*([^\W\d_]++(?:\.\s?(?:ssa|ra)\b)?)(\.?)[\s\-]*(?=.*\w)", re.IGNORECASE)
_TITLE_BEHIND = re.compile(
    r"(?<=\w)[\s,.\-]*?[\s,(]\s*\(?([^\W\d_]++(?:\.\s?(?:ssa|ra)\b)?)(\.?)[\s,)]*$", re.IGNORECASE
)
_GAP = "  "
"""Between surname and first name: lower than any letter after one blank, so ROSSI comes before ROSSI BIANCHI."""


def fold(text: str) -> str:
    """Capitals, digits and single blanks: without accents, apostrophes and punctuation. Idempotent."""
    capitals = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).upper())
    bare = "".join(c for c in capitals if not unicodedata.combining(c)).translate(_WITHOUT_DECOMPOSITION)
    return " ".join(re.sub(r"[\W_]", " ", _APOSTROPHES.sub("", bare)).split())


def without_titles(name: str) -> str:
    """The name without the titles before and behind it; a name that is nothing but a title stays."""
    while (match := _TITLE.match(name)) and _is_title(*match.groups()):
        name = name[match.end() :]
    while (match := _TITLE_BEHIND.search(name)) and _is_title(*match.groups()):
        name = name[: match.start()]
    return name.strip()


def _is_title(word: str, point: str) -> bool:
    title = re.sub(r"[.\s]", "", word).lower()
    return title in _PLAIN_TITLES or (bool(point or "." in word) and title in _POINTED_TITLES)


def sort_name(last_name: str, first_name: str) -> str:
    """The key under which a specialist is listed: compare it byte by byte and break ties by id.

    Particles belong to the surname and join it (De Luca, D'Angelo, Della Rocca); the parts of a double surname stay
    words, hyphen or not, so the Rossi come before the Rossi Bianchi and those before the Rossini.
    """
    surname = _joined(fold(_APOSTROPHES.sub("' ", without_titles(last_name))), last_name)
    return _GAP.join(part for part in (surname, fold(without_titles(first_name))) if part)


def order_key(stored: str | None, manual: bool, last_name: str, first_name: str) -> str:
    """What lists are ordered by: the stored sort name (folded if set by hand), or what it would be if there is none."""
    if not stored:
        return sort_name(last_name, first_name)
    return fold(stored) if manual else stored


def _joined(folded: str, given: str) -> str:
    words: list[str] = []
    prefix = ""
    elided = {fold(word) for word in re.findall(r"(\w+)['’‘`´ʼ′]\s?(?=\w)", given)}
    for word in folded.split():
        if word.lower() in _PARTICLES or word in elided:
            prefix += word
        else:
            words.append(prefix + word)
            prefix = ""
    return " ".join([*words, prefix] if prefix else words)


SORT_NAME = Kind(
    name="sort_name",
    table="specialist",
    key="r.specialist",
    # the names that the key was made of, and whose it is, must still be what the plan saw
    owned=("sort_name", "last_name", "first_name", "sort_name_manual"),
    carried={"specialist": "text"},
    after=("UPDATE specialist SET updated_at = :as_of WHERE id IN (SELECT id FROM {rows} r)",),
)


def refresh_sort_names(
    engine: sa.Engine, as_of: datetime, clinic: str | None = None, *, preview: bool = False, actor: str = "dagster"
) -> Report:
    """Plan the sort names that differ from the rule, never one set by hand, and unless ``preview`` apply the plan.

    Raises:
        PermanentError: if no clinic has the code ``clinic``.
    """
    with engine.begin() as connection:
        scope = changes.Scope("refresh_sort_names", clinic, clinic_id(connection, clinic))
        where = "deleted_at IS NULL AND (CAST(:clinic AS bigint) IS NULL OR clinic_id = :clinic)"
        found = connection.execute(
            sa.text(f"SELECT id, last_name, first_name, sort_name, sort_name_manual FROM specialist WHERE {where}"),
            {"clinic": scope.clinic_id},
        ).all()
        wanted = {row.id: sort_name(row.last_name, row.first_name) for row in found if not row.sort_name_manual}
        different = [row.id for row in found if row.id in wanted and wanted[row.id] != row.sort_name]
        connection.execute(
            sa.text("""
                CREATE TEMPORARY TABLE sort_name_wanted ON COMMIT DROP AS
                SELECT * FROM unnest(CAST(:ids AS bigint[]), CAST(:names AS text[])) w (id, sort_name)"""),
            {"ids": different, "names": [wanted[id_] for id_ in different]},
        )
        plan = changes.propose(
            connection,
            SORT_NAME,
            scope,
            """
            SELECT 'update' AS action, NULL AS finding, NULL AS reason, s.id, w.sort_name, s.last_name, s.first_name,
                   s.sort_name_manual, concat_ws(' ', s.title, s.last_name, s.first_name) AS specialist
            FROM sort_name_wanted w JOIN specialist s ON s.id = w.id""",
            as_of=as_of,
            unchanged=len(found) - len(different),
        )
        if preview:
            return changes.preview(connection, plan, SORT_NAME)
        return changes.apply(connection, plan.id, as_of=as_of, actor=actor)
