from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.clinic.upkeep.names import refresh_sort_names
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.outcome import Outcome
from tests.statistics import world

AS_OF = datetime(2026, 3, 30, 10, 0, tzinfo=UTC)


@pytest.fixture
def chain(engine: sa.Engine) -> sa.Engine:
    with engine.begin() as connection:
        world.chain(connection)
        connection.execute(
            sa.text("UPDATE specialist SET sort_name = 'ugo il primo', sort_name_manual = true WHERE id = 3")
        )
    return engine


def _names(engine: sa.Engine) -> dict[int, str | None]:
    with engine.connect() as connection:
        return {row.id: row.sort_name for row in connection.execute(sa.text("SELECT id, sort_name FROM specialist"))}


def test_names_are_set_but_never_over_a_hand(chain: sa.Engine) -> None:
    report = refresh_sort_names(chain, AS_OF)
    assert (report.outcome, report.counts.updated, report.counts.unchanged) == (Outcome.OK, 2, 1)
    assert _names(chain) == {1: "DELUCA  ANNA", 2: "ROSSI  MARIO", 3: "ugo il primo"}
    assert refresh_sort_names(chain, AS_OF).outcome is Outcome.NOTHING_TO_DO


def test_a_preview_is_a_plan_applied_exactly_and_undone(chain: sa.Engine) -> None:
    preview = refresh_sort_names(chain, AS_OF, "BO01", preview=True)
    assert preview.plan_id is not None
    assert _names(chain)[1] is None
    with chain.begin() as connection:
        applied = changes.apply(connection, preview.plan_id, as_of=AS_OF, actor="desk:prova")
    assert (applied.outcome, applied.counts.updated, applied.reasons) == (Outcome.OK, 1, ())
    assert _names(chain) == {1: "DELUCA  ANNA", 2: None, 3: "ugo il primo"}
    with chain.begin() as connection:
        undone = changes.undo(connection, preview.plan_id, as_of=AS_OF + timedelta(minutes=1), actor="desk:prova")
    assert undone.outcome is Outcome.OK
    assert _names(chain)[1] is None


def test_a_plan_whose_names_moved_is_refused(chain: sa.Engine) -> None:
    preview = refresh_sort_names(chain, AS_OF, preview=True)
    with chain.begin() as connection:
        connection.execute(sa.text("UPDATE specialist SET last_name = 'Bianchi' WHERE id = 2"))
    with chain.begin() as connection:
        refused = changes.apply(connection, preview.plan_id, as_of=AS_OF, actor="desk:prova")
    assert refused.outcome is Outcome.REFUSED
    assert _names(chain)[1] is None


def test_an_unknown_clinic_is_named(chain: sa.Engine) -> None:
    with pytest.raises(PermanentError, match="XX99"):
        refresh_sort_names(chain, AS_OF, "XX99")
