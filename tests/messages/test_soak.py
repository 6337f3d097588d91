"""Ten thousand texts, and a gateway that tells of them late, twice, in any order, among forgeries: what we know in the
end is what it knows."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.messages import arrivals
from polydesk_dagster.demo.simulators.sms import DEMO_SECRET, Webhook
from polydesk_dagster.web.addresses import RECEIPTS, REPLIES
from tests.messages.test_kill import fill
from tests.web.world import served

MANY = 10_000
AT_ONCE = 32
UNRECORDED = MANY // 10
"""Texts of which the gateway tells before the ledger knows its name for them."""
_SENT = sa.text("""
    UPDATE message m SET state = 'sent', channel = 'sms', address = p.mobile, sent_at = :at, changed_at = :at,
        idempotency_key = gen_random_uuid(), body = 'x', segments = 1, ask_after = :at,
        provider_reference = CASE WHEN m.id % 10 <> 0 THEN 'g' || m.id END
    FROM patient p WHERE p.id = m.recipient_id""")
ENDS = (("delivered", None),) * 7 + (
    ("undeliverable", "unknown_number"),
    ("undeliverable", "absent"),
    ("accepted", None),
)
"""How texts end; some are still on their way when the gateway falls silent."""


def _told(
    chance: random.Random, texts: list[int], numbers: list[str], now: datetime
) -> tuple[list[Any], dict[int, str]]:
    """Everything that the gateway says, in the order in which it happens to arrive, and how each text ended."""
    said: list[tuple[str, dict[str, Any]]] = []
    ends: dict[int, str] = {}
    for text in texts:
        status, reason = chance.choice(ENDS)
        ends[text] = status
        began = now - timedelta(minutes=chance.randint(2, 600))
        steps = [("accepted", None, began)] if status == "accepted" or chance.random() < 0.1 else []
        if status != "accepted":
            steps.append((status, reason, began + timedelta(seconds=chance.randint(1, 90))))
        for number, (step, why, at) in enumerate(steps):
            body = {"id": f"{text}.{number}", "message_id": f"g{text}", "status": step, "reason": why}
            said.append((RECEIPTS, {**body, "at": at.isoformat()}))
    for number in chance.sample(numbers, len(numbers) // 50):
        told = {"id": f"r{number}", "from": number, "to": "+3932", "text": "Stop", "received_at": now.isoformat()}
        said.append((REPLIES, told))
    said += chance.sample(said, len(said) // 20)
    chance.shuffle(said)
    return said, ends


class _Gateway:
    """A connection of the gateway's, kept open: a client of the house's would cost more than the door."""

    def __init__(self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._host, self._reader, self._writer = host, reader, writer

    async def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> int:
        """The status of the answer."""
        given = {"Host": self._host, "Content-Length": str(len(body)), **headers}
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), "", ""]
        self._writer.write("\r\n".join(lines).encode() + body)
        first, *told = (await self._reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        length = next((int(line[15:]) for line in told if line.startswith(b"content-length:")), 0)
        await self._reader.readexactly(length)
        return int(first.split()[1])


async def _post(port: int, said: list[Any], chance: random.Random) -> Counter[int]:
    """Tell the door everything, many at a time, among forgeries; what was answered how often."""
    signer, thief = Webhook("", "", DEMO_SECRET), Webhook("", "", "not the secret at all")
    answers: Counter[int] = Counter()
    waiting = iter(said)

    async def tell() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        gateway = _Gateway(f"127.0.0.1:{port}", reader, writer)
        for path, body in waiting:
            raw = json.dumps(body).encode()
            if chance.random() < 0.03:
                forged = json.dumps({**body, "id": f"forged {body['id']}", "status": "undeliverable"}).encode()
                headers = chance.choice([thief.headers(forged), signer.headers(forged, time.time() - 600)])
                answers[await gateway.post(path, forged, headers)] += 1
            answers[await gateway.post(path, raw, signer.headers(raw))] += 1
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(tell() for _ in range(AT_ONCE)))
    return answers


@pytest.mark.slow
def test_what_is_known_is_what_the_gateway_knows(engine: sa.Engine, tmp_path: Path) -> None:
    chance, now = random.Random(20), datetime.now(UTC)
    fill(engine, MANY, "+39340")
    with engine.begin() as connection:
        connection.execute(_SENT, {"at": now - timedelta(hours=12)})
        rows = connection.execute(sa.text("SELECT id, address FROM message ORDER BY id")).all()
    said, ends = _told(chance, [row.id for row in rows], [row.address for row in rows], now)
    told = {"sms_url": "http://127.0.0.1:9/", "sms_token": "x", "sms_sender": "+393200000000"}
    with served(engine, tmp_path, sms_webhook_secret=DEMO_SECRET, **told) as door:
        first, rest = said[: len(said) // 2], said[len(said) // 2 :]
        answers = asyncio.run(_post(door.door.settings.web_port, first, chance))
        with engine.begin() as connection:  # only now does the ledger hear how the gateway calls the others
            named = connection.execute(
                sa.text("UPDATE message SET provider_reference = 'g' || id WHERE provider_reference IS NULL")
            )
            assert named.rowcount == UNRECORDED
        answers += asyncio.run(_post(door.door.settings.web_port, rest, chance))
    assert answers.keys() == {204, 401}
    assert answers[204] == len(said)
    later = datetime.now(UTC)
    arrivals.settle(engine, later, again=True)
    with engine.connect() as connection:
        known = connection.execute(sa.text("SELECT id, delivery, state FROM message")).all()
        stops = connection.scalar(sa.text("SELECT count(*) FROM message_block WHERE cause = 'stop'"))
        left = connection.scalar(sa.text("SELECT count(*) FROM message_receipt WHERE settled_at IS NULL"))
        struck = connection.execute(
            sa.text("SELECT max(n) FROM (SELECT count(*) AS n FROM message_attempt GROUP BY message_id) a")
        ).scalar_one()
    expected = {"delivered": "delivered", "undeliverable": "undelivered", "accepted": None}
    assert {row.id: row.delivery for row in known} == {text: expected[end] for text, end in ends.items()}
    assert {row.state for row in known} == {"sent"}  # what they told is past: no other way is of use
    assert (stops, left, struck) == (len({body["from"] for path, body in said if path == REPLIES}), 0, 1)
