"""A probe asks each system over the wire, and tells who answers, who refuses and who is silent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from polydesk_dagster.demo import mailbox
from polydesk_dagster.demo.simulators.central import CentralSimulator
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, in_thread
from polydesk_dagster.demo.simulators.sms import SmsSimulator
from polydesk_dagster.demo.simulators.studiolab import StudiolabSimulator
from polydesk_dagster.runtime.state import probing
from polydesk_dagster.runtime.state.model import Answer
from polydesk_dagster.settings import Settings
from tests import world

NOW = datetime(2026, 3, 10, 9, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Systems:
    central: CentralSimulator
    sms: SmsSimulator
    mail: Path
    settings: Settings


@pytest.fixture
def systems(tmp_path: Path) -> Iterator[Systems]:
    with ExitStack() as stack:
        central, sms = CentralSimulator(), SmsSimulator()
        settings = Settings(
            home=tmp_path,
            central_url=stack.enter_context(in_thread(central)),
            central_token=SecretStr(DEMO_TOKEN),
            sms_url=stack.enter_context(in_thread(sms)),
            sms_token=SecretStr(DEMO_TOKEN),
            sms_sender="Polydesk",
            smtp_url=SecretStr(stack.enter_context(mailbox.in_thread(tmp_path / "mail"))),
            mail_from="no-reply@clinica.example",
        )
        yield Systems(central, sms, tmp_path / "mail", settings)


def _asked(settings: Settings) -> dict[str, Answer | None]:
    return {state.code: state.answer for state in probing.asked(probing.systems(settings, NOW))}


def test_all_that_is_configured_is_asked_and_nothing_is_sent(systems: Systems) -> None:
    well = Answer.WELL
    assert _asked(systems.settings) == {"central": well, "sms": well, "mail": well, "embeddings": None}
    assert systems.sms.sent == []
    assert list(mailbox.received(systems.mail)) == []


def test_wrong_credentials_are_a_refusal(systems: Systems) -> None:
    wrong = SecretStr("sbagliata")
    url = systems.settings.smtp_url
    assert url is not None
    login = url.get_secret_value().replace(mailbox.PASSWORD, "sbagliata")
    changed = {"central_token": wrong, "sms_token": wrong, "smtp_url": SecretStr(login)}
    settings = systems.settings.model_copy(update=changed)
    states = [state for state in probing.asked(probing.systems(settings, NOW)) if state.configured]
    assert [state.answer for state in states] == [Answer.REFUSED] * 3
    assert not any("sbagliata" in str(state.why) for state in states)


def test_nobody_at_the_address_is_silence(systems: Systems) -> None:
    nowhere = "http://127.0.0.1:1"
    mail = SecretStr("smtp://127.0.0.1:1?starttls=never")
    settings = systems.settings.model_copy(update={"central_url": nowhere, "sms_url": nowhere, "smtp_url": mail})
    assert _asked(settings) == {
        "central": Answer.SILENT,
        "sms": Answer.SILENT,
        "mail": Answer.SILENT,
        "embeddings": None,
    }


@pytest.mark.parametrize(
    ("down", "token", "answer"),
    [
        (False, DEMO_TOKEN, Answer.WELL),
        (True, DEMO_TOKEN, Answer.SILENT),
        (False, "sbagliata", Answer.REFUSED),
        (False, None, Answer.REFUSED),
    ],
)
def test_a_studiolab_is_asked_now_also_where_it_is_left_in_peace(
    connection: sa.Connection, down: bool, token: str | None, answer: Answer
) -> None:
    lab = StudiolabSimulator()
    if down:
        lab.fail("status", "/events", status=503, times=None)
    with in_thread(lab) as url:
        clinic = world.clinic(connection, "BO01")
        world.integration(connection, clinic, url.replace("/api/v1", "/bo01/api/v1"))
        later = {"clinic": clinic, "later": NOW.replace(year=2027), "since": NOW}
        connection.execute(
            sa.text("""
                INSERT INTO event_cursor (clinic_id, failures, down_since, quiet_until)
                VALUES (:clinic, 3, :since, :later)"""),
            later,
        )
        (state,) = probing.studiolabs(connection, lambda _: token, NOW)
    assert (state.code, state.clinic, state.answer) == ("studiolab", "BO01", answer)
    assert (state.why is None) is (answer is Answer.WELL)
    assert replace(state, answer=None, why=None).configured
