"""Whoever changes a text sees it first, its cost and its readers, changes it as a plan, and can go back."""

from __future__ import annotations

from decimal import Decimal

import pytest
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import show
from polydesk_dagster.clinic.messages import custom, drafts
from polydesk_dagster.clinic.messages.drafts import Which
from polydesk_dagster.clinic.messages.reset import MESSAGE_TEMPLATE
from polydesk_dagster.clinic.messages.templates import Text
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.values import Money
from tests import world
from tests.messages.world import AS_OF, booked

SMS = Which("reminder", "plain", "sms", "it")
SHORT = "{{ clinica }}: {{ nome }}, {{ giorno }} alle {{ appuntamenti[0].ora }}"


def say(engine: sa.Engine, clinic: str | None, body: str) -> None:
    """Put a text in force."""
    with engine.begin() as connection:
        plan, _ = custom.propose(connection, clinic, "reminder", "plain", "sms", "it", Text(None, body), as_of=AS_OF)
        applied(connection, plan.id)


def applied(connection: sa.Connection, plan: int) -> None:
    changes.apply(connection, plan, as_of=AS_OF, actor="desk:ada")


def current(engine: sa.Engine, clinic: str | None) -> tuple[str, str]:
    with engine.connect() as connection:
        (found,) = [each for each in drafts.in_force(connection, clinic) if each.which == SMS]
    return found.layer, found.text.body


def test_a_draft_is_seen_by_three_readers_with_its_cost_and_leaves_no_trace(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        for at in ("10:00", "11:00", "12:00", "12:30"):
            booked(connection, practice, at)
        connection.execute(sa.text("UPDATE message_policy SET sms_segment_cost = 0.05 WHERE clinic_id IS NULL"))
    with engine.begin() as connection:
        draft = drafts.look(connection, "BO01", SMS, Text(None, SHORT + " °" * 90), AS_OF)
        assert len(draft.samples) == 3
        assert all("M. R." in sample.body and "Rossi" not in sample.body for sample in draft.samples)
        assert (draft.segments, draft.each) == (2, Money(Decimal("0.10")))
        neutral = drafts.look(connection, None, Which("reminder", "neutral", "sms", "de"), Text(None, SHORT), AS_OF)
        assert "Mittwoch" in neutral.samples[0].body
        assert connection.scalar(sa.text("SELECT count(*) FROM message")) == 0


@pytest.mark.parametrize("body", ["{{ nome|dictsort }}", "{{ 'x' * 300000000 }}", "{{ codice }}", "{{ nome"])
def test_a_draft_that_cannot_be_sent_has_no_readers(engine: sa.Engine, body: str) -> None:
    with engine.begin() as connection:
        world.practice(connection)
        draft = drafts.look(connection, "BO01", SMS, Text(None, body), AS_OF)
    assert any(finding.error for finding in draft.findings)
    assert draft.samples == ()


def test_a_kind_about_no_appointment_is_seen_on_an_invented_reader(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        world.practice(connection)
        which = Which("report_ready", "plain", "sms", "it")
        (sample,) = drafts.look(connection, "BO01", which, Text(None, "{{ clinica }}: pronto."), AS_OF).samples
    assert sample.body == "Poliambulatorio Prova: pronto."


def test_a_text_has_versions_that_come_back_and_layers_that_show_through(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        world.practice(connection)
    factory = current(engine, "BO01")
    say(engine, None, SHORT + " catena")
    say(engine, "BO01", SHORT + " uno")
    say(engine, "BO01", SHORT + " due")
    assert factory[0] == "factory"
    assert current(engine, "BO01") == ("clinic", SHORT + " due")
    assert current(engine, None) == ("chain", SHORT + " catena")
    with engine.begin() as connection:
        past = drafts.versions(connection, "BO01", SMS)
        assert [(each.layer, each.text and each.text.body[-3:]) for each in past] == [
            ("clinic", "due"), ("clinic", "uno"), ("chain", "ena")
        ]  # fmt: skip
        plan, _ = custom.restore(connection, past[1].number, as_of=AS_OF)
        applied(connection, plan.id)
    assert current(engine, "BO01") == ("clinic", SHORT + " uno")
    with engine.begin() as connection:
        plan = custom.withdraw(connection, "BO01", SMS, as_of=AS_OF)
        (row,) = show.rows(connection, plan, MESSAGE_TEMPLATE)
        assert "catena" in row.after["body"]
        applied(connection, plan.id)
    assert current(engine, "BO01") == ("chain", SHORT + " catena")
    with engine.begin() as connection:
        changes.undo(connection, plan.id, as_of=AS_OF, actor="desk:ada", reason="era il testo giusto")
        with pytest.raises(PermanentError):
            custom.restore(connection, 0, as_of=AS_OF)
    assert current(engine, "BO01") == ("clinic", SHORT + " uno")
