"""What the gateway tells the door by itself: signed, kept once, done; whatever else comes there is refused."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.messages import service
from polydesk_dagster.clinic.messages.links import Reach
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, in_thread
from polydesk_dagster.demo.simulators.sms import DEMO_SECRET, SmsSimulator, Webhook
from polydesk_dagster.providers.sms import SmsGateway
from polydesk_dagster.web.addresses import RECEIPTS, REPLIES
from polydesk_dagster.web.gateway import Together
from tests import world
from tests.messages.world import booked
from tests.waiting import until
from tests.web.world import Served, served

NUMBER = "+393471112223"


class House:
    """A door, and the gateway that tells it things."""

    def __init__(self, door: Served, simulator: SmsSimulator, gateway: str) -> None:
        self.door, self.simulator, self.gateway = door, simulator, gateway
        self.engine = door.door.engine

    def texts(self, text: str) -> None:
        asked = {"from": NUMBER, "text": text}
        httpx.post(self.gateway.replace("/api/v1", "/admin/replies"), json=asked, trust_env=False).raise_for_status()

    def post(self, path: str, said: dict[str, Any] | bytes, **headers: str | None) -> int:
        """A request as the gateway sends it, but for ``headers`` (None: without it)."""
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        given = {**signer.headers(body), **{name.replace("_", "-"): value for name, value in headers.items()}}
        sent = {name: value for name, value in given.items() if value is not None}
        return httpx.post(self.door.origin + path, content=body, headers=sent, trust_env=False).status_code

    def scalar(self, query: str) -> Any:
        with self.engine.connect() as connection:
            return connection.scalar(sa.text(query))


signer = Webhook("", "")


def reply(text: str = "1", **more: Any) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat()
    return {
        "id": uuid.uuid4().hex,
        "from": "0039 347 111 2223",
        "to": "+3932",
        "text": text,
        "received_at": now,
        **more,
    }


def receipt(**more: Any) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat()
    return {"id": uuid.uuid4().hex, "message_id": "m", "status": "delivered", "reason": None, "at": now, **more}


@pytest.fixture
def house(engine: sa.Engine, tmp_path: Path) -> Iterator[House]:
    simulator = SmsSimulator()
    with in_thread(simulator) as gateway:
        told = {"sms_url": gateway, "sms_token": DEMO_TOKEN, "sms_sender": "+393200000000"}
        with served(engine, tmp_path, sms_webhook_secret=DEMO_SECRET, **told) as door:
            simulator.webhook = Webhook(door.origin + REPLIES, door.origin + RECEIPTS)
            yield House(door, simulator, gateway)


def remind(house: House) -> str:
    """Somebody is reminded of an appointment of tomorrow; the text."""
    now = datetime.now(UTC)
    with house.engine.begin() as connection:
        practice = world.practice(connection)
        connection.execute(
            sa.text("""UPDATE message_policy SET quiet_from = '00:00', quiet_to = '00:00', quiet_rest_days = false,
                                                 reminder_time = '00:00' WHERE clinic_id IS NULL""")
        )
        patient = world.patient(connection, mobile=NUMBER, email=None)
        day = (now.astimezone(world.ROME) + timedelta(days=1)).date().isoformat()
        booked(connection, practice, "12:00", day, patient_id=patient)
    sms = SmsGateway(house.gateway, DEMO_TOKEN, "+393200000000")
    service.send(house.engine, now, "reminder", {"sms": sms}, reach=Reach(house.door.origin, replies=True))
    (sent,) = house.simulator.sent
    return sent.text


def test_a_patient_cancels_by_two_texts(house: House) -> None:
    assert "Risponda 1 per confermare" in remind(house)
    until(lambda: house.scalar("SELECT delivery FROM message") == "delivered")
    house.texts("2")
    until(lambda: len(house.simulator.sent) == 2)
    until(lambda: house.scalar("SELECT count(*) FROM message WHERE kind = 'cancel_question' AND state = 'sent'") == 1)
    house.texts("2")
    until(lambda: house.scalar("SELECT status FROM appointment") == "cancelled")
    assert house.scalar("SELECT count(*) FROM seat") == 0
    until(lambda: len(house.simulator.sent) == 3)
    assert "disdetto" in house.simulator.sent[-1].text


def test_whoever_has_not_signed_gets_nothing_in(house: House) -> None:
    body = json.dumps(reply()).encode()
    now = time.time()
    good = signer.headers(body)["X-Signature"]
    refused: list[dict[str, Any]] = [
        {"X_Signature": None},
        {"X_Signature": ""},
        {"X_Signature": good[:-1] + ("0" if good[-1] != "0" else "1")},
        {"X_Signature": good.replace("v1", "v0")},
        {"X_Signature": good + ",v1=" + "0" * 64},
        {"X_Signature": Webhook("", "", "another secret, long").headers(body)["X-Signature"]},
        {"X_Signature": signer.headers(body, now - 301)["X-Signature"]},
        {"X_Signature": signer.headers(body, now + 320)["X-Signature"]},
        {"X_Signature": signer.headers(body + b" ")["X-Signature"]},
        {"Cookie": f"{house.door.door.cookie}=x"},
        {"Origin": house.door.origin},
        {"Sec_Fetch_Site": "cross-site"},
        {"Content_Type": "application/x-www-form-urlencoded"},
        {"Content_Type": "multipart/form-data; boundary=x"},
        {"Host": "altrove.example"},
    ]
    for headers in refused:
        assert house.post(REPLIES, body, **headers) in {401, 403, 421}, headers
    assert house.post(REPLIES, reply("x" * 20_000)) == 413
    assert house.post("/sms/", reply()) == 404
    assert house.post("/sms/altro", reply()) == 404
    assert house.post("/lingua", reply()) == 403
    assert httpx.get(house.door.origin + REPLIES, trust_env=False).status_code == 405
    assert house.scalar("SELECT count(*) FROM message_reply") == 0
    assert house.post(REPLIES, body) == 204


@pytest.mark.parametrize(
    "said",
    [b"", b"[]", b"{", b"\xff", reply(id=""), reply(id=7), reply(received_at="ieri"), reply(text=None),
     reply(received_at="2026-03-10T10:00:00"), reply(id="x" * 201), reply(text="x" * 5_001), b"null", b"7",
     b"[" * 15_000, b'{"a":' * 3_000, b"9" * 15_000, b'{"id": 1e400}', b'{"id": "\0"}', reply(id=["x"]), reply(id=None),
     reply(text={"a": 1}), reply(received_at=10**30), reply(received_at="9999-99-99T00:00:00Z")],
)  # fmt: skip
def test_what_the_contract_does_not_say_is_refused_and_told_nobody(
    house: House, caplog: pytest.LogCaptureFixture, said: Any
) -> None:
    assert house.post(REPLIES, said) == 400
    assert house.post(RECEIPTS, said) == 400
    assert NUMBER[3:] not in caplog.text
    assert house.scalar("SELECT count(*) FROM message_reply") == 0


def test_what_is_told_again_is_kept_once(house: House) -> None:
    said, ended = reply("2\x00\ud800"), receipt()
    for _ in range(3):
        assert (house.post(REPLIES, said), house.post(RECEIPTS, ended)) == (204, 204)
    assert house.scalar("SELECT count(*) FROM message_reply") == 1
    assert house.scalar("SELECT count(*) FROM message_receipt") == 1
    until(lambda: house.scalar("SELECT outcome FROM message_reply") == "desk")


def test_nothing_is_answered_before_it_is_kept(house: House) -> None:
    """While the table cannot be written the gateway is told so, and tells it again."""
    with house.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE message_reply RENAME TO gone"))
    said = reply()
    assert house.post(REPLIES, said) == 500
    with house.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE gone RENAME TO message_reply"))
    assert house.post(REPLIES, said) == 204


def test_a_burst_is_kept_by_few_transactions(house: House) -> None:
    """Whoever was kept beside others makes way at once: else each in her turn writes what little came since."""
    crowd, times, sizes = 20, 10, list[int]()

    def keep(_connection: sa.Connection, told: Sequence[int], _at: datetime) -> int:
        sizes.append(len(told))
        return len(told)

    async def burst() -> None:
        together = Together(house.door.door, keep)

        async def connection() -> None:
            for number in range(times):
                await together.kept(number)

        await asyncio.gather(*(connection() for _ in range(crowd)))

    asyncio.run(burst())
    assert sum(sizes) == crowd * times
    assert len(sizes) <= 2 * times + 1, sizes


def test_without_a_secret_nobody_is_heard(engine: sa.Engine, tmp_path: Path) -> None:
    with served(engine, tmp_path) as door:
        assert House(door, SmsSimulator(), "").post(REPLIES, reply()) == 404


def test_the_link_is_pressed_in_a_browser(house: House) -> None:
    remind(house)
    with house.engine.connect() as connection:
        from polydesk_dagster.clinic.messages import links

        number = connection.scalar(sa.text("SELECT id FROM message"))
        path = f"{links.VISIT}{links.token(links.secret(connection), number, links.SHOW)}"
    browser = house.door.client()
    shown = browser.get(path)
    assert (shown.status_code, "Confermo" in shown.text, "Rossi" in shown.text) == (200, True, False)
    assert house.scalar("SELECT count(*) FROM appointment_answer") == 0
    assert (
        browser.post(path, data={"verb": "confirm"}, headers={"origin": "https://altrove.example"}).status_code == 403
    )
    assert "confermato" in browser.post(path, data={"verb": "confirm"}).text
    assert browser.post(path, data={"verb": "altro"}).status_code == 400
    assert "disdetto" in browser.post(path, data={"verb": "cancel"}).text
    assert "Confermo" not in browser.get(path).text
    assert browser.get(links.VISIT + "a" * 24).status_code == 404
    until(lambda: len(house.simulator.sent) == 2)


def test_the_desk_reads_on_the_page_what_only_it_understands(house: House) -> None:
    remind(house)
    house.post(REPLIES, reply("Arrivo <b>tardi</b>"))
    until(lambda: house.scalar("SELECT outcome FROM message_reply") == "desk")
    clinic = house.scalar("SELECT id FROM clinic")
    desk = house.door.signed_in("desk", clinic=clinic)
    page = desk.get("/da-fare").text
    assert "Arrivo &lt;b&gt;tardi&lt;/b&gt;" in page
    number = house.scalar("SELECT id FROM message_reply")
    done = desk.post(f"/da-fare/risposte/{number}", data=house.door.form(desk, back="replies"))
    assert done.status_code == 303
    assert "Arrivo" not in desk.get("/da-fare").text
    assert desk.post(f"/da-fare/risposte/{number}", data=house.door.form(desk, back="replies")).status_code == 409
    with house.engine.begin() as connection:
        other = world.clinic(connection, "MI01")
    stranger = house.door.signed_in("desk", clinic=other)
    assert stranger.post(f"/da-fare/risposte/{number}", data=house.door.form(stranger)).status_code == 403
