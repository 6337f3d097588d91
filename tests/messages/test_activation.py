from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.messages import activation
from polydesk_dagster.clinic.messages.kinds import Channel
from polydesk_dagster.clinic.messages.provider import Provider
from polydesk_dagster.demo import mailbox
from polydesk_dagster.providers.smtp import MailRelay
from tests import world
from tests.messages.world import AS_OF
from tests.waiting import PATIENCE


@pytest.fixture
def mail(tmp_path: Path) -> Iterator[tuple[Path, dict[Channel, Provider]]]:
    with mailbox.in_thread(tmp_path / "mail") as url:
        yield tmp_path / "mail", {"email": MailRelay(url, "no-reply@clinica.example", patience=PATIENCE)}


def tokens(folder: Path, address: str) -> list[str]:
    found = (m for m in mailbox.received(folder) if m["To"] == address)
    return [re.search(r"codice=([\w-]+)", message.get_body(("plain",)).get_content())[1] for message in found]  # type: ignore[index]


def test_who_works_here_is_led_to_the_door_and_a_patient_to_the_portal(
    engine: sa.Engine, mail: tuple[Path, dict[Channel, Provider]]
) -> None:
    folder, providers = mail
    with engine.begin() as connection:
        clinic = world.clinic(connection)
        world.user(connection, clinic, email="desk@example.org", role="desk")
        world.user(connection, clinic, email="paziente@example.org")
    door = "https://porta.example/attiva"
    assert activation.resend(engine, AS_OF, providers, door=door).counts.updated == 2
    bodies = {str(m["To"]): m.get_body(("plain",)).get_content() for m in mailbox.received(folder)}  # type: ignore[union-attr]
    assert f"{door}?codice=" in bodies["desk@example.org"]
    assert door not in bodies["paziente@example.org"]


def test_who_is_written_to_and_who_is_left_alone(engine: sa.Engine, mail: tuple[Path, dict[Channel, Provider]]) -> None:
    folder, providers = mail
    with engine.begin() as connection:
        clinic = world.clinic(connection)
        never = world.user(connection, clinic, email="mai@example.org", state="never_invited", invited_at=None)
        world.user(connection, clinic, email="invitato@example.org")
        world.user(connection, clinic, email="ieri@example.org", invited_at=AS_OF - timedelta(hours=20))
        world.user(connection, clinic, email="attivo@example.org", state="active", activated_at=AS_OF)
        world.user(connection, clinic, email="spento@example.org", state="disabled")
        world.user(connection, clinic, email="respinto@example.org", state="bounced")
        world.user(connection, clinic, email="rifiutata@example.org")
    preview = activation.resend(engine, AS_OF, providers, preview=True)
    assert preview.counts.created == 3
    assert mailbox.received(folder) == []
    report = activation.resend(engine, AS_OF, providers)
    assert (report.counts.updated, report.counts.failed, report.counts.skipped) == (2, 1, 3)
    assert sorted(str(m["To"]) for m in mailbox.received(folder)) == ["invitato@example.org", "mai@example.org"]
    assert {reason.code for reason in report.reasons} >= {
        f"activation_{why}" for why in ("recent", "disabled", "bounced")
    } | {"message_refused"}
    again = activation.resend(engine, AS_OF + timedelta(minutes=5), providers)
    assert (again.counts.changed, len(mailbox.received(folder))) == (0, 2)
    everyone = activation.resend(engine, AS_OF + timedelta(minutes=5), providers, everyone=True)
    assert everyone.counts.updated == 3
    with engine.connect() as connection:
        states = dict(connection.execute(sa.text("SELECT email, state FROM app_user")).all())
        bodies = "".join(connection.scalars(sa.text("SELECT body FROM message")))
    assert (states["mai@example.org"], states["rifiutata@example.org"]) == ("invited", "bounced")
    old, new = tokens(folder, "mai@example.org")
    assert old not in bodies
    assert new not in bodies
    with engine.begin() as connection:
        soon = AS_OF + timedelta(hours=1)
        assert activation.redeem(connection, old, soon) is None
        assert activation.redeem(connection, new, soon + timedelta(days=8)) is None
        assert activation.redeem(connection, new, soon) == never
        assert activation.redeem(connection, new, soon) is None


def test_three_times_and_no_more(engine: sa.Engine, mail: tuple[Path, dict[Channel, Provider]]) -> None:
    folder, providers = mail
    with engine.begin() as connection:
        world.user(connection, world.clinic(connection), state="never_invited", invited_at=None)
    reports = [activation.resend(engine, AS_OF + timedelta(days=4 * n), providers) for n in range(4)]
    assert [report.counts.updated for report in reports] == [1, 1, 1, 0]
    assert reports[-1].reasons[0].code == "activation_three_times"
    assert len(mailbox.received(folder)) == 3
