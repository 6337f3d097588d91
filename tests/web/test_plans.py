"""Plans on the page: seen row by row, applied exactly or stopped by a check, taken back, carried away as a file."""

from __future__ import annotations

import io
import json
import re
from datetime import UTC, datetime
from html import unescape

import pytest
import sqlalchemy as sa

from polydesk_dagster.changes import plans, registry, show
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.changes.synchronise import settle, synchronise
from polydesk_dagster.clinic.upkeep import names
from polydesk_dagster.database.engine import business_url, dagster_url
from polydesk_dagster.database.migrate import create_database
from polydesk_dagster.database.service_runs import record
from polydesk_dagster.outcome import Counts, Outcome, Report, combine
from polydesk_dagster.runtime import instance
from polydesk_dagster.sources.kinds.services import SERVICE
from polydesk_dagster.web import plans as pages
from polydesk_dagster.web.roles import Role
from tests import world
from tests.changes import world as w
from tests.waiting import PATIENCE
from tests.web.world import Served


def _plan(served: Served) -> int:
    """A stored plan of the services' order of names: two specialists would be changed."""
    with served.door.engine.begin() as connection:
        clinic = world.clinic(connection)
        world.specialist(connection, clinic, last_name="=De <b>Rossi</b>", first_name="Anna", sort_name="x")
        world.specialist(connection, clinic, last_name="La Rosa", first_name="Ugo", sort_name="y")
    report = names.refresh_sort_names(served.door.engine, datetime.now(UTC), preview=True)
    assert report.plan_id is not None
    return report.plan_id


@pytest.mark.parametrize(("role", "applies"), [(Role.DESK, False), (Role.MANAGER, True)])
def test_a_plan_shows_its_rows_before_and_after_and_reads_like_a_preview(
    door: Served, role: Role, applies: bool
) -> None:
    plan = _plan(door)
    with door.signed_in(role) as browser:
        assert f'href="/piani/{plan}"' in browser.get("/piani").text
        page = browser.get(f"/piani/{plan}").text
        assert browser.get(f"/piani/{plan}?pagina=99").status_code == 200
        assert browser.get("/piani/999999").status_code == 404
    assert "Anteprima: niente è cambiato." in page
    assert "2 da modificare" in page
    assert "<b>Rossi" not in page
    assert (f"/piani/{plan}/applica" in page) is applies


def test_a_run_of_many_plans_leads_to_all_of_them_page_by_page(door: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "LISTED", 2)
    made = [_plan(door)]
    again = (names.refresh_sort_names(door.door.engine, datetime.now(UTC), preview=True) for _ in range(4))
    made += [report.plan_id for report in again if report.plan_id is not None]
    run = [Report(Outcome.OK, Counts(updated=1), plan_id=plan, preview=True) for plan in made[:4]]
    now = datetime.now(UTC)
    with door.door.engine.begin() as connection:
        record(
            connection, "refresh_sort_names", combine(run), clinic=None, preview=True, dagster_run="r", as_of=now,
            started=now, seconds=1.0,
        )  # fmt: skip
    seen = []
    with door.signed_in("manager") as browser:
        page = browser.get("/servizi/refresh_sort_names").text
        while links := re.findall(r'href="(?:/piani)?([?]da=[^"]+)"', page.rpartition("</table>")[2]):
            page = browser.get(f"/piani{unescape(links[0])}").text
            seen += re.findall(r'href="/piani/(\d+)"', page)
        newest = re.findall(r'href="/piani/(\d+)"', browser.get("/piani").text)
    assert seen == [str(plan) for plan in reversed(made[:3])]
    assert newest == [str(made[4]), str(made[3])]


def test_a_plan_that_writes_nothing_and_is_stopped_is_confirmed_on_its_page(door: Served) -> None:
    plan = _plan(door)
    failed = [{"name": "source_short", "passed": False, "value": 8, "limit": 14, "values": {"seen": 8, "before": 21}}]
    with door.door.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE plan SET guards = CAST(:guards AS jsonb), tally = '{\"seen\": 8}', rows_kept = false"),
            {"guards": json.dumps(failed)},
        )
    with door.signed_in("manager") as browser:
        page = unescape(browser.get(f"/piani/{plan}").text)
    assert f'action="/piani/{plan}/applica"' in page
    assert 'name="guard" value="source_short"' in page


def test_a_plan_that_several_checks_stop_asks_for_each_of_them(door: Served) -> None:
    plan = _plan(door)
    values = {"value": 12, "what": "x", "ours": 20, "limit": 2}
    failed = [
        {"name": name, "passed": False, "value": 12, "limit": 2, "values": values}
        for name in ("too_many_retired", "too_many_changed")
    ]
    with door.door.engine.begin() as connection:
        connection.execute(sa.text("UPDATE plan SET guards = CAST(:guards AS jsonb)"), {"guards": json.dumps(failed)})
    with door.signed_in("manager") as browser:
        page = unescape(browser.get(f"/piani/{plan}").text)
    assert "2 controlli lo fermano. Guarda le righe: se sono giuste, qui sotto spuntali tutti" in page
    assert re.findall(r'name="guard" value="(\w+)"', page) == ["too_many_retired", "too_many_changed"]
    assert "passa solo se li spunti tutti" in page


