"""Count again the cells that changed, publish them whole, and prove that this equals counting everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from polydesk_dagster.clinic.clinics import clinic_id
from polydesk_dagster.clinic.statistics.topics import TOPICS, Topic
from polydesk_dagster.clinic.turns import turn
from polydesk_dagster.outcome import Counts, Outcome, Reason, Report, done
from polydesk_dagster.values import Value

NIGHT = ZoneInfo("Europe/Rome")
"""The zone in which the nightly comparison has its business date."""

NIGHT_BEGINS = timedelta(hours=4)
"""When the night's own jobs are done and everything may be counted once more."""

SAMPLE = 200
"""Cells of each topic that a sample compares."""

Progress = Callable[[int, int, str], None]


@contextmanager
def _snapshot(engine: sa.Engine, *, keep: bool) -> Iterator[sa.Connection]:
    with turn(engine, "statistic_publication", "statistics", keep=keep) as connection:
        connection.execute(sa.text("SET LOCAL work_mem = '128MB'"))
        yield connection


def due(connection: sa.Connection, as_of: datetime) -> Reason | None:
    """Why there is nothing to refresh or compare now; None when there is."""
    if connection.scalar(sa.text("SELECT EXISTS (SELECT FROM statistic_change)")):
        return None
    if comparison_due(connection, as_of):
        return None
    return Reason("statistics_unchanged")


