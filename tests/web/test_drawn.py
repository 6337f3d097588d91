"""The pictures of runs, drawn when somebody looks: which there are, who sees them, and of what they are."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta

import pytest
import sqlalchemy as sa
from PIL import Image

from polydesk_dagster.clinic.statistics.drawing import Drawing
from polydesk_dagster.database import service_runs
from polydesk_dagster.outcome import Counts, Outcome, Report
from polydesk_dagster.told import pictures
from polydesk_dagster.told.speaking import Teller
from polydesk_dagster.web.drawn import DRAWN
from tests import world
from tests.web.world import Served

AS_OF = datetime(2026, 3, 30, 10, 0, tzinfo=UTC)


def _ran(connection: sa.Connection, run: str, service: str, clinic: str | None = None) -> None:
    service_runs.record(
        connection,
        service,
        Report(Outcome.OK, Counts()),
        clinic=clinic,
        preview=False,
        dagster_run=run,
        as_of=AS_OF,
        started=AS_OF,
        seconds=1.0,
    )


@pytest.fixture
def clinics(door: Served) -> dict[str, int]:
    """Two clinics, a run for each and one for the chain, and the index made anew twice before it and once after."""
    with door.door.engine.begin() as connection:
        found = {code: world.clinic(connection, code=code) for code in ("BO01", "RE01")}
        for service in {service for service, _ in DRAWN.values()}:
            _ran(connection, "of-chain", service)
            for code in found:
                _ran(connection, f"of-{code}", service, code)
        world.insert(
            connection,
            "knowledge_generation",
            [
                {"state": "dropped", "pipeline": "p", "recall": recall, "started_at": AS_OF + timedelta(days=days)}
                for days, recall in ((-2, 0.5), (0, 0.75), (1, 1))
            ],
        )
        for state, days in (("sent", -13), ("sent", 0), ("withheld", 0), ("failed", 1), ("unknown", -14)):
            at = AS_OF + timedelta(days=days)
            world.insert(
                connection,
                "message",
                [{"clinic_id": found["BO01"], "kind": "reminder", "recipient_type": "patient", "recipient_id": 1,
                  "state": state, "reason": "opted_out", "send_after": at, "expires_at": at, "template_revision": 1,
                  "created_at": at, "changed_at": at, "sent_at": at if state == "sent" else None}],
            )  # fmt: skip
    return found


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Drawing, str, str]]:
    """What is drawn, its note and its language; drawing itself takes a second."""
    kept: list[tuple[Drawing, str, str]] = []

    def png(drawing: Drawing, t: Teller, note: str = "") -> bytes:
        kept.append((drawing, note, t.language))
        return b"png"

    monkeypatch.setattr(pictures, "png", png)
    return kept


@pytest.mark.slow
@pytest.mark.parametrize("key", ["appointments", "reminder", "index_probes"])
def test_a_picture_is_a_small_png_that_nobody_keeps(door: Served, clinics: dict[str, int], key: str) -> None:
    assert clinics
    answer = door.signed_in("manager").get(f"/grafici/of-chain/{key}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.headers["cache-control"] == "no-store"
    assert Image.open(io.BytesIO(answer.content)).size == (576, 208)
    assert len(answer.content) < 20_000


@pytest.mark.slow
def test_every_picture_is_of_the_days_of_its_run_and_says_so(
    door: Served, clinics: dict[str, int], seen: list[tuple[Drawing, str, str]]
) -> None:
    assert clinics
    with door.signed_in("superuser") as browser:
        for key in DRAWN:
            assert browser.get(f"/grafici/of-chain/{key}").content == b"png", key
        assert all(note.startswith("esecuzione del 30/03/2026 12:00, numeri del ") for _, note, _ in seen)
        browser.get("/grafici/of-chain/reminder", headers={"accept-language": "de"})
    assert (seen[-1][1].startswith("Lauf vom 30.03.2026 12:00, "), seen[-1][2]) == (True, "de")
    drawn = {drawing.key: drawing.days for drawing, _, _ in seen}
    assert drawn.keys() == DRAWN.keys()
    for key in DRAWN.keys() - {"reminder", "preparation", "index_probes"}:
        days = drawn[key].index
        assert (days[0].date(), days[-1].date()) == (date(2026, 2, 28), date(2026, 4, 13)), key
    sent = drawn["reminder"]
    assert (sent.index[0].date(), sent.index[-1].date(), sent.to_numpy().sum()) == (date(2026, 3, 17), AS_OF.date(), 3)
    assert sent.iloc[-1].tolist() == [1, 1, 0]
    assert drawn["index_probes"]["index_probes"].tolist() == [50.0, 75.0]


@pytest.mark.slow
def test_whoever_acts_for_some_clinics_sees_their_runs_and_none_of_the_chain_s(
    door: Served, clinics: dict[str, int], seen: list[tuple[Drawing, str, str]]
) -> None:
    of_all = door.signed_in("superuser")
    of_one = [door.signed_in(role, clinic=clinics["BO01"]) for role in ("manager", "desk", "specialist")]
    assert [
        [browser.get(f"/grafici/{run}/revenue").status_code for run in ("of-chain", "of-BO01", "of-RE01")]
        for browser in (of_all, *of_one)
    ] == [[200, 200, 200]] + 3 * [[404, 200, 404]]
    assert len(seen) == 6


def test_however_many_look_one_is_drawn_at_a_time(
    door: Served, clinics: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert clinics
    at_once = [0]

    def png(*_: object) -> bytes:
        at_once.append(at_once[-1] + 1)
        threading.Event().wait(0.05)  # time for another to begin, were it let
        at_once.append(at_once[-1] - 1)
        return b"png"

    monkeypatch.setattr(pictures, "png", png)
    with door.signed_in("superuser") as browser, ThreadPoolExecutor(5) as others:
        answers = list(others.map(browser.get, 5 * ["/grafici/of-chain/revenue"]))
    assert [answer.content for answer in answers] == 5 * [b"png"]
    assert max(at_once) == 1


def test_what_no_run_showed_is_not_there(door: Served, clinics: dict[str, int]) -> None:
    with door.door.engine.begin() as connection:
        _ran(connection, "another", "generate_slots")
    with door.signed_in("superuser") as browser:
        for path in ("of-nobody/revenue", "another/revenue", "of-chain/password", "%27/revenue"):
            assert browser.get(f"/grafici/{path}").status_code == 404, path
    with door.client() as stranger:
        assert stranger.get("/grafici/of-chain/revenue").status_code in {303, 401}
