"""The price list: exact decimals, periods that never overlap, and what one price takes the place of."""

from __future__ import annotations

from typing import Any

from polydesk_dagster.changes.kind import Guard, Kind, Limits, Source
from polydesk_dagster.changes.why import day, money, why
from polydesk_dagster.sources.kinds.agreements import AGREEMENT
from polydesk_dagster.sources.kinds.collaborators import COLLABORATOR
from polydesk_dagster.sources.kinds.names import waits_for_its_name
from polydesk_dagster.sources.kinds.services import SERVICE
from polydesk_dagster.sources.kinds.validity import OTHERS, OVERLAPS

_SAME_ITEM = """{w}.service_id = {c}.service_id AND coalesce({w}.agreement_id, 0) = coalesce({c}.agreement_id, 0)
                AND coalesce({w}.specialist_id, 0) = coalesce({c}.specialist_id, 0)"""
# IS TRUE keeps it a look into a hash table, rather than a join of two sorted lists.
_SEVERAL = """(:repeats AND (s.service, coalesce(s.agreement, ''), coalesce(s.collaborator, ''))
                            IN (TABLE several) IS TRUE)"""
_ITEM = """concat_ws(' · ', (SELECT code || ' ' || name FROM service s WHERE s.id = c.service_id),
                     (SELECT name FROM agreement a WHERE a.id = c.agreement_id),
                     (SELECT last_name FROM specialist p WHERE p.id = c.specialist_id))"""
# What the patient pays: all of it, where no share is said.
_SHARE, _PREVIOUS_SHARE = "coalesce(r.patient_share, r.amount)", "coalesce(r.previous_share, r.previous_amount)"
# IS TRUE: the index of the constraint knows periods better than items; asked for one row's period it is read whole.
_MEET = "(daterange({0}.valid_from, {0}.valid_to) && daterange({1}.valid_from, {1}.valid_to)) IS TRUE"
# What takes the place of an interval that the source no longer has. One that begins inside it cuts it short; one that
# reaches over its beginning leaves it empty, as if it had never been. One in force that is to end where its successor
# begins was cut short by it earlier, and lasts until there is one: what begins right then, or else, where the successor
# itself is gone, what begins later.
_NEXT = f"""(SELECT min(w.valid_from) FROM wanted w
             WHERE {_SAME_ITEM.format(w="w", c="c")} AND w.problem IS NULL
               AND ({_MEET.format("w", "c")}
                    OR c.valid_from <= :today AND c.valid_to > :today AND w.valid_from >= c.valid_to
                       AND (w.valid_from = c.valid_to
                            OR EXISTS (SELECT FROM price f
                                       WHERE {_SAME_ITEM.format(w="f", c="c")} AND f.valid_from = c.valid_to
                                         AND f.valid_to IS DISTINCT FROM f.valid_from))))"""
# Intervals that have ended are history, unless the source now says otherwise of their time; only what it says anew can.
_REWRITTEN = f"""(SELECT t.id
                  FROM (SELECT service_id, coalesce(agreement_id, 0) AS agreement_id,
                               coalesce(specialist_id, 0) AS specialist_id, valid_from, valid_to
                        FROM wanted WHERE problem IS NULL
                        EXCEPT
                        SELECT service_id, coalesce(agreement_id, 0), coalesce(specialist_id, 0), valid_from, valid_to
                        FROM price WHERE clinic_id = :clinic_id) w
                  JOIN price t ON t.clinic_id = :clinic_id AND {_SAME_ITEM.format(w="w", c="t")}
                                  AND {_MEET.format("w", "t")}
                  WHERE t.valid_to <= :today AND t.valid_from <> w.valid_from)"""
