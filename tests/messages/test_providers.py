from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from polydesk_dagster.clinic.messages.provider import Fate, Provider
from polydesk_dagster.demo import mailbox
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, in_thread
from polydesk_dagster.demo.simulators.sms import SmsSimulator
from polydesk_dagster.errors import ConfigurationError
from polydesk_dagster.providers.sms import SmsGateway
from polydesk_dagster.providers.smtp import MailRelay
from tests.messages.provider_contract import ProviderContract
from tests.waiting import PATIENCE


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class TestSms(ProviderContract):
    good, refused, silent = "+393331234567", "+393331230000", "+393331239999"

    @pytest.fixture
    def carrier(self) -> Iterator[Provider]:
        self.simulator = SmsSimulator()
        with in_thread(self.simulator) as self.url:
            yield self.gateway(PATIENCE)

    def gateway(self, patience: float) -> Provider:
        return SmsGateway(self.url, DEMO_TOKEN, "Polydesk", patience=patience)

    def hasty(self) -> Provider:
        return self.gateway(0.5)

    def arrived(self) -> list[str]:
        return [message.to for message in self.simulator.sent]

    def unreachable(self) -> Provider:
        return SmsGateway(f"http://127.0.0.1:{closed_port()}", DEMO_TOKEN, "Polydesk")

    def intruder(self) -> Provider:
        return SmsGateway(self.url, "sbagliato", "Polydesk")

    def test_silence_after_handing_over_is_a_doubt(self, carrier: Provider) -> None:
        self.simulator.fail("timeout")
        super().test_silence_after_handing_over_is_a_doubt(carrier)

    @pytest.mark.parametrize(
        ("fault", "options", "fate"),
        [
            ("status", {"status": 500}, Fate.DOUBTFUL),
            ("status", {"status": 429, "retry_after": 7}, Fate.SLOWER),
            ("status", {"status": 408}, Fate.LATER),
            ("status", {"status": 403}, Fate.CLOSED),
            ("status", {"status": 302}, Fate.CLOSED),
            ("html", {}, Fate.DOUBTFUL),
            ("cut", {}, Fate.DOUBTFUL),
            ("deaf", {}, Fate.DOUBTFUL),
        ],
    )
    def test_every_answer_is_sorted(
        self, carrier: Provider, fault: str, options: dict[str, object], fate: Fate
    ) -> None:
        self.simulator.fail(fault, **options)
        asked = self.hasty() if fault == "deaf" else carrier
        (answer,) = self.ask(asked, ("send", self.outgoing(self.good)))
        assert answer.fate is fate
        if fate is Fate.SLOWER:
            assert answer.retry_after == 7

    def test_a_key_repeated_is_one_message(self, carrier: Provider) -> None:
        message = self.outgoing(self.good)
        self.ask(carrier, ("send", message), ("send", message))
        assert len(self.simulator.sent) == 1

    def test_a_request_replayed_on_its_way_is_one_message(self, carrier: Provider) -> None:
        self.simulator.fail("replay")
        (answer,) = self.ask(carrier, ("send", self.outgoing(self.good)))
        assert answer.fate is Fate.ACCEPTED
        assert [message.times for message in self.simulator.sent] == [2]

    def test_an_answer_that_comes_twice_is_never_the_next_one_s(self, carrier: Provider) -> None:
        self.simulator.fail("twice", times=5)
        first, last = self.outgoing(self.good), self.outgoing(self.good)
        steps = [("send", first), ("send", self.outgoing(self.refused)), ("send", self.outgoing(self.refused)),
                 ("look_up", first.key), ("send", last)]  # fmt: skip
        answers = self.ask(carrier, *steps, ("look_up", str(uuid.uuid4())), ("look_up", last.key))
        assert [answer.fate for answer in answers] == [
            Fate.ACCEPTED, Fate.DOUBTFUL, Fate.REFUSED, Fate.ACCEPTED, Fate.DOUBTFUL, Fate.UNKNOWN_KEY, Fate.ACCEPTED,
        ]  # fmt: skip
        assert [answers[0].reference, answers[6].reference] == [message.id for message in self.simulator.sent]


