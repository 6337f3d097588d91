"""Who a patient is: fiscal codes that must agree with the person, and adding who is missing without ever merging two.

A record of studiolab is somebody we know when its link says so, or when its fiscal code is letter by letter that of a
patient with the same name and date of birth. Whatever is merely likely (an omocodia variant, one code for two people,
a name and a date where one of the two has no codice fiscale) waits in ``patient_review`` for a person. Nothing of a
patient is ever overwritten.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import date
from functools import cache, lru_cache
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from codicefiscale import codicefiscale

from polydesk_dagster.changes.kind import Kind, Limits, Reject, Source
from polydesk_dagster.changes.stage import Page
from polydesk_dagster.wire import LONGEST, clean

SERVICE = "import_patients"

SUBSTITUTES = "LMNPQRSTUV"
"""The letters that stand for 0 to 9 where two people would have the same code."""

_FOLD = str.maketrans(SUBSTITUTES, "0123456789")
_DIGIT_PLACES = (6, 7, 9, 10, 12, 13, 14)
_MONTHS = " ABCDEHLMPRST"
_FISCAL_CODE = re.compile(
    rf"[A-Z]{{6}}[0-9{SUBSTITUTES}]{{2}}[ABCDEHLMPRST][0-9{SUBSTITUTES}]{{2}}[A-Z][0-9{SUBSTITUTES}]{{3}}[A-Z]"
)
_REGIONAL = re.compile(r"(STP|ENI)[0-9]{13}")
_CADASTRAL = re.compile(r"[A-Z][0-9]{3}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_EMAIL = re.compile(r"[^@\s\"<>(),;:]+@(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z]{2,}")
_SURROGATE = re.compile("[\ud800-\udfff]")
_INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u200c\u200d\u2060"), None) | {0xA0: " "}

_last_name = lru_cache(65_536)(codicefiscale.encode_lastname)
_first_name = lru_cache(65_536)(codicefiscale.encode_firstname)


@lru_cache(131_072)
def birth_part(day: str, sex: str) -> str:
    """The five characters of a fiscal code that an ISO date of birth and the sex make; women's days count from 41."""
    return f"{day[2:4]}{_MONTHS[int(day[5:7])]}{int(day[8:10]) + (40 if sex == 'F' else 0):02d}"