# What is set aside leaves standing what we hold. Where something else of the same item would then overlap it, nothing
# of that item is changed; what keeps its period meets none that it has not met before. (NOT IN is a look into a hash
# table; an anti-join was planned as a loop.)
_CROWDED = f"""
    UPDATE {{rows}} r
    SET action = 'conflict', finding = 'overlapping', id = CASE action WHEN 'create' THEN NULL ELSE id END,
        reason = '{{reason}}'
    FROM (WITH o AS MATERIALIZED (SELECT * FROM {{rows}} WHERE action IN ('create', 'update', 'retire')
                                  AND (action = 'create' OR valid_to IS DISTINCT FROM was_valid_to)),
          met AS MATERIALIZED (
              SELECT t.id, o.service_id, o.agreement_id, o.specialist_id
              FROM o JOIN price t ON t.clinic_id = :clinic_id AND {_SAME_ITEM.format(w="t", c="o")}
                                     AND {_MEET.format("t", "o")})
          SELECT DISTINCT service_id, agreement_id, specialist_id FROM met
          WHERE id NOT IN (SELECT id FROM {{rows}} WHERE action <> 'conflict')) crowded
    WHERE {_SAME_ITEM.format(w="crowded", c="r")} AND r.action <> 'conflict'
"""
# The last price of an item that has none in force; worked out for those alone.
_PAST = f"""(SELECT t.{{column}} FROM price t
             WHERE m.mapped AND {_SAME_ITEM.format(w="t", c="m")}
               AND t.valid_from < t.valid_to AND t.valid_to <= m.effective
             ORDER BY t.valid_to DESC LIMIT 1)"""
_RENUMBERED = waits_for_its_name((SERVICE, AGREEMENT, COLLABORATOR), "amount", "patient_share")


def _price(record: Any) -> tuple[str | None, ...]:
    """A price as text: a list has a hundred thousand, and what is text already is staged several times faster."""
    until = record.valid_to
    return (
        record.service_id,
        record.agreement_id,
        record.collaborator_id,
        record.amount,
        record.patient_share,
        record.currency,
        record.vat_rate,
        record.valid_from.isoformat(),
        None if until is None else until.isoformat(),
    )


