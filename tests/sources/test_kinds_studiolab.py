"""Studiolab's lists, over HTTP from its simulator, become ours; what is bad in them is named and stops nobody else."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import plan_rows, plans, show
from polydesk_dagster.changes.kind import Limits
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.changes.synchronise import settle, synchronise
from polydesk_dagster.errors import PolydeskError
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.sources.kinds.agreements import AGREEMENT
from polydesk_dagster.sources.kinds.collaborators import COLLABORATOR
from polydesk_dagster.sources.kinds.municipalities import MUNICIPALITY
from polydesk_dagster.sources.kinds.prices import PRICE
from polydesk_dagster.sources.kinds.services import SERVICE
from polydesk_dagster.told import teller
from polydesk_dagster.values import Reason
from tests import world
from tests.changes import world as w
from tests.sources.lab import AGREEMENTS, COLLABORATORS, PRICES, SERVICES, Lab, lab, synced

__all__ = ["lab", "synced"]  # fixtures


@pytest.mark.parametrize("kind", [SERVICE, COLLABORATOR, AGREEMENT, PRICE, MUNICIPALITY])
def test_every_column_belongs_to_somebody(connection: sa.Connection, kind: changes.Kind) -> None:
    known = {
        *kind.identity,
        *kind.fixed,
        *kind.owned,
        *kind.kept,
    }
    assert set(plan_rows.column_types(connection, kind.table)) - {"updated_at"} == known


def test_a_second_run_changes_nothing_and_an_unchanged_list_is_not_read(synced: Lab) -> None:
    with synced.engine.begin() as connection:
        connection.execute(sa.text("UPDATE source_state SET etag = NULL"))
    for feed in ("services", "collaborators", "agreements", "prices"):
        assert synced.sync(feed).outcome is Outcome.NOTHING_TO_DO
    report = synced.sync("prices")
    assert [reason.code for reason in report.reasons] == ["not_modified"]


@pytest.mark.parametrize(
    "write",
    [
        "UPDATE price SET amount = amount WHERE id = (SELECT min(id) FROM price)",
        "DELETE FROM price WHERE id = (SELECT max(id) FROM price)",
        """WITH gone AS (DELETE FROM price WHERE id = (SELECT max(id) FROM price) RETURNING *)
           INSERT INTO price (clinic_id, service_id, agreement_id, amount, currency, valid_from)
           SELECT clinic_id, service_id, agreement_id, amount, currency, '2019-01-01' FROM gone""",
    ],
)
def test_an_unchanged_list_is_read_again_where_ours_was_written_since(synced: Lab, write: str) -> None:
    synced.sync("prices")
    with synced.engine.begin() as connection:
        assert connection.execute(sa.text(write)).rowcount == 1
    assert "not_modified" not in [reason.code for reason in synced.sync("prices").reasons]
    synced.write("UPDATE price SET amount = 54 WHERE amount = 55")
    assert synced.sync("prices", preview=True).counts.updated == 1


def test_two_records_for_one_of_ours_wait_for_a_person(lab: Lab) -> None:
    with lab.engine.begin() as connection:
        fund = {"clinic_id": lab.clinic, "name": "Fondo Uno", "kind": "fund", "valid_from": "2020-01-01"}
        world.insert(connection, "agreement", [fund])
        world.specialist(connection, lab.clinic, last_name="Neri", first_name="Ugo", external_id=None)
    lab.hold(
        agreements=[*AGREEMENTS, *(AGREEMENTS[0] | {"id": id_, "name": "FONDO UNO"} for id_ in ("C2", "C3"))],
        collaborators=[*COLLABORATORS, COLLABORATORS[0] | {"id": "D99"}],
    )
    for feed, kind, created in (("agreements", AGREEMENT, 1), ("collaborators", COLLABORATOR, 6)):
        report = lab.sync(feed)
        assert (report.outcome, report.counts.created, report.counts.waiting) == (Outcome.PARTIAL, created, 2)
        with lab.engine.connect() as connection:
            rows = [row for row in show.rows(connection, lab.plan(report), kind) if row.action == "conflict"]
        assert {row.finding for row in rows} == {"duplicate"}
        assert "più record per" in teller().value(rows[0].reason)


def test_services_may_exchange_their_codes(synced: Lab) -> None:
    codes = ["89.01", "89.02", "89.00"]
    moved = [service | {"code": code} for service, code in zip(SERVICES, codes, strict=False)]
    synced.hold(services=[*moved, *SERVICES[3:]])
    assert synced.sync("services").counts.updated == 3
    assert [code for (code,) in synced.rows("SELECT code FROM service ORDER BY external_id LIMIT 2")] == codes[:2]


def test_a_code_that_another_service_keeps_is_a_conflict_and_so_is_what_waits_for_it(synced: Lab) -> None:
    first, second, third, fourth, *others = SERVICES
    synced.hold(services=SERVICES[1:])
    assert synced.sync("services").counts.retired == 1
    with synced.engine.begin() as connection:
        world.service(connection, synced.clinic, code="89.00", name="Della segreteria", external_id=None)

    def conflicts() -> tuple[int, set[str | None]]:
        report = synced.sync("services")
        with synced.engine.connect() as connection:
            rows = list(show.rows(connection, synced.plan(report), SERVICE))
        assert {row.finding for row in rows if row.action == "conflict"} == {"duplicate"}
        return report.counts.changed, {teller().value(row.reason) for row in rows if row.action == "conflict"}

    returned = [first, second, third, fourth | {"name": "Altra"}, *others]
    synced.hold(services=returned)
    assert conflicts() == (1, {"il codice 89.00 è di un'altra prestazione"})
    waiting = [second | {"code": "89.00"}, third | {"code": "89.01"}, fourth | {"name": "Terza"}, *others]
    synced.hold(services=waiting)
    assert conflicts() == (
        1,
        {"il codice 89.00 è di un'altra prestazione", "il codice 89.01 è di un'altra prestazione"},
    )
    synced.hold(services=[*SERVICES[1:], first | {"id": "S99"}])
    assert synced.sync("services").counts.updated == 2


def test_a_service_that_comes_twice_word_for_word_is_one(lab: Lab) -> None:
    lab.hold(services=[*SERVICES, SERVICES[0]])
    report = lab.sync("services")
    assert (report.outcome, report.counts.created, report.counts.waiting) == (Outcome.OK, 20, 0)


def test_a_clinic_without_agreements_is_in_step_and_one_that_had_some_is_stopped(lab: Lab) -> None:
    lab.hold(agreements=[])
    report = lab.sync("agreements", preview=True)
    assert (report.outcome, report.figures["what_to_do"]) == (
        Outcome.NOTHING_TO_DO,
        Reason("in_step"),
    )
    lab.hold(agreements=AGREEMENTS)
    assert lab.sync("agreements").counts.created == 1
    lab.hold(agreements=[])
    report = lab.sync("agreements", preview=True)
    assert "source_empty" in {guard.name for guard in lab.plan(report).failed_guards}
    lab.write("UPDATE agreement SET valid_to = valid_from")
    report = lab.sync("agreements", preview=True)
    assert not lab.plan(report).writes
    assert report.figures["what_to_do"] != Reason("in_step")
    assert lab.sync("agreements").outcome is Outcome.REFUSED


def test_a_municipality_that_has_ended_is_opened_again_by_a_person_only(engine: sa.Engine) -> None:
    scope = Scope("import_municipalities")
    bologna = w.municipality("A944", "Bologna")
    whole, parts = [bologna], [
        w.municipality("A944", "Bologna", valid_to=date(2020, 1, 1)),
        w.municipality("A944", "Bologna la Grassa", valid_from=date(2020, 1, 1)),
    ]  # fmt: skip
    kind = replace(MUNICIPALITY, limits=Limits(minimum=1, shrink=1, retired=None))
    for records in (whole, parts, whole, parts, whole):
        report = synchronise(engine, kind, scope, w.pages(records), as_of=world.AS_OF)
        with engine.connect() as connection:
            plan = plans.load(connection, report.plan_id or 0)
            (closed,) = connection.execute(sa.text("SELECT count(*) FROM municipality WHERE valid_to IS NULL")).one()
        assert closed == 1
        if plan.holding_guards:  # what an older edition would take back
            assert (records, plan.writes) == (whole, 0)
            past = {"reason": "annullata la fusione", "past_guards": [guard.name for guard in plan.holding_guards]}
            report = settle(engine, kind, scope, plan, as_of=world.AS_OF, actor="desk:anna", **past)
        assert report.outcome is Outcome.OK


def test_a_name_that_was_given_up_does_not_come_back_by_itself(engine: sa.Engine) -> None:
    scope = Scope("import_municipalities")
    kind = replace(MUNICIPALITY, limits=Limits(minimum=1, shrink=1, retired=None))
    old, new = w.municipality("A944", "Bologna"), w.municipality("A944", "Bologna la Grassa", other_name="Bulåggna")

    def read(record: Any) -> Report:
        return synchronise(engine, kind, scope, w.pages([record]), as_of=world.AS_OF)

    def held() -> tuple[Any, ...]:
        with engine.connect() as connection:
            query = "SELECT name, former_names FROM municipality"
            return tuple(connection.execute(sa.text(query)).one())

    assert read(old).outcome is Outcome.OK
    renamed = read(new)
    assert (renamed.outcome, held()) == (Outcome.OK, ("Bologna la Grassa", ["Bologna"]))
    for older in (old, w.municipality("A944", "Bologna la Grassa"), w.municipality("A944", "Bologna")):
        assert read(older).counts.changed == 0
    assert held()[0] == "Bologna la Grassa"
    with engine.begin() as connection:
        changes.undo(connection, renamed.plan_id or 0, as_of=world.AS_OF, actor="dagster")
    assert held() == ("Bologna", [])


def test_what_the_clinic_owns_is_never_overwritten_and_a_rename_is_no_new_service(synced: Lab) -> None:
    synced.write("UPDATE service SET price = 12, bookable_online = true WHERE external_id = 'S3'")
    synced.hold(services=[*SERVICES[:3], SERVICES[3] | {"name": "Visita rinominata"}, *SERVICES[4:]])
    report = synced.sync("services")
    assert (report.counts.updated, report.counts.changed) == (1, 1)
    assert synced.rows("SELECT name, price, bookable_online FROM service WHERE external_id = 'S3'") == [
        ("Visita rinominata", 12, True)
    ]


def test_a_name_that_tells_of_health_is_proposed_as_sensitive_until_somebody_decides(synced: Lab) -> None:
    def why(named: str, number: int) -> str | None:
        """What the plan says of a service of that name."""
        services = [*SERVICES[:3], SERVICES[3] | {"name": named, "id": f"S{number}"}, *SERVICES[4:]]
        synced.hold(services=services if number == 3 else [*SERVICES, services[3] | {"code": "99.99"}])
        plan = synced.plan(synced.sync("services", preview=True))
        with synced.engine.connect() as connection:
            rows = [row for row in show.rows(connection, plan, SERVICE) if named in row.key]
        return rows[0].reason and rows[0].reason.code

    assert why("Visita psichiatrica", 3) == "sensitive_proposed"
    assert why("Visita oncologica", 30) == "sensitive_proposed"
    assert why("Visita semplice", 3) == "name_changed"
    synced.write("UPDATE service SET sensitive_decided_at = now(), sensitive_decided_by = 'Ada'")
    assert why("Visita psichiatrica", 3) == "name_changed"


def test_what_the_desk_had_typed_is_linked_and_not_doubled(lab: Lab) -> None:
    with lab.engine.begin() as connection:
        world.service(connection, lab.clinic, code="89.03", name="Visita vecchia", external_id=None)
        world.specialist(connection, lab.clinic, last_name="NERI", first_name="Ugo", external_id=None)
    assert lab.sync("services").counts.as_dict() | {"unchanged": 0} == {
        "created": 19, "updated": 1, "retired": 0, "skipped": 0, "waiting": 0, "failed": 0, "unchanged": 0,
    }  # fmt: skip
    assert lab.sync("collaborators").counts.updated == 1
    assert lab.rows("SELECT count(*) FROM specialist") == [(7,)]


@pytest.mark.parametrize("field", ["id", "code"])
def test_a_service_whose_id_or_code_is_a_book_is_set_aside_alone(lab: Lab, field: str) -> None:
    lab.hold(services=[*SERVICES[1:], SERVICES[0] | {field: world.NOISE}])
    report = lab.sync("services")
    assert (report.outcome, report.counts.created, report.counts.waiting) == (Outcome.PARTIAL, 19, 1)


def test_a_service_may_have_the_nomenclatures_long_name(lab: Lab) -> None:
    lab.hold(services=[*SERVICES[1:], SERVICES[0] | {"name": world.NOISE[:640], "preparation": world.NOISE[:5000]}])
    assert lab.sync("services").counts.created == 20


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "empty"},
        {"kind": "html"},
        {"kind": "cut"},
        {"kind": "status", "status": 401},
        {"kind": "status", "status": 500, "times": None},
        {"kind": "remove", "field": "items"},
        {"kind": "top", "field": "items", "value": None},
    ],
    ids=lambda fault: f"{fault['kind']}-{fault.get('status', '')}",
)
def test_a_source_that_fails_shrinks_or_changes_shape_keeps_the_last_good_state(
    synced: Lab, fault: dict[str, Any]
) -> None:
    before = synced.rows("SELECT * FROM price ORDER BY id")
    synced.hold(prices=PRICES[:10])  # so that the list is not simply unchanged
    synced.simulator.fail(fault.pop("kind"), "/prices", **{"times": None, **fault})
    said = ""
    try:
        report = synced.sync("prices")
        assert report.outcome is Outcome.REFUSED
        said = teller().reason(report.reasons[0])
    except PolydeskError as error:
        said = str(error)
    assert "fermato da" in said or "BO01" in said
    assert synced.rows("SELECT * FROM price ORDER BY id") == before


def test_a_short_list_a_reencoded_one_and_contradictions_are_refused(synced: Lab) -> None:
    synced.hold(prices=PRICES[:8])
    report = synced.sync("prices")
    assert (report.outcome, "prima erano 21" in teller().reason(report.reasons[0])) == (Outcome.REFUSED, True)
    synced.hold(services=[s | {"name": "Visita di attivitÃ  motoria"} for s in SERVICES])
    report = synced.sync("services")
    assert (report.outcome, "lettere accentate rovinate" in teller().reason(report.reasons[0])) == (
        Outcome.REFUSED,
        True,
    )
    synced.hold(services=[*SERVICES, SERVICES[0] | {"name": "Un'altra"}])
    report = synced.sync("services")
    assert "numero 1 e 21" in teller().reason(report.reasons[0])
    assert synced.rows("SELECT count(*) FROM service WHERE name LIKE 'Visita %'") == [(20,)]


def test_the_preview_of_people_masks_codes(synced: Lab) -> None:
    synced.hold(collaborators=[*COLLABORATORS, COLLABORATORS[0] | {"id": "D3", "fiscal_code": "RSSMRA80A01H501U"}])
    report = synced.sync("collaborators", preview=True)
    assert "RSSMRA80A01H501U" not in str(report)
    with synced.engine.connect() as connection:
        rows = list(show.rows(connection, synced.plan(report), COLLABORATOR))
    assert "RSSMRA80A01H501U" in {row.after["fiscal_code"] for row in rows}


def test_a_patient_that_studiolab_merged_into_another_is_asked_about_and_not_imported_anew(lab: Lab) -> None:
    someone = {"last_name": "Rossi", "sex": "M", "updated_at": "2026-01-01T00:00:00+01:00"}
    people = [
        someone | {"id": f"P{n}", "first_name": f"Ugo {n}", "birth_date": f"1980-01-{n + 1:02d}"} for n in range(9)
    ]
    lab.hold(patients=people)
    assert lab.sync("patients").counts.created == 9
    merged = people[1] | {"merged_into": "P0"}
    lab.hold(patients=[people[0], merged, *people[2:], people[2] | {"id": "P99", "merged_into": "P2"}])
    report = lab.sync("patients")
    assert (report.outcome, report.counts.created) == (Outcome.PARTIAL, 0)
    assert [reason.code for reason in report.reasons] == ["links_merged"]
    asked = "SELECT external_id FROM patient_link WHERE suspended_reason LIKE '%merged_at_source%'"
    assert lab.rows(asked) == [("P1",)]
    later = world.AS_OF + timedelta(hours=1)
    assert lab.sync("patients", as_of=later).outcome is Outcome.NOTHING_TO_DO
    # Whoever is simply gone is told of after the second reading, and keeps the link.
    lab.hold(patients=[people[0], merged, *people[3:]])
    for days, told in ((1, False), (2, True)):
        report = lab.sync("patients", as_of=world.AS_OF + timedelta(days=days))
        assert ("patients_gone_at_source" in {reason.code for reason in report.reasons}) is told
    assert lab.rows("SELECT count(*) FROM patient_link") == [(9,)]