@cache
def _check_values() -> tuple[bytes, bytes]:
    """What each character is worth in an odd and in an even place, as tables for ``bytes.translate``; the values of
    the odd places are asked of the library once."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    odd, even = bytearray(256), bytearray(256)
    base = ord(codicefiscale.encode_cin("A" * 15)) - 1
    for character in letters + "0123456789":
        even[ord(character)] = int(character) if character.isdigit() else letters.index(character)
        odd[ord(character)] = (ord(codicefiscale.encode_cin(character + "A" * 14)) - base) % 26
    return bytes(odd), bytes(even)


def check_letter(code: str) -> str:
    """The last letter of a fiscal code from its first fifteen characters."""
    odd, even = _check_values()
    characters = code.encode("ascii")
    return chr(65 + (sum(characters[0:15:2].translate(odd)) + sum(characters[1:15:2].translate(even))) % 26)


def fold(code: str) -> str:
    """The code without omocodia: digits where substitutes stand, and the check letter that then belongs to it."""
    characters = list(code[:15])
    for place in _DIGIT_PLACES:
        characters[place] = characters[place].translate(_FOLD)
    folded = "".join(characters)
    return folded + check_letter(folded)


def examine(
    code: str, *, last_name: str, first_name: str, sex: str | None, birth_date: str | None, birth_place: str | None
) -> tuple[str, str, str | None]:
    """The code's kind, its canonical form, and an Italian reason why it cannot be this person's, or None.

    Only what is known of the person is compared. Raises ValueError for what is no code at all.
    """
    if _REGIONAL.fullmatch(code):
        return code[:3], code, None
    if not _FISCAL_CODE.fullmatch(code):
        raise ValueError("non ha la forma di un codice fiscale, STP o ENI")
    if code[15] != check_letter(code):
        raise ValueError("la lettera di controllo del codice fiscale non torna")
    canonical = fold(code)
    wrong = []
    if canonical[:3] != _last_name(last_name):
        wrong.append("il cognome")
    if canonical[3:6] != _first_name(first_name):
        wrong.append("il nome")
    if birth_date is not None and canonical[6:11] not in {birth_part(birth_date, s) for s in ([sex] if sex else "MF")}:
        wrong.append("la data di nascita o il sesso")
    elif birth_date is None and sex is not None and (int(canonical[9:11]) > 40) != (sex == "F"):
        wrong.append("il sesso")
    if birth_place is not None and canonical[11:15] != birth_place:
        wrong.append("il luogo di nascita")
    return "CF", canonical, f"il codice fiscale non concorda con {' e '.join(wrong)}" if wrong else None


@cache
def _national() -> tuple[re.Pattern[str], ...]:
    from phonenumbers import PhoneMetadata

    italy: Any = PhoneMetadata.metadata_for_region("IT", None)
    return tuple(re.compile(kind.national_number_pattern) for kind in (italy.mobile, italy.fixed_line))


_TYPED = re.compile(r"[\s./()-]+")


def e164(typed: str) -> str | None:
    """A telephone as the desk typed it, in international form; None if it cannot be one."""
    digits = typed if typed.isdigit() else _TYPED.sub("", typed)
    national = digits.removeprefix("+39")
    mobile, fixed = _national()
    if 8 <= len(national) <= 11 and (mobile.fullmatch(national) or fixed.fullmatch(national)):
        return f"+39{national}"
    return _foreign(typed)


@lru_cache(65_536)
def _foreign(typed: str) -> str | None:
    import phonenumbers

    try:
        number = phonenumbers.parse(typed, "IT")
    except phonenumbers.NumberParseException:
        return None
    if not phonenumbers.is_valid_number(number):
        return None
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def _text(value: object) -> str | None:
    if value is None:
        return None
    if type(value) is not str:
        raise Reject("invalid", "un campo non è un testo")
    if not (value.isascii() and value.isprintable()):
        value = unicodedata.normalize("NFC", value.translate(_INVISIBLE))
        if "\0" in value or _SURROGATE.search(value):
            raise Reject("invalid", "un campo contiene caratteri che non sono un testo")
    if len(value) > LONGEST:
        raise Reject("invalid", f"un campo ha più di {LONGEST} caratteri")
    return value.strip() or None


@lru_cache(131_072)
def _day(value: str) -> str:
    try:
        return date.fromisoformat(day).isoformat() if _DATE.fullmatch(day := clean(value)) else ""
    except ValueError:
        return ""


def _all_plain(texts: list[Any]) -> bool:
    """Whether nothing has to be done to any of these: one look for all, because nearly all are so."""
    try:
        joined = "|".join([text for text in texts if text is not None])
    except TypeError:
        return False
    return (
        len(joined) <= LONGEST
        and joined.isascii()
        and joined.isprintable()
        and " |" not in joined
        and "| " not in joined
        and "" not in texts
        and joined == joined.strip()
    )


def _date(value: object) -> str | None:
    day = _day(value) if type(value) is str else ""
    if not day and _text(value) is not None:
        raise Reject("invalid", "una data non è una data")
    return day or None


@lru_cache(65_536)
def _is_place(value: str | None) -> bool:
    return value is None or _CADASTRAL.fullmatch(value) is not None


_TEXT_FIELDS = (
    "id",
    "last_name",
    "first_name",
    "fiscal_code",
    "birth_place",
    "residence",
    "address",
    "postal_code",
    "email",
    "phone",
    "mobile",
)
_OTHER_FIELDS = ("sex", "birth_date", "deceased_on", "updated_at")
_TEXTS, _OTHERS = itemgetter(*_TEXT_FIELDS), itemgetter(*_OTHER_FIELDS)
_ABSENT = dict.fromkeys((*_TEXT_FIELDS, *_OTHER_FIELDS))


def prepare(item: Mapping[str, Any]) -> tuple[str | None, ...]:
    """One patient of studiolab as staged values, problem and reason last.

    A record whose code is wrong or disagrees with the person is a problem for the review; a telephone or an address
    that cannot be one is left empty. Raises Reject when the record cannot be read at all.
    """
    if not isinstance(item, Mapping):
        raise Reject("invalid", "non è un oggetto")
    try:
        texts, (sex, born, died, updated_at) = list(_TEXTS(item)), _OTHERS(item)
    except KeyError:
        whole = {**_ABSENT, **item}
        texts, (sex, born, died, updated_at) = list(_TEXTS(whole)), _OTHERS(whole)
    if not _all_plain(texts):
        texts = [_text(value) for value in texts]
    external_id, last_name, first_name, code, birth_place, residence, address, postal_code, email, phone, mobile = texts
    if not (external_id and last_name and first_name and updated_at):
        raise Reject("invalid", "manca id, last_name, first_name o updated_at")
    if sex == "":
        sex = None
    if sex is not None and sex not in ("M", "F"):
        raise Reject("invalid", "sex non è M né F")
    birth_date = None if born is None else _date(born)
    deceased_on = None if died is None else _date(died)
    if birth_date and deceased_on and deceased_on < birth_date:
        raise Reject("invalid", "deceased_on viene prima di birth_date")
    if not (_is_place(birth_place) and _is_place(residence)):
        raise Reject("invalid", "birth_place o residence non è un codice catastale")
    canonical = kind = problem = reason = None
    if code is not None:
        code = code.upper().replace(" ", "")
        expected = None
        if sex and birth_date and birth_place:
            expected = _last_name(last_name) + _first_name(first_name) + birth_part(birth_date, sex) + birth_place
        if len(code) == 16 and expected == code[:15] and check_letter(expected) == code[15]:
            canonical, kind = code, "CF"
        else:
            try:
                kind, canonical, reason = examine(
                    code,
                    last_name=last_name,
                    first_name=first_name,
                    sex=sex,
                    birth_date=birth_date,
                    birth_place=birth_place,
                )
            except ValueError as wrong:
                code, reason = None, str(wrong)
            problem = "invalid" if reason else None
    elif birth_date is None:
        problem, reason = "invalid", "senza codice fiscale e senza data di nascita"
    if email is not None and not _EMAIL.fullmatch(email):
        email = None
    return (
        external_id,
        code,
        canonical,
        kind,
        last_name,
        first_name,
        sex,
        birth_date,
        birth_place,
        residence,
        address,
        postal_code,
        email,
        e164(phone) if phone else None,
        e164(mobile) if mobile else None,
        deceased_on,
        problem,
        reason,
    )


COLUMNS = {
    "fiscal_code": "text",
    "fiscal_code_canonical": "text",
    "fiscal_code_kind": "text",
    "last_name": "text",
    "first_name": "text",
    "sex": "text",
    "birth_date": "date",
    "birth_place": "text",
    "residence": "text",
    "address": "text",
    "postal_code": "text",
    "email": "text",
    "phone": "text",
    "mobile": "text",
    "deceased_on": "date",
}

SAME_NAME = """(name_key({p}.last_name) = name_key({s}.last_name)
                 AND name_key({p}.first_name) = name_key({s}.first_name))"""

NO_CODE = "{p}.fiscal_code_kind IS DISTINCT FROM 'CF'"
"""A codice fiscale tells people apart for life. An STP or an ENI is given anew, and given up for a codice fiscale."""

SAME_PERSON = f"({{p}}.birth_date = {{s}}.birth_date AND {SAME_NAME})"

CERTAIN = f"({{p}}.fiscal_code = {{s}}.fiscal_code AND {SAME_PERSON})"

_KNOWN = """
    DELETE FROM {rows} s USING patient_link l WHERE l.clinic_id = :clinic_id AND l.external_id = s.external_id
