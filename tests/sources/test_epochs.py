"""What is resumed belongs to one source: another address stops everything until a person has said what it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
import sqlalchemy as sa

from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, in_thread
from polydesk_dagster.demo.simulators.studiolab import StudiolabSimulator
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.runtime.state.integrations import integration_state
from polydesk_dagster.runtime.state.model import Link
from polydesk_dagster.sources import epochs, lists
from polydesk_dagster.sources.events import intake, looking
from polydesk_dagster.sources.events.numbering import Counted
from polydesk_dagster.sources.studiolab.client import Studiolab, epoch
from tests.sources.events_world import CODE, NOW, Lab, booking, lab, report
from tests.sources.lab import SERVICES
from tests.sources.test_remote_policy import FAST

REASON = "l'ha detto il fornitore"


@contextmanager
def moved(bo: Lab) -> Iterator[tuple[StudiolabSimulator, str]]:
    """Another server, to which the clinic's integration leads now."""
    simulator = StudiolabSimulator()
    with in_thread(simulator) as url:
        address = url.replace("/api/v1", f"/{CODE}/api/v1")
        with bo.engine.begin() as connection:
            connection.execute(sa.text("UPDATE integration SET base_url = :url"), {"url": address})
        yield simulator, address


def met(bo: Lab) -> None:
    with bo.engine.begin() as connection:
        epochs.meet(connection, CODE, bo.client.epoch)


def decide(bo: Lab, address: str, *, same: bool) -> bool:
    with bo.engine.begin() as connection:
        return epochs.decide(
            connection, CODE, epoch(address), same=same, actor="desk:anna", reason=REASON, as_of=bo.as_of
        )


def look(bo: Lab) -> looking.Seen:
    with bo.engine.connect() as connection:
        known = looking.clinics(connection, NOW)
    (seen,) = looking.look(known, NOW, lambda _: DEMO_TOKEN, policy=FAST)
    return seen