def test_a_preview_in_the_history_asks_only_for_a_plan_that_can_still_be_applied(door: Served) -> None:
    plan, now = _plan(door), datetime.now(UTC)
    with door.door.engine.begin() as connection:
        stored = plans.load(connection, plan)
        report = show.preview(connection, stored, registry.kind(stored.kind))
        record(
            connection, "refresh_sort_names", report, clinic=None, preview=True, dagster_run="r", as_of=now,
            started=now, seconds=1.0,
        )  # fmt: skip
    with door.signed_in("manager") as browser:
        assert "se sono giuste, applicalo" in unescape(browser.get("/servizi/refresh_sort_names").text)
        with door.door.engine.begin() as connection:
            connection.execute(sa.text("UPDATE plan SET expires_at = now() - interval '1 second'"))
        page = unescape(browser.get("/servizi/refresh_sort_names").text)
    assert ("Questo piano è scaduto" in page, "se sono giuste, applicalo" in page) == (True, False)


def test_its_file_holds_every_row_and_no_formula(door: Served) -> None:
    from openpyxl import load_workbook

    plan = _plan(door)
    with door.signed_in("desk") as browser:
        text = browser.get(f"/piani/{plan}/file").content.decode("utf-8-sig")
        sheet = load_workbook(io.BytesIO(browser.get(f"/piani/{plan}/file?tipo=xlsx").content)).active
    assert len(text.splitlines()) == 3
    assert sheet is not None
    cells = [cell for row in sheet.iter_rows() for cell in row]
    assert len(list(sheet.iter_rows())) == 3
    assert not [cell for cell in cells if cell.data_type == "f"]
    assert not [line for line in text.splitlines() for cell in line.split(",") if cell.startswith(("=", "+", "@"))]


def test_rows_are_held_back_and_put_back_one_by_one_by_who_may_apply(door: Served) -> None:
    plan = _plan(door)
    with door.signed_in("desk") as desk:
        assert 'name="hold"' not in desk.get(f"/piani/{plan}").text
        assert desk.post(f"/piani/{plan}/trattieni", data=door.form(desk, hold="1")).status_code == 403
    with door.signed_in("manager") as browser:
        page = browser.get(f"/piani/{plan}").text
        assert page.count('name="hold"') == 2
        answer = browser.post(f"/piani/{plan}/trattieni", data=door.form(browser, hold="1", pagina="1"))
        assert answer.headers["location"] == f"/piani/{plan}?pagina=1#righe"
        page = unescape(browser.get(f"/piani/{plan}").text)
        assert "1 da modificare, 1 per una persona" in page
        assert "trattenuta da manager:" in page
        for wrong, status in (({}, 400), ({"hold": "1"}, 409), ({"hold": "9" * 30}, 400)):
            assert browser.post(f"/piani/{plan}/trattieni", data=door.form(browser, **wrong)).status_code == status
        assert f'<a href="/piani/{plan}">' in browser.get("/da-fare").text
        assert browser.post(f"/piani/{plan}/rimetti", data=door.form(browser, release="1")).status_code == 303
        assert f'<a href="/piani/{plan}">' not in browser.get("/da-fare").text
        assert browser.get(f"/piani/{plan}").text.count('name="hold"') == 2


def test_only_chosen_rows_are_left_in_a_plan_by_who_may_apply_it(door: Served) -> None:
    plan = _plan(door)
    with door.signed_in("desk") as desk:
        assert f"/piani/{plan}/solo" not in desk.get(f"/piani/{plan}").text
        assert desk.post(f"/piani/{plan}/solo", data=door.form(desk, hold="1")).status_code == 403
    with door.signed_in("manager") as browser:
        assert f"/piani/{plan}/solo" in browser.get(f"/piani/{plan}").text
        for wrong, status in (({}, 400), ({"hold": "9"}, 409)):
            assert browser.post(f"/piani/{plan}/solo", data=door.form(browser, **wrong)).status_code == status
        answer = browser.post(f"/piani/{plan}/solo", data=door.form(browser, hold="2", pagina="1"))
        assert (answer.status_code, answer.headers["location"]) == (303, f"/piani/{plan}?pagina=1#righe")
        page = browser.get(f"/piani/{plan}").text
        assert "1 da modificare" in page
        assert page.count('name="hold"') == page.count('name="release"') == 1
        # Nobody holds the other one back: it is for another plan, and may be put back into this one.
        assert f'<a href="/piani/{plan}">' not in browser.get("/da-fare").text
        assert browser.post(f"/piani/{plan}/rimetti", data=door.form(browser, release="1")).status_code == 303
        assert "2 da modificare" in browser.get(f"/piani/{plan}").text