"""

# Dismissed while the list was being read; those from before are not even read.
_DISMISSED = """
    DELETE FROM {rows} s USING patient_review q
    WHERE q.clinic_id = :clinic_id AND q.external_id = s.external_id AND q.state = 'dismissed'
"""

# Nobody is born, or has died, later than on the clinic's today; a code, of whose year only two digits are written,
# agrees with the wrong century as well. The first of January 1900 is put in where a date is not known.
_OUT_OF_TIME = """
    UPDATE {rows} s
    SET action = 'conflict', id = NULL, finding = 'invalid',
        reason = CASE WHEN greatest(s.birth_date, s.deceased_on) > c.today
                      THEN 'la data di nascita o di decesso è nel futuro'
                      ELSE 'la data di nascita è prima del 1900' END
    FROM (SELECT CAST(CAST(:as_of AS timestamptz) AT TIME ZONE time_zone AS date) AS today
          FROM clinic WHERE id = :clinic_id) c
    WHERE s.finding IS NULL
      AND (greatest(s.birth_date, s.deceased_on) > c.today
           OR s.birth_date < '1900-01-01')
"""

_CROWD = 100
"""From so many people without a codice fiscale who were born on one day on (a date put in for an unknown one, perhaps),
names are compared by hashing them: each with each would take for ever."""


def _namesakes(columns: str, others: str, where: str) -> str:
    """SQL for ``columns`` of every record ``s`` and other one ``o`` with the same date of birth and name."""
    pairs = f"SELECT {columns} FROM {{rows}} s JOIN {others} o ON o.birth_date = s.birth_date"
    same = SAME_NAME.format(p="o", s="s")
    return f"""{pairs} AND (s.birth_date IN (TABLE crowd)) IS NOT TRUE AND {same} IS TRUE
              WHERE {where}
              UNION ALL
              {pairs} AND {same} WHERE s.birth_date IN (TABLE crowd) AND {where} AND EXISTS (TABLE crowd)"""


# Only what is not simply new: the list itself is gone through once for each way of meeting somebody. Names are compared
# where the date of birth agrees, hence IS TRUE: their keys are not worked out for everybody else.
_DOUBTS = f"""
    CREATE TEMP TABLE doubt ON COMMIT DROP AS
    WITH twice AS MATERIALIZED (
        SELECT fiscal_code_canonical AS code, count(*) AS people, count(DISTINCT fiscal_code) AS codes,
               count(DISTINCT (name_key(last_name), name_key(first_name), birth_date)) AS identities,
               min(ordinal) AS first
        FROM {{rows}} WHERE finding IS NULL AND fiscal_code_canonical IN (
            SELECT fiscal_code_canonical FROM {{rows}} WHERE finding IS NULL AND fiscal_code_canonical IS NOT NULL
            GROUP BY 1 HAVING count(*) > 1)
        GROUP BY 1
    ), sharing AS MATERIALIZED (
        SELECT s.ordinal, t.people, t.codes, t.identities, t.first
        FROM {{rows}} s JOIN twice t ON t.code = s.fiscal_code_canonical WHERE s.finding IS NULL
    ), by_code AS MATERIALIZED (
        SELECT s.ordinal, array_agg(p.id ORDER BY p.id) AS candidates,
               count(*) = 1 AND bool_and({CERTAIN.format(p="p", s="s")}) AS certain
        FROM {{rows}} s JOIN patient p ON p.fiscal_code_canonical = s.fiscal_code_canonical GROUP BY 1
    ), crowd AS MATERIALIZED (
        SELECT birth_date FROM {{rows}} s WHERE {NO_CODE.format(p="s")} GROUP BY 1 HAVING count(*) > {_CROWD}
        UNION
        SELECT birth_date FROM patient p WHERE {NO_CODE.format(p="p")} GROUP BY 1 HAVING count(*) > {_CROWD}
    ), by_name AS MATERIALIZED (
        SELECT ordinal, array_agg(DISTINCT id ORDER BY id) AS candidates
        FROM ({_namesakes("s.ordinal, o.id", "patient", NO_CODE.format(p="s"))}
              UNION ALL
              {_namesakes("s.ordinal, o.id", "patient", NO_CODE.format(p="o"))}) same
        GROUP BY 1
    ), without_code AS MATERIALIZED (
        SELECT DISTINCT ordinal
        FROM ({
    _namesakes("s.ordinal", "{rows}", f"{NO_CODE.format(p='s')} AND s.finding IS NULL AND o.ordinal <> s.ordinal")
}) same
    ), waiting AS MATERIALIZED (
        SELECT s.ordinal, q.cause, q.record, s.fiscal_code, s.last_name, s.first_name, s.birth_date
        FROM patient_review q JOIN {{rows}} s USING (external_id)
        WHERE q.clinic_id = :clinic_id AND q.state = 'open'
    )
    SELECT ordinal, coalesce(c.candidates, i.candidates) AS candidates, c.candidates[1] AS known,
           CASE WHEN t.identities > 1 OR t.codes > 1 THEN 'più record con lo stesso codice fiscale e identità diverse'
                WHEN t.people > 1 AND ordinal <> t.first THEN 'lo stesso codice fiscale di un altro record'
                WHEN c.certain IS NOT TRUE AND c.ordinal IS NOT NULL
                THEN 'codice fiscale di un paziente noto, ma identità o codice non coincidono'
                WHEN c.ordinal IS NULL AND i.ordinal IS NOT NULL
                THEN 'stesso nome e data di nascita di un paziente noto'
                WHEN w.ordinal IS NOT NULL
                THEN 'stesso nome e data di nascita di un altro record, senza codice fiscale'
                WHEN r.cause LIKE 'ora senza dubbi%' THEN r.cause
                WHEN r.record ->> 'last_name' IS NOT NULL
                 AND (r.record ->> 'fiscal_code', r.record ->> 'last_name', r.record ->> 'first_name',
                      r.record ->> 'birth_date')
                     IS DISTINCT FROM (r.fiscal_code, r.last_name, r.first_name, CAST(r.birth_date AS text))
                THEN 'ora senza dubbi: corretto alla fonte (prima: ' || r.cause || ')'
                WHEN r.ordinal IS NOT NULL THEN r.cause
           END AS doubt
    FROM (SELECT ordinal FROM sharing UNION SELECT ordinal FROM by_code UNION SELECT ordinal FROM by_name
          UNION SELECT ordinal FROM without_code UNION SELECT ordinal FROM waiting) special
    LEFT JOIN sharing t USING (ordinal)
    LEFT JOIN by_code c USING (ordinal)
    LEFT JOIN by_name i USING (ordinal)
    LEFT JOIN without_code w USING (ordinal)
    LEFT JOIN waiting r USING (ordinal)
