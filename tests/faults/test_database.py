"""What a database does to every service: its disk is full, it is restarted under load, a pooler stands before it. A
demo chain and its simulators are set up once; whatever happens, nothing is half done, and the next night is well."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from polydesk_dagster.catalog import BY_KEY, SERVICES, OnDemand
from polydesk_dagster.commands import night
from polydesk_dagster.outcome import WHAT_TO_DO, Outcome, Report
from polydesk_dagster.values import Reason
from tests import postgres
from tests.faults.world import Chain, demo_chain
from tests.waiting import until

pytestmark = pytest.mark.slow

EVERY = [*night.order(), *(service for service in SERVICES if isinstance(service.cadence, OnDemand))]
AT_HOME = [each for each in EVERY if each.reaches_out or each.group == "knowledge" or each.key == "refresh_caches"]
"""Those that keep something in the home besides their logs, and one that does not."""
RELEASE_ALL = BY_KEY["release_all_holds"]
WELL = {Outcome.OK, Outcome.NOTHING_TO_DO, Outcome.SKIPPED, Outcome.PARTIAL}


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    before = os.environ.copy()
    with postgres.started() as url:
        # What it tidies when it has time gives room back: which service finds any must not depend on that. And what
        # it has said is kept is kept, though its power is cut.
        settings = ("autovacuum = off", "synchronous_commit = on")
        postgres.do(url, *(f"ALTER SYSTEM SET {each}" for each in settings), "SELECT pg_reload_conf()")
        with demo_chain(Path(str(url.query["host"])).parent) as made:
            yield made
    os.environ.clear()
    os.environ.update(before)


def _unwell(night: dict[str, Report]) -> dict[str, tuple[Reason, ...]]:
    """What went wrong, and why: a report's own text begins with its counts."""
    return {key: report.reasons for key, report in night.items() if report.outcome not in WELL}


def _reasons(chain: Chain) -> set[str]:
    with chain.engine.connect() as connection:
        return set(
            connection.scalars(
                sa.text("""SELECT reason ->> 'code' FROM service_run, jsonb_array_elements(reasons) reason
                           WHERE outcome = 'failed'""")
            )
        )


def test_a_full_disk_stops_each_service_by_its_name_and_the_next_night_is_well(chain: Chain) -> None:
    """Those that are run on demand too, and what somebody presses in an emergency, to the end."""
    if chain.disk is None:
        pytest.skip("no disk may be mounted here")
    before = chain.broken_invariants()
    looked = chain.run(RELEASE_ALL)
    todo = looked.figures[WHAT_TO_DO]
    assert isinstance(todo, Reason)
    pressed = {"plan": looked.plan_id, "reason": "provato con il disco pieno", "confirm": todo.values["phrase"]}
    postgres.do(chain.engine.url, "CHECKPOINT")
    with chain.full(chain.disk):
        found = {**chain.each(EVERY), "pressed": chain.run(RELEASE_ALL, **pressed)}
    hit = {key: report for key, report in found.items() if report.outcome not in WELL}
    assert {"generate_slots", "refresh_statistics", "import_municipalities"} <= hit.keys(), found
    assert {"sync_services", "resend_activation_emails"} <= hit.keys(), found
    codes = {reason.code for report in hit.values() for reason in report.reasons}
    assert codes <= {"refused_disk", "no_report"}, {key: report.reasons for key, report in hit.items()}
    assert _reasons(chain) <= {"refused_disk"}
    assert chain.broken_invariants() == before
    assert _unwell(chain.each(EVERY)) == {}
    assert chain.broken_invariants() == []


def test_a_home_without_room_for_a_log_stops_only_what_is_kept_there(chain: Chain) -> None:
    if chain.disk is None:
        pytest.skip("no disk may be mounted here")
    with chain.full(chain.home):
        hit = {key: report for key, report in chain.each(AT_HOME).items() if report.outcome not in WELL}
    hit.pop("resend_activation_emails", None)  # the relay that is played keeps its mail there too
    assert hit.keys() <= {"index_knowledge", "reindex_knowledge"}, {key: report.reasons for key, report in hit.items()}
    assert {reason.code for report in hit.values() for reason in report.reasons} <= {"index_unwritable"}


def test_a_server_that_is_restarted_again_and_again_under_load_loses_nothing(chain: Chain) -> None:
    """Orderly and as by a power cut, while the services work; this process goes on with the connections that it has."""
    over = threading.Event()
    restarts: list[str] = []

    def restart() -> None:
        while not over.wait(1.5):
            mode = ("fast", "immediate")[len(restarts) % 2]
            chain.restart(mode)
            restarts.append(mode)

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        chain.night()
        until(lambda: len(restarts) >= 4)
    finally:
        over.set()
        thread.join()
    assert _unwell(chain.night()) == {}
    assert chain.broken_invariants() == []