def test_another_address_is_not_read_and_asks(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYDESK_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("POLYDESK_STUDIOLAB_TOKEN_TEST", DEMO_TOKEN)
    with lab(engine) as bo:
        bo.publish(*(booking(f"A{n}", f"{n + 8:02}:00") for n in range(3)))
        met(bo)
        assert bo.sync().outcome is Outcome.OK
        with moved(bo) as (other, _):
            other.publish(CODE, *(booking(f"B{n}", f"{n + 8:02}:00", agenda_id="A2") for n in range(5)))
            seen = look(bo)
            assert (seen.news, seen.why.code, seen.error) == (None, "source_changed", None)
            with pytest.raises(PermanentError, match="source_changed"):
                PolydeskResource().source(CODE)
            assert not other.requests
            with engine.connect() as connection:
                state = integration_state(connection, CODE, lambda _: True)
            assert state is not None
            assert state.link is Link.CHANGED
        assert bo.rows("SELECT sequence FROM event_cursor") == [(3,)]


def test_a_cursor_is_never_used_for_another_source(engine: sa.Engine) -> None:
    with lab(engine) as bo:
        bo.publish(*(booking(f"A{n}", f"{n + 8:02}:00") for n in range(3)))
        assert bo.sync().outcome is Outcome.OK
        with (
            moved(bo) as (_, address),
            Studiolab(CODE, address, DEMO_TOKEN, FAST) as other,
            pytest.raises(PermanentError, match="source_changed"),
        ):
            intake.sync(engine, NOW + timedelta(hours=1), CODE, Counted(other))


def test_the_same_system_elsewhere_goes_on_where_it_was(engine: sa.Engine) -> None:
    with lab(engine) as bo:
        published = bo.publish(booking("A1"))
        met(bo)
        bo.sync()
        with moved(bo) as (other, address):
            # the anchor is still there: the same history
            first = {name: published[0][name] for name in ("id", "type", "entity", "data", "occurred_at")}
            other.publish(CODE, first, booking("A2", "10:00"))
            assert decide(bo, address, same=True)
            assert not decide(bo, address, same=True), "there is nothing left to decide"
            assert look(bo).news == 2
            with Studiolab(CODE, address, DEMO_TOKEN, FAST) as client:
                found = intake.sync(engine, NOW + timedelta(hours=1), CODE, Counted(client))
            assert (found.outcome, found.counts.updated) == (Outcome.OK, 1)
        assert bo.rows("SELECT count(*) FROM patient_link") == [(3,)]
        assert bo.rows("SELECT action, actor FROM audit") == [("source_same", "desk:anna")]


def test_a_new_system_is_met_for_the_first_time(engine: sa.Engine) -> None:
    with lab(engine) as bo:
        bo.publish(booking("A1"), report("A1"), booking("A9", patient_id="P99"))
        met(bo)
        bo.sync()
        assert bo.rows("SELECT state FROM event_inbox WHERE state = 'parked'") == [("parked",)]
        with moved(bo) as (other, address):
            other.publish(CODE, booking("A1", "11:00"))
            assert decide(bo, address, same=False)
            with Studiolab(CODE, address, DEMO_TOKEN, FAST) as client:
                found = intake.sync(engine, NOW + timedelta(hours=1), CODE, Counted(client))
        # its P1 is nobody that we know: the link of the old one says nothing about whom it means
        assert (found.counts.updated, found.outcome) == (0, Outcome.PARTIAL)
        assert bo.rows("SELECT count(*) FROM patient_link") == [(0,)]
        assert bo.rows("SELECT count(*), min(reason) FROM patient_link_ended") == [(3, "source_replaced")]
        assert bo.rows("SELECT external_id FROM appointment ORDER BY id") == [("1|A1",)]
        assert bo.rows("SELECT external_id FROM service") == [(None,)]
        assert sorted(bo.rows("SELECT record, external_id FROM source_name_ended")) == [
            ("agenda", "A1"),
            ("agenda", "A2"),
            ("service", "S1"),
            ("specialist", "D1"),
        ]
        assert bo.rows("SELECT action FROM audit") == [("source_replaced",)]


def test_the_etag_of_another_server_is_never_believed(engine: sa.Engine) -> None:
    """Each says ``"1"`` for a list of its own: the second is read anew, and so is a third whom nobody has met."""
    with lab(engine) as bo:
        bo.simulator.hold(CODE, {"services": SERVICES})
        bo.simulator.fail("etag", "/services", times=None, value='"1"')
        scope = Scope("sync_services", CODE, bo.clinic)
        met(bo)

        def sync(client: Studiolab) -> object:
            report = lists.synchronise(engine, client, "services", scope, as_of=bo.as_of)
            return report.reasons[0].code if report.outcome is Outcome.NOTHING_TO_DO else report.counts.updated

        lists.synchronise(engine, bo.client, "services", scope, as_of=bo.as_of)
        lists.synchronise(engine, bo.client, "services", scope, as_of=bo.as_of)
        assert sync(bo.client) == "not_modified"
        assert bo.rows("SELECT etag FROM source_state") == [('"1"',)]

        def renamed(other: StudiolabSimulator, name: str) -> None:
            other.hold(CODE, {"services": [SERVICES[0] | {"name": name}, *SERVICES[1:]]})
            other.fail("etag", "/services", times=None, value='"1"')

        with moved(bo) as (other, address):
            renamed(other, "Visita rinnovata")
            assert decide(bo, address, same=True)
            with Studiolab(CODE, address, DEMO_TOKEN, FAST) as client:
                assert [sync(client) for _ in range(2)] == [1, "not_modified"]
        with moved(bo) as (third, address), Studiolab(CODE, address, DEMO_TOKEN, FAST) as client:
            renamed(third, "Visita di un altro")
            assert sync(client) == 1


def test_a_history_of_another_name_stops(engine: sa.Engine) -> None:
    """Restored, and grown past us with other events under the same numbers: its word is enough."""
    with lab(engine) as bo:
        bo.simulator.feed(CODE).history = "first"
        bo.publish(booking("A1"))
        assert bo.sync().outcome is Outcome.OK
        bo.publish(booking("A2", "10:00"))
        bo.simulator.feed(CODE).history = "second"
        found = bo.sync()
        assert found.outcome is Outcome.REFUSED
        assert "events_other_epoch" in str(found.reasons[0].as_dict())
        assert bo.rows("SELECT count(*) FROM appointment") == [(1,)]
        assert bo.sync(reconcile=True).outcome in {Outcome.OK, Outcome.PARTIAL}
        assert bo.rows("SELECT history FROM event_cursor") == [("second",)]