def refresh(
    engine: sa.Engine,
    as_of: datetime,
    clinic: str | None = None,
    *,
    full: bool = False,
    preview: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Recompute the cells named in the change log, or with ``full`` all of them, and publish them in one transaction.

    Readers see the old numbers until the commit. Rows of the log are deleted only if this transaction's snapshot holds
    them: what commits meanwhile stays for the next refresh. With ``preview`` nothing is kept.

    Raises:
        PermanentError: if no clinic has the code ``clinic``.
        TransientError: when another refresh did not end in time.
    """
    with _snapshot(engine, keep=not preview) as connection:
        report = _refresh(connection, as_of, clinic_id(connection, clinic), full, progress or (lambda *_: None))
    return replace(report, preview=preview)


def _refresh(connection: sa.Connection, as_of: datetime, clinic: int | None, full: bool, progress: Progress) -> Report:
    log = connection.execute(
        sa.text("""
            SELECT topic, max(changed_at) AS newest FROM statistic_change
            WHERE CAST(:clinic AS bigint) IS NULL OR clinic_id = :clinic GROUP BY topic"""),
        {"clinic": clinic},
    ).all()
    newest = {row.topic: row.newest for row in log}
    topics = [topic for topic in TOPICS.values() if full or topic.key in newest]
    if clinic is None:
        _looked(connection, as_of)
    if not topics:
        return Report(Outcome.NOTHING_TO_DO, figures={"statistic_recounted": 0})
    _collect_cells(connection, topics, clinic)
    counts, cells, unlogged = Counts(), 0, 0
    for done_so_far, topic in enumerate(topics):
        progress(done_so_far, len(topics), f"statistic_topic.{topic.key}")
        published = _publish(connection, topic, clinic, full or _many(connection, topic, clinic))
        counts, cells = counts + published.counts, cells + published.cells
        unlogged += published.unlogged
        _record(connection, topic, published, as_of=as_of, watermark=newest.get(topic.key), full=full)
    connection.execute(
        sa.text("DELETE FROM statistic_change WHERE CAST(:clinic AS bigint) IS NULL OR clinic_id = :clinic"),
        {"clinic": clinic},
    )
    progress(len(topics), len(topics), "progress.publication")
    reasons = (Reason("statistic_drift", count=unlogged),) if unlogged else ()
    figures: dict[str, Value] = {"statistic_recounted": cells, "statistic_changed": counts.changed}
    return Report(done(counts), counts, reasons, figures)


def _collect_cells(connection: sa.Connection, topics: list[Topic], clinic: int | None) -> None:
    """Put the log's cells into the temporary table ``dirty``; a row without a day stands for each of its clinic."""
    connection.execute(
        sa.text("""
            CREATE TEMPORARY TABLE dirty ON COMMIT DROP AS
            SELECT DISTINCT topic, clinic_id, day FROM statistic_change
            WHERE day IS NOT NULL AND (CAST(:clinic AS bigint) IS NULL OR clinic_id = :clinic)"""),
        {"clinic": clinic},
    )
    for topic in topics:
        connection.execute(
            sa.text(f"""
                INSERT INTO dirty
                SELECT :topic, x.clinic_id, d.day
                FROM (SELECT DISTINCT clinic_id FROM statistic_change
                      WHERE topic = :topic AND day IS NULL
                        AND (CAST(:clinic AS bigint) IS NULL OR clinic_id = :clinic)) x
                LEFT JOIN clinic c ON c.id = x.clinic_id
                CROSS JOIN LATERAL (({topic.days}) UNION SELECT day FROM {topic.table} t
                                    WHERE t.clinic_id = x.clinic_id) d (day)
                EXCEPT TABLE dirty"""),
            {"topic": topic.key, "clinic": clinic},
        )
    connection.execute(sa.text("ANALYZE dirty"))


def _many(connection: sa.Connection, topic: Topic, clinic: int | None) -> bool:
    """Whether so many cells changed that going through them one by one costs more than counting everything."""
    if clinic is not None:
        return False
    return bool(
        connection.scalar(
            sa.text("""
                SELECT (SELECT count(*) FROM dirty WHERE topic = :topic)
                       > 1000 + coalesce((SELECT days FROM statistic_publication WHERE topic = :topic), 0) / 3"""),
            {"topic": topic.key},
        )
    )


@dataclass(frozen=True, slots=True)
class _Published:
    counts: Counts
    cells: int
    unlogged: int
    """Cells found different although the log did not name them."""
    rows: int
    """Rows that the topic gained or lost."""


def _publish(connection: sa.Connection, topic: Topic, clinic: int | None, full: bool) -> _Published:
    """Count the topic's cells and replace the rows that differ from the stored ones."""
    connection.execute(
        sa.text("CREATE TEMPORARY TABLE cell ON COMMIT DROP AS SELECT clinic_id, day FROM dirty WHERE topic = :topic"),
        {"topic": topic.key},
    )
    _differences(connection, topic, clinic, full)
    summary = connection.execute(
        sa.text("""
            SELECT count(*) AS cells,
                   count(*) FILTER (WHERE differs AND rows_before = 0) AS created,
                   count(*) FILTER (WHERE differs AND rows_before > 0 AND rows_now > 0) AS updated,
                   count(*) FILTER (WHERE differs AND rows_now = 0) AS retired,
                   count(*) FILTER (WHERE NOT differs) AS unchanged,
                   count(*) FILTER (WHERE differs AND NOT logged) AS unlogged,
                   coalesce(sum(rows_now - rows_before), 0) AS rows
            FROM moved""")
    ).one()
    if summary.created == summary.cells:
        columns = ", ".join(topic.columns)
        connection.execute(sa.text(f"INSERT INTO {topic.table} ({columns}) SELECT {columns} FROM fresh"))
    elif summary.unchanged < summary.cells:
        connection.execute(sa.text("DELETE FROM moved WHERE NOT differs"))
        _replace(connection, topic)
    connection.execute(sa.text("DROP TABLE cell, fresh, stored, moved"))
    counts = Counts(
        created=summary.created, updated=summary.updated, retired=summary.retired, unchanged=summary.unchanged
    )
    return _Published(counts, int(summary.cells), int(summary.unlogged), int(summary.rows))


def _replace(connection: sa.Connection, topic: Topic) -> None:
    """In the cells of ``moved``, delete the stored rows that are not in ``fresh`` and insert those that are new."""
    connection.execute(sa.text("ANALYZE moved"))
    connection.execute(
        sa.text(f"""
            CREATE TEMPORARY TABLE before ON COMMIT DROP AS
            SELECT t.ctid AS place, clinic_id, day, {_digest(topic)} AS digest
            FROM moved JOIN {topic.table} t USING (clinic_id, day)""")
    )
    connection.execute(sa.text("ANALYZE before (clinic_id, day, digest)"))
    same = "o.clinic_id = n.clinic_id AND o.day = n.day AND o.digest = n.digest"
    connection.execute(
        sa.text(f"""
            DELETE FROM {topic.table} WHERE ctid = ANY (ARRAY(
                SELECT place FROM before o WHERE NOT EXISTS (SELECT FROM fresh n WHERE {same})))""")
    )
    columns = ", ".join(topic.columns)
    connection.execute(
        sa.text(f"""
            INSERT INTO {topic.table} ({columns})
            SELECT {columns} FROM fresh n JOIN moved USING (clinic_id, day)
            WHERE NOT EXISTS (SELECT FROM before o WHERE {same})""")
    )
    connection.execute(sa.text("DROP TABLE before"))


def _digest(topic: Topic) -> str:
    """The 64-bit hash of one of the topic's rows, as SQL."""
    return f"hash_record_extended(ROW({', '.join(topic.columns)}), 0)"


def _differences(connection: sa.Connection, topic: Topic, clinic: int | None, full: bool) -> None:
    """Count the cells of ``cell`` (with ``full`` all) into ``fresh``; put them beside what they were in ``moved``.

    Two cells are the same when they have as many rows and the 64-bit hashes of their rows have the same sum.
    """
    connection.execute(sa.text("ANALYZE cell"))
    connection.execute(
        sa.text(f"""
            CREATE TEMPORARY TABLE fresh ON COMMIT DROP AS
            SELECT {", ".join(topic.columns)}, {_digest(topic)} AS digest
            FROM ({topic.for_all(clinic) if full else topic.for_cells}) n"""),
        {"clinic": clinic},
    )
    connection.execute(sa.text("ANALYZE fresh (clinic_id, day, digest)"))
    scope = (
        f"SELECT * FROM {topic.table} WHERE CAST(:clinic AS bigint) IS NULL OR clinic_id = :clinic"
        if full
        else f"SELECT t.* FROM cell JOIN {topic.table} t USING (clinic_id, day)"
    )
    connection.execute(
        sa.text(f"""
            CREATE TEMPORARY TABLE stored ON COMMIT DROP AS
            SELECT clinic_id, day, count(*) AS rows, sum({_digest(topic)}) AS digest
            FROM ({scope}) t GROUP BY clinic_id, day"""),
        {"clinic": clinic},
    )
    connection.execute(
        sa.text("""
            CREATE TEMPORARY TABLE moved ON COMMIT DROP AS
            SELECT clinic_id, day, coalesce(f.rows, 0) AS rows_now, coalesce(s.rows, 0) AS rows_before,
                   (f.rows, f.digest) IS DISTINCT FROM (s.rows, s.digest) AS differs, d.day IS NOT NULL AS logged
            FROM (SELECT clinic_id, day, count(*) AS rows, sum(digest) AS digest FROM fresh GROUP BY clinic_id, day) f
            FULL JOIN stored s USING (clinic_id, day)
            LEFT JOIN (SELECT clinic_id, day FROM dirty WHERE topic = :topic) d USING (clinic_id, day)"""),
        {"topic": topic.key},
    )


def _looked(connection: sa.Connection, as_of: datetime) -> None:
    """Every topic is current as of this transaction's snapshot, also one with nothing to count."""
    connection.execute(
        sa.text("""
            INSERT INTO statistic_publication (topic, refreshed_at, whole, cells, moved, stored, days)
            VALUES (:topic, :as_of, false, 0, 0, 0, 0)
            ON CONFLICT (topic) DO UPDATE SET refreshed_at = excluded.refreshed_at"""),
        [{"topic": topic, "as_of": as_of} for topic in TOPICS],
    )


def _record(
    connection: sa.Connection,
    topic: Topic,
    published: _Published,
    *,
    as_of: datetime,
    watermark: datetime | None,
    full: bool,
) -> None:
    connection.execute(
        sa.text("""
            INSERT INTO statistic_publication AS p (topic, refreshed_at, watermark, whole, cells, moved, stored, days)
            VALUES (:topic, :as_of, :watermark, :whole, :cells, :moved, :rows, :days)
            ON CONFLICT (topic) DO UPDATE
            SET watermark = greatest(p.watermark, excluded.watermark),
                whole = excluded.whole, cells = excluded.cells, moved = excluded.moved,
                stored = p.stored + excluded.stored, days = p.days + excluded.days"""),
        {
            "topic": topic.key,
            "as_of": as_of,
            "watermark": watermark,
            "whole": full,
            "cells": published.cells,
            "moved": published.counts.changed,
            "rows": published.rows,
            "days": published.counts.created - published.counts.retired,
        },
    )


@dataclass(frozen=True, slots=True)
class Comparison:
    """Stored numbers beside numbers counted afresh, in one snapshot; cells that wait for a refresh are left out."""

    whole: bool
    cells: int
    drifted: tuple[tuple[str, str, date], ...]
    """Topic, clinic's code and local day of cells that differ although no change had been logged."""


def comparison_due(connection: sa.Connection, as_of: datetime) -> bool:
    """Whether everything is still to be compared for this business date."""
    return bool(
        connection.scalar(
            sa.text("SELECT NOT EXISTS (SELECT FROM statistic_comparison WHERE whole AND business_date = :night)"),
            {"night": _business_date(as_of)},
        )
    )


def _business_date(as_of: datetime) -> date:
    return (as_of.astimezone(NIGHT) - NIGHT_BEGINS).date()


def compare(engine: sa.Engine, as_of: datetime, *, whole: bool) -> Comparison:
    """Count everything, or a sample, and compare with what is published.

    The outcome is kept; cells that differ are logged, so that the next refresh puts them right.
    """
    with _snapshot(engine, keep=True) as connection:
        topics = list(TOPICS.values())
        _collect_cells(connection, topics, None)
        cells, drifted = 0, []
        for topic in topics:
            connection.execute(sa.text("CREATE TEMPORARY TABLE cell (clinic_id bigint, day date) ON COMMIT DROP"))
            if not whole:
                _sample(connection, topic, as_of)
            _differences(connection, topic, None, whole)
            cells += connection.execute(sa.text("SELECT count(*) FROM moved WHERE NOT logged")).scalar_one()
            found = connection.execute(
                sa.text("""
                    WITH d AS (SELECT clinic_id, day FROM moved WHERE differs AND NOT logged),
                    again AS (INSERT INTO statistic_change (topic, clinic_id, day) SELECT :topic, clinic_id, day FROM d)
                    SELECT coalesce(c.code, CAST(d.clinic_id AS text)) AS clinic, d.day
                    FROM d LEFT JOIN clinic c ON c.id = d.clinic_id ORDER BY 1, 2"""),
                {"topic": topic.key},
            ).all()
            drifted += [(topic.key, row.clinic, row.day) for row in found]
            connection.execute(sa.text("DROP TABLE cell, fresh, stored, moved"))
        connection.execute(
            sa.text("""
                INSERT INTO statistic_comparison (business_date, whole, cells, drifted, compared_at)
                VALUES (:night, :whole, :cells, :drifted, :as_of)"""),
            {
                "night": _business_date(as_of),
                "whole": whole,
                "cells": cells,
                "drifted": len(drifted),
                "as_of": as_of,
            },
        )
    return Comparison(whole, cells, tuple(drifted))


def _sample(connection: sa.Connection, topic: Topic, as_of: datetime) -> None:
    """Fill ``cell`` with days taken at random, the same for the same instant, in and a month around what is stored."""
    connection.execute(
        sa.text(f"""
            INSERT INTO cell
            SELECT DISTINCT c.id, b.first + CAST(floor(pick.y * (b.last - b.first + 1)) AS integer)
            FROM (SELECT count(*) AS clinics FROM clinic) total
            CROSS JOIN LATERAL (
                SELECT abs(hashint8extended(n, :seed) % 1000003) / 1000003.0 AS x,
                       abs(hashint8extended(n, :seed + 1) % 1000003) / 1000003.0 AS y
                FROM generate_series(1, :sample) n) pick
            JOIN (SELECT id, row_number() OVER (ORDER BY id) AS place FROM clinic) c
              ON c.place = 1 + floor(pick.x * total.clinics)
            CROSS JOIN LATERAL (
                SELECT coalesce(min(t.day), CAST(:today AS date)) - 30 AS first,
                       coalesce(max(t.day), CAST(:today AS date)) + 30 AS last
                FROM {topic.table} t WHERE t.clinic_id = c.id) b"""),
        {"seed": int(as_of.timestamp() * 1000), "sample": SAMPLE, "today": as_of.astimezone(NIGHT).date()},
    )