def test_what_a_plan_leaves_that_is_applied_in_part_is_to_be_done(door: Served) -> None:
    number = _plan(door)
    with door.signed_in("manager") as browser:
        browser.post(f"/piani/{number}/solo", data=door.form(browser, hold="2"))
        assert "Righe rimaste da decidere" not in browser.get("/da-fare").text  # it still waits to be applied
    engine, now = door.door.engine, datetime.now(UTC)
    with engine.connect() as connection:
        plan = plans.load(connection, number)
    report = settle(engine, registry.kind(plan.kind), plan.within, plan, as_of=now, actor="manager:m@example.org")
    assert (report.counts.updated, report.counts.waiting) == (1, 1)
    with door.signed_in("desk") as desk, door.signed_in("manager") as browser:
        page = unescape(browser.get("/da-fare").text)
        assert "1 riga, dal " in page
        assert f'<a href="/piani/{number}">' in page
        assert 'action="/servizi/refresh_sort_names/anteprima"' in page
        assert "Righe rimaste da decidere" not in unescape(desk.get("/da-fare").text)  # the chain's are not hers
        assert names.refresh_sort_names(engine, now, preview=False).counts.updated == 1
        assert "Righe rimaste da decidere" not in unescape(browser.get("/da-fare").text)


def _offered(page: str) -> int:
    """How many rows a person may give to a record of ours."""
    return page.partition('id="assign-row"')[2].partition("</select>")[0].count("<option")


def test_a_row_is_given_to_a_record_of_ours_with_a_reason_by_who_may_apply_it(door: Served) -> None:
    with door.door.engine.begin() as connection:
        clinic = world.clinic(connection, "BO01")
        world.clinic(connection, "MI01")
        world.service(connection, clinic, code="89.7", name="Visita", external_id=None)
    new = [w.service("S1", "89.70", "Visita <b>rivista</b>"), w.service("S2", "89.71", "Altra")]
    scope = Scope("sync_services", "BO01", clinic)
    plan = synchronise(door.door.engine, SERVICE, scope, w.pages(new), as_of=datetime.now(UTC), preview=True).plan_id
    with door.door.engine.connect() as connection:
        row = connection.scalar(sa.text(f"SELECT ordinal FROM plan_rows.p{plan} WHERE external_id = 'S1'"))
    address, given = f"/piani/{plan}/assegna", {"row": str(row), "record": "89.7", "reason": "chiesto alla segreteria"}
    with door.signed_in("desk", clinic=clinic) as desk:
        assert address not in desk.get(f"/piani/{plan}").text
        assert desk.post(address, data=door.form(desk, **given)).status_code == 403
    with door.signed_in("manager", clinic=clinic) as browser:
        page = browser.get(f"/piani/{plan}").text
        assert _offered(page) == 2
        assert "<b>rivista" not in page
        for wrong, status in (
            ({"row": "x"}, 400), ({"record": " "}, 400), ({"reason": "boh"}, 409), ({"record": "nessuna"}, 409),
            ({"row": "99"}, 409),
        ):  # fmt: skip
            assert browser.post(address, data=door.form(browser, **given | wrong)).status_code == status
        assert browser.post(address, data=door.form(browser, **given)).status_code == 303
        assert _offered(browser.get(f"/piani/{plan}").text) == 1
    with door.door.engine.connect() as connection:
        rows = connection.execute(sa.text(f"SELECT external_id, action FROM plan_rows.p{plan} ORDER BY external_id"))
        assert [tuple(each) for each in rows] == [("S1", "update"), ("S2", "create")]


@pytest.mark.slow
def test_a_plan_is_applied_exactly_and_taken_back(door: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = door.door.settings
    monkeypatch.setenv("POLYDESK_HOME", str(settings.home))  # the run reads them itself
    monkeypatch.setenv("POLYDESK_DATABASE_URL", business_url(settings).render_as_string(hide_password=False))
    create_database(dagster_url(settings).set(drivername="postgresql+psycopg"))
    instance.prepare(settings)
    plan = _plan(door)
    with door.signed_in("manager") as browser:
        for address, fields, said in (
            (f"/piani/{plan}/applica", {}, "riuscito"),
            (f"/piani/{plan}/anteprima-annulla", {}, "anteprima: niente è cambiato"),
            (f"/piani/{plan}/annulla", {"reason": "Era tutto giusto prima"}, "riuscito"),
        ):
            answer = browser.post(address, data=door.form(browser, **fields))
            assert answer.status_code == 303, answer.text
            with browser.stream("GET", f"{answer.headers['location']}/stato", timeout=PATIENCE) as events:
                told = unescape("".join(events.iter_text()))
            assert said in told, told
        page = browser.get(f"/piani/{plan}").text
    assert "annullato" in page
    with door.door.engine.connect() as connection:
        actors = set(connection.scalars(sa.text("SELECT actor FROM audit WHERE plan_id IS NOT NULL")))
        names_now = set(connection.scalars(sa.text("SELECT sort_name FROM specialist")))
    assert {actor.partition(":")[0] for actor in actors} == {"manager"}
    assert names_now == {"x", "y"}