class TestMail(ProviderContract):
    good, refused, silent = "anna@example.org", "rifiutata@example.org", "muta@example.org"
    subject = "Promemoria: è domani"

    @pytest.fixture
    def carrier(self, tmp_path: Path) -> Iterator[Provider]:
        self.folder = tmp_path / "mail"
        with mailbox.in_thread(self.folder) as self.url:
            yield self.relay(PATIENCE)

    def relay(self, patience: float) -> Provider:
        return MailRelay(self.url, "Polydesk <no-reply@clinica.example>", patience=patience)

    def hasty(self) -> Provider:
        return self.relay(0.5)

    def arrived(self) -> list[str]:
        return [str(message["To"]) for message in mailbox.received(self.folder)]

    def unreachable(self) -> Provider:
        return MailRelay(f"smtp://127.0.0.1:{closed_port()}", "no-reply@clinica.example", patience=PATIENCE)

    def intruder(self) -> Provider:
        return MailRelay(self.url.replace(":demo@", ":sbagliata@"), "no-reply@clinica.example", patience=PATIENCE)

    def test_a_full_mailbox_is_for_later(self, carrier: Provider) -> None:
        (answer,) = self.ask(carrier, ("send", self.outgoing("piena@example.org")))
        assert answer.fate is Fate.LATER

    def test_the_message_says_who_when_and_how_to_stop(self, carrier: Provider) -> None:
        outgoing = self.outgoing(self.good, "Gentile Anna,\nè domani.\n")
        self.ask(carrier, ("send", outgoing))
        (message,) = mailbox.received(self.folder)
        assert message["Message-ID"] == f"<{outgoing.key}@clinica.example>"
        assert message["Subject"] == self.subject
        assert message["List-Unsubscribe"].startswith("<mailto:no-reply@clinica.example")
        body = message.get_body(("plain",))
        assert body is not None
        assert body.get_content().splitlines() == ["Gentile Anna,", "è domani."]

    @pytest.mark.parametrize(
        "address", ["a@b.example, c@d.example", "a@b.example\r\nBcc: x@y.example", "nessuno", "@b"]
    )
    def test_no_header_and_no_second_address_slips_in(self, carrier: Provider, address: str) -> None:
        (answer,) = self.ask(carrier, ("send", self.outgoing(address)))
        assert (answer.fate, answer.bad_address, self.arrived()) == (Fate.REFUSED, True, [])

    def test_who_trusts_another_certificate_leaves_no_trace_in_the_demo_s_mail_server(
        self, carrier: Provider, caplog: pytest.LogCaptureFixture
    ) -> None:
        untrusted = MailRelay(self.url.partition("&ca=")[0], "no-reply@clinica.example", patience=PATIENCE)
        self.ask(untrusted, ("send", self.outgoing(self.good)))
        for _ in range(3):  # by the last answer the server has long seen the other one leave
            self.ask(carrier, ("send", self.outgoing(self.good)))
        assert not [record for record in caplog.records if record.name == "mail.log"]

    @pytest.mark.usefixtures("carrier")
    def test_encryption_is_not_negotiable(self, tmp_path: Path) -> None:
        untrusted = MailRelay(self.url.partition("&ca=")[0], "no-reply@clinica.example", patience=PATIENCE)
        (answer,) = self.ask(untrusted, ("send", self.outgoing(self.good)))
        assert (answer.fate, self.arrived()) == (Fate.CLOSED, [])
        for wrong in ("smtp://h?starttls=forse", "smtp://h?tls=1", "smtp://h?key=a%0Ab"):
            with pytest.raises(ConfigurationError):
                MailRelay(wrong, "no-reply@clinica.example")
        with pytest.raises(ConfigurationError):
            asyncio.run(MailRelay(f"smtp://h?ca={tmp_path}/no", "no-reply@clinica.example").__aenter__())