"""

_MARK = """
    UPDATE {rows} s
    SET action = CASE WHEN doubt IS NULL AND finding IS NULL THEN 'link' ELSE 'conflict' END,
        finding = CASE WHEN doubt IS NULL THEN finding ELSE coalesce(finding, 'duplicate') END,
        reason = coalesce(s.reason, doubt, 'stesso codice fiscale, nome e data di nascita'),
        id = CASE WHEN doubt IS NULL AND finding IS NULL THEN d.known END,
        candidates = d.candidates
    FROM doubt d WHERE d.ordinal = s.ordinal AND (d.doubt IS NOT NULL OR d.known IS NOT NULL)
"""

PATIENT = Kind(
    name="patient",
    label="pazienti",
    table="patient",
    key="r.external_id",
    fixed=tuple(COLUMNS),
    kept=("language", "preferred_channel", "guardian_id"),
    carried={"external_id": "text", "candidates": "bigint[]"},
    private=True,
    taken="t.fiscal_code_canonical = r.fiscal_code_canonical",
    alike=tuple(f"{NO_CODE.format(p=p)} AND {SAME_PERSON.format(p='t', s='r')}" for p in "rt"),
    barred=f"""CASE WHEN r.action = 'link' AND CAST(:undoes AS bigint) IS NULL
                         AND {CERTAIN.format(p="t", s="r")} IS NOT TRUE
                    THEN 'l''anagrafica non è più quella con cui coincideva' END""",
    dependents=("patient_link",),
    held="""CASE WHEN EXISTS (SELECT FROM patient_link l
                                WHERE l.patient_id = t.id AND l.plan_id IS DISTINCT FROM :undoes)
                 THEN 'collegato anche altrove' END""",
    limits=Limits(shrink=0.3, rejected=0.05, retired=None),
    # Two imports that would create the same person wait for each other; the later one then finds them here.
    before=("LOCK TABLE patient IN SHARE ROW EXCLUSIVE MODE",),
    after=(
        """INSERT INTO patient_link (clinic_id, external_id, patient_id, made_by, plan_id, made_at)
           SELECT :clinic_id, external_id, id, CASE action WHEN 'create' THEN 'created' ELSE 'code' END,
                  :plan_id, :as_of
           FROM {rows} r WHERE action IN ('create', 'link')""",
        """INSERT INTO patient_review AS q (clinic_id, external_id, cause, candidates, record, found_at)
           SELECT :clinic_id, external_id, reason, coalesce(candidates, '{{}}'),
                  to_jsonb(r) - 'ordinal' - 'action' - 'finding' - 'reason' - 'candidates' - 'id', :as_of
           FROM {rows} r WHERE action = 'conflict'
             AND NOT EXISTS (SELECT FROM patient_link l
                             WHERE l.clinic_id = :clinic_id AND l.external_id = r.external_id)
             AND NOT EXISTS (SELECT FROM patient_review d
                             WHERE d.clinic_id = :clinic_id AND d.external_id = r.external_id
                               AND d.state = 'dismissed')
           ON CONFLICT (clinic_id, external_id) WHERE state = 'open' DO UPDATE
           SET record = excluded.record, cause = excluded.cause,
               candidates = CASE WHEN excluded.candidates = '{{}}' THEN q.candidates ELSE excluded.candidates END
           WHERE q.record <> excluded.record""",
    ),
    undo_before=(
        """WITH ended AS (
               DELETE FROM patient_link l USING {rows} r
               WHERE l.clinic_id = :clinic_id AND l.external_id = r.external_id AND l.plan_id = :undoes
                 AND r.action IN ('delete', 'link') RETURNING l.*)
           INSERT INTO patient_link_ended (clinic_id, external_id, patient_id, made_by, made_at, ended_at, reason)
           SELECT clinic_id, external_id, patient_id, made_by, made_at, :as_of, 'annullato il piano ' || :undoes
           FROM ended""",
    ),
    source=Source(
        columns={"external_id": "text", **COLUMNS},
        prepare=prepare,
        label=lambda item: str(item.get("id") or "?") if isinstance(item, Mapping) else "?",
        text=("last_name", "first_name"),
        key=("{}.external_id",),
        indexed="action, external_id, fiscal_code_canonical, fiscal_code_kind, birth_date",
        judge=("DROP TABLE IF EXISTS doubt", _KNOWN, _DISMISSED, _OUT_OF_TIME, _DOUBTS, _MARK),
        version="""SELECT concat_ws('/', count(*), max(made_at), (
                       SELECT count(*) FROM patient_review WHERE clinic_id = :clinic_id AND state = 'dismissed'))
                   FROM patient_link WHERE clinic_id = :clinic_id""",
    ),
)


def missing_only(pages: Iterable[Page], known: frozenset[str]) -> Iterator[Page]:
    """``pages`` without the records that are linked already: of those nothing is looked at, whatever they say."""
    for page in pages:
        if known:
            fresh = [item for item in page.records if not _is_known(item, known)]
            yield replace(page, records=fresh, passed=len(page.records) - len(fresh))
        else:
            yield page


def _is_known(item: object, known: frozenset[str]) -> bool:
    external_id = item.get("id") if isinstance(item, Mapping) else None
    return isinstance(external_id, str) and external_id in known


def linked(connection: sa.Connection, clinic_id: int) -> frozenset[str]:
    """The names by which the clinic's studiolab knows patients that are linked, or that a person has dismissed."""
    found = connection.execute(
        sa.text("""SELECT external_id FROM patient_link WHERE clinic_id = :clinic_id
                   UNION ALL
                   SELECT external_id FROM patient_review WHERE clinic_id = :clinic_id AND state = 'dismissed'"""),
        {"clinic_id": clinic_id},
        execution_options={"stream_results": True, "max_row_buffer": 10_000},
    )
    return frozenset(found.scalars())