PRICE = Kind(
    name="price",
    table="price",
    key="r.item || ' · ' || r.valid_from",
    fixed=("clinic_id", "service_id", "agreement_id", "specialist_id", "valid_from"),
    owned=("amount", "patient_share", "currency", "vat_rate", "valid_to"),
    carried={"item": "text", "previous_amount": "numeric(10,2)", "previous_share": "numeric(10,2)"},
    taken=f"{_SAME_ITEM.format(w='t', c='r')} AND t.valid_from = r.valid_from",
    alike=(f"{_SAME_ITEM.format(w='t', c='r')} AND {_MEET.format('t', 'r')}",),
    # What a price replaced is in force again when it goes: one without the other leaves a gap, or no room.
    together="concat_ws(' ', r.service_id, coalesce(r.agreement_id, 0), coalesce(r.specialist_id, 0))",
    undo_reconsider=(_CROWDED.format(rows="{rows}", reason="overlaps_kept_price"),),
    limits=Limits(retired=0.1, changed=0.1),
    guards=(
        Guard(
            "price_jump",
            rows=f"""r.action IN ('create', 'update')
                     AND (abs(r.amount - r.previous_amount) > 0.3 * r.previous_amount
                          OR abs({_SHARE} - {_PREVIOUS_SHARE}) > 0.3 * {_PREVIOUS_SHARE})""",
            noun="prices",
        ),
        Guard(
            "code_reused",
            rows="""r.action IN ('create', 'update') AND r.previous_amount > 0
                    AND (r.amount >= 10 * r.previous_amount OR r.amount * 10 <= r.previous_amount)""",
            noun="prices",
        ),
        Guard(
            "zero_price",
            rows="""r.action IN ('create', 'update') AND r.amount = 0
                    AND r.previous_amount IS DISTINCT FROM 0""",
            noun="prices",
        ),
    ),
    source=Source(
        columns={
            "service": "text",
            "agreement": "text",
            "collaborator": "text",
            "amount": "numeric(10,2)",
            "patient_share": "numeric(10,2)",
            "currency": "text",
            "vat_rate": "numeric(5,2)",
            "valid_from": "date",
            "valid_to": "date",
        },
        compared=("price", "service", "agreement", "specialist"),
        prepare=_price,
        label=lambda record: str(record.service_id),
        key=(
            "{}.service_id",
            "coalesce({}.agreement_id, 0)",
            "coalesce({}.specialist_id, 0)",
            "{}.valid_from",
        ),
        apart=("service", "agreement", "collaborator"),
        indexed="service_id",
        alone=True,
        # What names something unknown is no item of ours, least of all the private one, and so it has no service here.
        # A price that is in force already with the same amount is not a new one for being said again with a later
        # start: it keeps the start that we know, if the source has no other interval for it.
        # An interval that ends where it begins says nothing. What comes after a gap is measured by what was before it.
        desired=f"""
            WITH said AS NOT MATERIALIZED (SELECT * FROM {{stage}} WHERE valid_to IS DISTINCT FROM valid_from),
            several AS MATERIALIZED (
                SELECT service, coalesce(agreement, '') AS agreement, coalesce(collaborator, '') AS collaborator
                FROM said WHERE :repeats GROUP BY 1, 2, 3 HAVING count(*) > 1),
            clash AS MATERIALIZED (
                SELECT n FROM (SELECT s.n, {OVERLAPS} AS clashes FROM said s WHERE {_SEVERAL}
                               {OTHERS.format("s.service, s.agreement, s.collaborator")}) looked
                WHERE clashes)
            SELECT m.n, CAST(:clinic_id AS bigint) AS clinic_id,
                   CASE WHEN m.mapped THEN m.service_id END AS service_id, m.agreement_id, m.specialist_id,
                   m.amount, m.patient_share, m.currency, m.vat_rate, m.valid_to, m.item, m.alone,
                   CASE WHEN m.alone AND now.valid_from < m.valid_from AND now.valid_from <= :today
                             AND ROW(now.amount, now.patient_share, now.vat_rate, now.valid_to)
                                 IS NOT DISTINCT FROM ROW(m.amount, m.patient_share, m.vat_rate, m.valid_to)
                        THEN now.valid_from ELSE m.valid_from END AS valid_from,
                   CASE WHEN now.id IS NULL THEN {_PAST.format(column="amount")} ELSE now.amount END
                       AS previous_amount,
                   CASE WHEN now.id IS NULL THEN {_PAST.format(column="patient_share")} ELSE now.patient_share END
                       AS previous_share,
                   CASE WHEN m.reason IS NOT NULL THEN coalesce(m.problem, m.fault) END AS problem, m.reason
            FROM (
                SELECT s.n, s.problem, svc.id AS service_id, agr.id AS agreement_id, spe.id AS specialist_id,
                       CASE WHEN s.valid_from < :today AND (s.valid_to IS NULL OR s.valid_to > :today)
                            THEN :today ELSE s.valid_from END AS effective,
                       s.amount, s.patient_share, s.currency, s.vat_rate, s.valid_from, s.valid_to,
                       concat_ws(' · ', coalesce(svc.code || ' ' || svc.name, s.service),
                                 coalesce(agr.name, s.agreement), coalesce(spe.last_name, s.collaborator)) AS item,
                       NOT {_SEVERAL} AS alone,
                       svc.id IS NOT NULL AND (agr.id IS NOT NULL OR s.agreement IS NULL)
                           AND (spe.id IS NOT NULL OR s.collaborator IS NULL) AS mapped,
                       CASE WHEN svc.id IS NULL OR agr.id IS NULL AND s.agreement IS NOT NULL
                                 OR spe.id IS NULL AND s.collaborator IS NOT NULL OR svc.deleted_at IS NOT NULL
                            THEN 'unmapped'
                            WHEN s.valid_to < s.valid_from OR s.patient_share > s.amount THEN 'invalid'
                            ELSE 'overlapping' END AS fault,
                       CASE WHEN s.problem IS NOT NULL THEN s.reason
                            WHEN svc.id IS NULL THEN {why("service_unlinked", service="s.service")}
                            WHEN agr.id IS NULL AND s.agreement IS NOT NULL
                            THEN {why("agreement_unlinked", agreement="s.agreement")}
                            WHEN spe.id IS NULL AND s.collaborator IS NOT NULL
                            THEN {why("collaborator_unlinked", collaborator="s.collaborator")}
                            WHEN svc.deleted_at IS NOT NULL THEN {why("service_deleted", service="svc.code")}
                            WHEN s.valid_to < s.valid_from THEN 'ends_before_start'
                            WHEN s.patient_share > s.amount THEN 'share_above_price'
                            WHEN :repeats AND s.n IN (TABLE clash) THEN 'periods_overlap' END AS reason
                FROM said s
                LEFT JOIN service svc ON svc.clinic_id = :clinic_id AND svc.external_id = s.service
                LEFT JOIN agreement agr ON agr.clinic_id = :clinic_id AND agr.external_id = s.agreement
                LEFT JOIN specialist spe ON spe.clinic_id = :clinic_id AND spe.external_id = s.collaborator
            ) m
            LEFT JOIN price now ON now.clinic_id = :clinic_id AND m.mapped AND {_SAME_ITEM.format(w="now", c="m")}
                 AND now.valid_from <= m.effective
                 AND (now.valid_to IS NULL OR now.valid_to > m.effective)
        """,
        current="""
            SELECT t.*, s.external_id AS source_key
            FROM price t JOIN service s ON s.id = t.service_id AND s.external_id IS NOT NULL
            WHERE t.clinic_id = :clinic_id
              AND (t.agreement_id IN (SELECT id FROM agreement
                                      WHERE clinic_id = :clinic_id AND external_id IS NULL)) IS NOT TRUE
              AND (t.specialist_id IN (SELECT id FROM specialist
                                       WHERE clinic_id = :clinic_id AND external_id IS NULL)) IS NOT TRUE
        """,
        # What was announced and is no more has never been, whatever comes later.
        retire={
            "valid_to": f"""CASE WHEN c.valid_from > :today THEN c.valid_from
                                 ELSE greatest(c.valid_from, coalesce({_NEXT}, :today)) END""",
            "item": _ITEM,
        },
        retirable=f"""(c.valid_to IS NULL OR c.valid_to > c.valid_from
                       AND (c.valid_to > :today AND {_NEXT} IS DISTINCT FROM c.valid_to OR c.id IN {_REWRITTEN}))""",
        in_force="(c.valid_to IS NULL OR c.valid_to > greatest(c.valid_from, :today))",
        blocked=f"""CASE WHEN d.n IS NULL THEN coalesce(
                        (SELECT min(w.reason) FROM wanted w WHERE w.problem IS NOT NULL
                                                              AND {_SAME_ITEM.format(w="w", c="c")}),
                        CASE WHEN {_RENUMBERED} THEN 'perhaps_renumbered' END) END""",
        finding=f"""CASE WHEN d.n IS NULL AND {_NEXT} IS NOT NULL THEN 'replaced'
                         WHEN c.id IS NULL AND d.previous_amount IS DISTINCT FROM d.amount
                              AND d.previous_amount IS NOT NULL THEN 'differs' END""",
        reason=f"""CASE WHEN d.n IS NULL THEN
                        (SELECT CASE WHEN starts <= c.valid_from OR c.valid_from > :today AND starts IS NOT NULL
                                     THEN 'period_corrected'
                                     WHEN starts IS NOT NULL THEN {why("replaced_from", day=day("starts"))}
                                     ELSE 'gone_at_source' END
                         FROM (SELECT {_NEXT} AS starts OFFSET 0) once)  -- each time it is written it is planned
                        WHEN c.id IS NULL AND d.previous_amount IS NOT NULL
                        THEN {why("replaces_price", amount=money("d.previous_amount", "d.currency"))} END""",
        reconsider=(_CROWDED.format(rows="{rows}", reason="source_unclear"),),
        noted={
            "price_withdrawn_before_next": f"""
                c.valid_from <= :today AND (c.valid_to > :today) IS TRUE -- a null would have the rest looked at
                  AND NOT EXISTS (SELECT FROM wanted w WHERE {_SAME_ITEM.format(w="w", c="c")}
                                                         AND w.valid_from = c.valid_from)
                  AND {_NEXT} = c.valid_to"""
        },
    ),
)
