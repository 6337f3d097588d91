"""What a browser and the server load first, kept ready: per clinic its specialists and its locations, as JSON.

A document is built aside, stored as a new version and switched to in the same transaction; what did not change keeps
its version. Never holds, sessions or ledgers, and nothing here decides a booking.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import sqlalchemy as sa

from polydesk_dagster.clinic.clinics import clinic_id
from polydesk_dagster.clinic.turns import turn
from polydesk_dagster.clinic.upkeep.names import fold, order_key
from polydesk_dagster.outcome import Counts, Outcome, Reason, Report, Table, combine, done
from polydesk_dagster.values import Instant

CHANNEL = "polydesk_cache"
"""Listeners are told here, at commit, that some version was switched."""

Progress = Callable[[int, int, str], None]

# A specialist who has left, or an agenda that has ended, goes out of the document by the calendar alone: ``ends`` is
# the last day on which the row says what it says.
SPECIALISTS = """
    SELECT s.clinic_id, s.id, s.title, s.last_name, s.first_name, s.sort_name, s.sort_name_manual, s.specialties,
           coalesce(a.location_ids, '{}') AS location_ids, coalesce(a.service_ids, '{}') AS service_ids,
           coalesce(a.online, false) AS online, least(s.ends_on, a.ends) AS ends
    FROM specialist s JOIN scope c ON c.id = s.clinic_id
    LEFT JOIN (
        SELECT a.specialist_id, array_agg(DISTINCT a.location_id) AS location_ids, bool_or(a.online) AS online,
               array_agg(DISTINCT v.id) FILTER (WHERE v.id IS NOT NULL) AS service_ids, min(a.valid_to) AS ends
        FROM agenda a JOIN scope c ON c.id = a.clinic_id
        LEFT JOIN agenda_service m ON m.agenda_id = a.id
        LEFT JOIN service v ON v.id = m.service_id AND v.active AND v.deleted_at IS NULL
        WHERE a.active AND (a.valid_to IS NULL OR a.valid_to >= c.today)
        GROUP BY a.specialist_id) a ON a.specialist_id = s.id
    WHERE s.active AND s.deleted_at IS NULL AND (s.ends_on IS NULL OR s.ends_on >= c.today)
"""

LOCATIONS = """
    SELECT l.clinic_id, l.id, l.name, l.address, l.postal_code, l.phone, m.name AS municipality, m.province,
           m.valid_to - 1 AS ends
    FROM location l JOIN scope c ON c.id = l.clinic_id
    LEFT JOIN LATERAL (SELECT * FROM municipality m
                       WHERE m.cadastral_code = l.municipality_code AND m.valid_from <= c.today
                       ORDER BY m.valid_from DESC LIMIT 1) m ON true
    WHERE l.active
"""


def _specialist(row: sa.Row[tuple[object, ...]]) -> tuple[tuple[str, int], dict[str, object]]:
    key = order_key(row.sort_name, row.sort_name_manual, row.last_name, row.first_name)
    return (key, row.id), {
        "id": row.id,
        "sort": key,
        "title": row.title,
        "last_name": row.last_name,
        "first_name": row.first_name,
        "specialties": row.specialties,
        "locations": row.location_ids,
        "services": row.service_ids,
        "online": row.online,
    }


def _location(row: sa.Row[tuple[object, ...]]) -> tuple[tuple[str, int], dict[str, object]]:
    return (fold(row.name), row.id), {
        "id": row.id,
        "name": row.name,
        "address": row.address,
        "postal_code": row.postal_code,
        "municipality": row.municipality,
        "province": row.province,
        "phone": row.phone,
    }


@dataclass(frozen=True, slots=True)
class Cache:
    """One kind of document: the query of its rows, and what is shown of each with its place in the order."""

    query: str
    item: Callable[[sa.Row[tuple[object, ...]]], tuple[tuple[str, int], dict[str, object]]]


CACHES: Mapping[str, Cache] = {
    "specialists": Cache(SPECIALISTS, _specialist),
    "locations": Cache(LOCATIONS, _location),
}


def due(connection: sa.Connection, as_of: datetime) -> Reason | None:
    """Why there is nothing to build now; None when there is."""
    waiting = connection.scalar(sa.text("SELECT EXISTS (SELECT FROM cache_change)"))
    if waiting or _stale(connection, as_of, None):
        return None
    return Reason("caches_unchanged")


def refresh(
    engine: sa.Engine,
    as_of: datetime,
    clinic: str | None = None,
    *,
    preview: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Build the documents of the clinics whose records changed, and switch those whose content did.

    Changes that commit meanwhile stay logged for the next time. With ``preview`` nothing is kept.

    Raises:
        PermanentError: if no clinic has the code ``clinic``.
        TransientError: when another refresh did not end in time.
    """
    return _run(engine, as_of, clinic, anew=False, preview=preview, progress=progress)


