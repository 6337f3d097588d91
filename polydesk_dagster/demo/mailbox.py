"""The demo's mail server: real SMTP with STARTTLS and AUTH, and a folder in which to read what was sent.

Each accepted message is one ``.eml`` file, numbered in order of arrival. Addresses decide how a message ends:
``rifiutata@…`` is refused for good, ``piena@…`` for now, ``muta@…`` is taken and never answered.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import signal
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any, cast

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session, TLSSetupException

USER, PASSWORD = "polydesk", "demo"
REFUSED, FULL, SILENT = "rifiutata", "piena", "muta"
CERTIFICATE = "certificate.pem"

# At every login aiosmtpd warns of an attribute that it sets itself.
logging.getLogger("mail.log").addFilter(lambda record: "Session.login_data" not in record.getMessage())


class Mailbox:
    """Takes messages into ``folder``; used by aiosmtpd as its handler."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._arrived = len(list(folder.glob("*.eml")))

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        name = address.partition("@")[0]
        if name == REFUSED:
            return "550 5.1.1 no such mailbox"
        if name == FULL:
            return "452 4.2.2 mailbox full"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        self._arrived += 1
        number = self._arrived
        partial = self.folder / f"{number:06d}.part"
        partial.write_bytes(cast("bytes", envelope.original_content))
        partial.rename(partial.with_suffix(".eml"))
        if any(address.partition("@")[0] == SILENT for address in envelope.rcpt_tos):
            await asyncio.sleep(3600)
        return f"250 OK {number}"

    async def handle_exception(self, error: Exception) -> str:
        """A client that leaves during the handshake, because it trusts another certificate, is no fault here."""
        if isinstance(error, TLSSetupException) and isinstance(error.__cause__, ConnectionError):
            return "421 4.7.0 no encryption agreed on"
        raise error  # told whole in the log, and to the client


def received(folder: Path) -> list[EmailMessage]:
    """What has arrived in ``folder``, in order."""
    return [message_from_bytes(path.read_bytes(), policy=default) for path in sorted(folder.glob("*.eml"))]


def _certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1 of its own making, kept in ``folder`` with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    path = folder / CERTIFICATE
    if path.exists():
        return path
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Polydesk demo")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.touch(mode=0o600)
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
    return path


def _authenticate(_server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: Any) -> AuthResult:
    right = isinstance(data, LoginPassword) and (data.login, data.password) == (USER.encode(), PASSWORD.encode())
    return AuthResult(success=right, handled=False)


async def _listen(folder: Path, port: int) -> tuple[asyncio.Server, str]:
    mailbox, certificate = Mailbox(folder), _certificate(folder)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)

    def protocol() -> SMTP:
        return SMTP(
            mailbox,
            hostname="polydesk-demo",
            tls_context=tls,
            require_starttls=True,
            authenticator=_authenticate,
            auth_required=True,
            enable_SMTPUTF8=True,
            loop=asyncio.get_running_loop(),
        )

    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", port)
    listening = server.sockets[0].getsockname()[1]
    return server, f"smtp://{USER}:{PASSWORD}@127.0.0.1:{listening}?starttls=require&ca={certificate}"


@contextmanager
def in_thread(folder: Path) -> Iterator[str]:
    """Serve on a free port in a thread of this process; yields the URL for POLYDESK_SMTP_URL."""
    loop = asyncio.new_event_loop()
    ready: list[str] = []
    started = threading.Event()

    def serve() -> None:
        asyncio.set_event_loop(loop)
        server, url = loop.run_until_complete(_listen(folder, 0))
        ready.append(url)
        started.set()
        loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    if not started.wait(10):
        raise RuntimeError("the mail server did not start")
    try:
        yield ready[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)


async def _serve(folder: Path, port: int) -> None:
    server, url = await _listen(folder, port)
    print(url, flush=True)  # noqa: T201 - whoever starts it reads the address here
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Server di posta dimostrativo")
    parser.add_argument("--port", type=int, default=8025, help="0: una porta libera qualsiasi")
    parser.add_argument("--state", type=Path, required=True, help="cartella in cui leggere ciò che arriva")
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.state, arguments.port))