def clear(
    engine: sa.Engine,
    as_of: datetime,
    clinic: str | None = None,
    *,
    preview: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Build every document of the clinic (or of all) from the records, in a fresh generation, and switch to it.

    Until the commit the old documents are served; afterwards no ETag handed out before holds any more, so browsers
    load everything again. The old generation is then deleted. Raises as ``refresh``.
    """
    return _run(engine, as_of, clinic, anew=True, preview=preview, progress=progress)


def _run(
    engine: sa.Engine, as_of: datetime, clinic: str | None, *, anew: bool, preview: bool, progress: Progress | None
) -> Report:
    with turn(engine, "cache_current", "caches", keep=not preview) as connection:
        return _refresh(connection, as_of, clinic_id(connection, clinic), anew, progress or (lambda *_: None))


def _stale(connection: sa.Connection, as_of: datetime, clinic: int | None) -> list[int]:
    """Clinics where a document changes by the calendar alone, or is missing."""
    return list(
        connection.scalars(
            sa.text("""
                SELECT c.id FROM clinic c
                LEFT JOIN (SELECT cc.clinic_id, count(*) AS documents, min(v.stale_on) AS stale_on
                           FROM cache_current cc JOIN cache_version v USING (clinic_id, kind, version)
                           GROUP BY cc.clinic_id) d ON d.clinic_id = c.id
                WHERE c.active AND (CAST(:clinic AS bigint) IS NULL OR c.id = :clinic)
                  AND (coalesce(d.documents, 0) < :kinds
                       OR d.stale_on <= CAST(CAST(:as_of AS timestamptz) AT TIME ZONE c.time_zone AS date))"""),
            {"clinic": clinic, "as_of": as_of, "kinds": len(CACHES)},
        )
    )


def _refresh(connection: sa.Connection, as_of: datetime, clinic: int | None, anew: bool, progress: Progress) -> Report:
    here = "CAST(:clinic AS bigint) IS NULL OR clinic_id = :clinic"
    changed = connection.scalars(
        sa.text(f"SELECT DISTINCT clinic_id FROM cache_change WHERE {here}"), {"clinic": clinic}
    ).all()
    wanted = {*changed, *_stale(connection, as_of, clinic)}
    if not wanted and not anew:
        return Report(Outcome.NOTHING_TO_DO)
    connection.execute(
        sa.text("""
            CREATE TEMPORARY TABLE scope ON COMMIT DROP AS
            SELECT id, code, time_zone, CAST(CAST(:as_of AS timestamptz) AT TIME ZONE time_zone AS date) AS today
            FROM clinic
            WHERE active AND (CAST(:clinic AS bigint) IS NULL OR id = :clinic) AND (:anew OR id = ANY(:wanted))"""),
        {"as_of": as_of, "clinic": clinic, "anew": anew, "wanted": sorted(wanted)},
    )
    connection.execute(sa.text("ANALYZE scope"))
    reports = []
    for n, (kind, cache) in enumerate(CACHES.items()):
        progress(n, len(CACHES), f"cache.{kind}")
        reports.append(_switch(connection, kind, cache, as_of, anew))
    gone = connection.execute(
        sa.text(f"""
            DELETE FROM cache_version v USING clinic c
            WHERE c.id = v.clinic_id AND NOT c.active AND ({here.replace("clinic_id", "v.clinic_id")})"""),
        {"clinic": clinic},
    ).rowcount
    connection.execute(sa.text(f"DELETE FROM cache_change WHERE {here}"), {"clinic": clinic})
    report = combine(reports)
    counts = report.counts + Counts(retired=gone)
    if counts.changed:
        connection.execute(sa.text("SELECT pg_notify(:channel, '')"), {"channel": CHANNEL})
    progress(len(CACHES), len(CACHES), "progress.publication")
    return Report(done(counts), counts, report.reasons, report.figures, report.tables)


def _switch(connection: sa.Connection, kind: str, cache: Cache, as_of: datetime, anew: bool) -> Report:
    """Build one kind's documents of the clinics in ``scope`` and switch to those that differ from what is served."""
    clinics = {row.id: row for row in connection.execute(sa.text("SELECT * FROM scope ORDER BY code"))}
    served = {
        row.clinic_id: row
        for row in connection.execute(
            sa.text("""
                SELECT v.clinic_id, v.version, v.generation, v.etag, v.stale_on
                FROM cache_current JOIN cache_version v USING (clinic_id, kind, version) WHERE kind = :kind"""),
            {"kind": kind},
        )
    }
    items: dict[int, list[tuple[tuple[str, int], dict[str, object]]]] = {clinic: [] for clinic in clinics}
    ends: dict[int, date] = {}
    for row in connection.execute(sa.text(cache.query)):
        items[row.clinic_id].append(cache.item(row))
        if row.ends is not None and row.ends >= clinics[row.clinic_id].today:
            ends[row.clinic_id] = min(ends.get(row.clinic_id, row.ends), row.ends)
    versions, created = [], 0
    for clinic, rows in items.items():
        before = served.get(clinic)
        generation = 1 if before is None else before.generation + anew
        body = _json({"clinic": clinics[clinic].code, kind: [item for _, item in sorted(rows, key=lambda r: r[0])]})
        etag = f"{generation}-{hashlib.sha256(body).hexdigest()[:24]}"
        stale_on = ends[clinic] + timedelta(days=1) if clinic in ends else None
        if before is not None and (before.etag, before.stale_on) == (etag, stale_on):
            continue
        created += before is None
        versions.append(
            {
                "clinic": clinic,
                "kind": kind,
                "version": 1 if before is None else before.version + 1,
                "generation": generation,
                "etag": etag,
                "body": body,
                "zipped": gzip.compress(body, 6, mtime=0),
                "items": len(rows),
                "stale_on": stale_on,
                "built_at": as_of,
            }
        )
    if versions:
        _store(connection, kind, versions)
    counts = Counts(created=created, updated=len(versions) - created, unchanged=len(clinics) - len(versions))
    return Report(done(counts), counts, tables=(_table(kind, clinics, versions),) if versions else ())


def _json(document: dict[str, object]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _store(connection: sa.Connection, kind: str, versions: list[dict[str, object]]) -> None:
    """Insert the versions, point to them, and drop what came before the ones that they replace."""
    connection.execute(
        sa.text("""
            INSERT INTO cache_version (clinic_id, kind, version, generation, etag, body, zipped, items, stale_on,
                                       built_at)
            VALUES (:clinic, :kind, :version, :generation, :etag, :body, :zipped, :items, :stale_on, :built_at)"""),
        versions,
    )
    connection.execute(
        sa.text("""
            INSERT INTO cache_current (clinic_id, kind, version)
            SELECT clinic_id, kind, max(version) FROM cache_version
            WHERE kind = :kind AND clinic_id = ANY(:clinics) GROUP BY clinic_id, kind
            ON CONFLICT (clinic_id, kind) DO UPDATE SET version = excluded.version"""),
        {"kind": kind, "clinics": [version["clinic"] for version in versions]},
    )
    connection.execute(
        sa.text("""
            DELETE FROM cache_version v USING cache_current c JOIN cache_version n USING (clinic_id, kind, version)
            WHERE v.kind = :kind AND v.clinic_id = n.clinic_id AND v.kind = n.kind
              AND (v.version < n.version - 1 OR v.generation < n.generation)"""),
        {"kind": kind},
    )


def _table(kind: str, clinics: Mapping[int, sa.Row[tuple[object, ...]]], versions: list[dict[str, object]]) -> Table:
    rows = [
        (clinics[v["clinic"]].code, v["version"], v["generation"], v["items"], len(v["body"]), v["etag"])  # pyrefly: ignore[bad-argument-type, bad-index]
        for v in versions
    ]
    return Table(
        f"new_{kind}",
        ("clinic", "version", "generation", "items", "bytes", "etag"),
        tuple(rows[:50]),
        len(rows),
    )


def current(connection: sa.Connection, kind: str) -> Table:
    """What is served now, clinic by clinic."""
    rows = connection.execute(
        sa.text("""
            SELECT c.code, v.version, v.generation, v.items, length(v.body) AS bytes, v.etag, v.built_at,
                   c.time_zone
            FROM cache_current JOIN cache_version v USING (clinic_id, kind, version) JOIN clinic c ON c.id = v.clinic_id
            WHERE kind = :kind ORDER BY c.code"""),
        {"kind": kind},
    ).all()
    return Table(
        f"current_{kind}",
        ("clinic", "version", "generation", "items", "bytes", "etag", "built_at"),
        tuple((*row[:6], Instant(row.built_at, row.time_zone)) for row in rows[:50]),
        len(rows),
    )
