"""Where names lead: a fake resolver, real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from polydesk_dagster import network, remote
from polydesk_dagster.clinic.messages.provider import Answer, Fate, Outgoing
from polydesk_dagster.errors import PermanentError, TransientError
from polydesk_dagster.knowledge.embedding import Endpoint
from polydesk_dagster.providers.sms import SmsGateway
from polydesk_dagster.remote import Policy, Remote
from polydesk_dagster.sources.fhir.tokens import SmartTokens
from tests.waiting import PATIENCE

QUICK = Policy(attempts=1, connect=2.0, total=5.0)


class Server:
    """Answers one line of JSON to whoever connects, and keeps what it was asked."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.asked: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                self.asked.append(connection.recv(65536))
                head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
                connection.sendall(head + b"Connection: close\r\n\r\n{}")


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.socket.close()


@pytest.fixture
def leads(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """What each name is resolved to, one answer after the other."""
    answers: dict[str, list[list[str]]] = {}

    def resolve(host: str, _port: int) -> list[str]:
        if not answers.get(host):
            raise socket.gaierror(-2, "Name or service not known")
        return answers[host].pop(0)

    monkeypatch.setattr(network, "resolve", resolve)
    return answers


def ask(url: str) -> object:
    with Remote("prova", url, "token", QUICK) as system:
        return system.get("/x").body


def look(url: str) -> object:
    async def once() -> object:
        async with remote.looking(QUICK, 2) as client:
            return (await remote.look(client, "prova", url, "/x", token="token", query={}, policy=QUICK)).body

    return asyncio.run(once())


WAYS = pytest.mark.parametrize("way", [ask, look])


@WAYS
@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["169.254.169.254"],
        ["fe80::1%eth0"],
        ["100.100.100.200"],
        ["fd00:ec2::254"],
        ["0.0.0.0"],
        ["224.0.0.1"],
        ["93.184.216.34", "127.0.0.1"],
        ["127.0.0.1", "93.184.216.34"],
    ],
)
def test_a_name_that_leads_inside_is_not_connected_to(
    server: Server, leads: dict[str, list[list[str]]], way: type, addresses: list[str]
) -> None:
    leads["studio.example"] = [addresses]
    with pytest.raises(PermanentError) as refused:
        way(f"http://studio.example:{server.port}")
    assert refused.value.reason.code == "address_leads_inside"
    assert not server.asked


@WAYS
def test_what_was_looked_at_is_what_is_connected_to(
    server: Server, leads: dict[str, list[list[str]]], way: type
) -> None:
    """A name is asked for once: what it would be a moment later nobody hears."""
    leads["localhost"] = [["127.0.0.1"], ["169.254.169.254"]]
    assert way(f"http://localhost:{server.port}") == {}
    assert leads["localhost"] == [["169.254.169.254"]]
    assert f"host: localhost:{server.port}".encode() in server.asked[0].lower(), "the name is still what is asked"


@WAYS
def test_the_next_address_is_tried_where_one_does_not_answer(
    server: Server, leads: dict[str, list[list[str]]], way: type
) -> None:
    leads["localhost"] = [["::1", "127.0.0.1"]]
    assert way(f"http://localhost:{server.port}") == {}


@WAYS
def test_a_name_without_an_address_may_have_one_later(leads: dict[str, list[list[str]]], way: type) -> None:
    assert not leads
    with pytest.raises(TransientError):
        way("http://nowhere.example:1")


@WAYS
def test_an_address_that_is_written_out_is_taken_at_its_word(server: Server, way: type) -> None:
    assert way(f"http://127.0.0.1:{server.port}") == {}


def test_a_clinics_own_network_may_hold_its_practice_system(leads: dict[str, list[list[str]]]) -> None:
    leads["studio.lan"] = [["192.168.1.20", "fd12::20"]]
    assert network.checked("studio.lan", 443) == ["192.168.1.20", "fd12::20"]


def sms(url: str) -> Answer:
    async def once() -> Answer:
        async with SmsGateway(url, "segreto", "Polydesk", patience=PATIENCE) as gateway:
            return await gateway.send(Outgoing("chiave", "+393331234567", None, "domani"))

    return asyncio.run(once())


def vector(url: str) -> object:
    return Endpoint(url, "modello", "segreto", attempts=1).ask("dove si parcheggia")


def token(url: str) -> object:
    key = ec.generate_private_key(ec.SECP384R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    ).decode()
    auth = SmartTokens("prova", f"{url}/token", "polydesk", pem, "system/*.rs", None, QUICK)
    try:
        return next(auth.auth_flow(httpx.Request("GET", url)))
    finally:
        auth.close()


def identity(url: str) -> object:
    from authlib.integrations.starlette_client import OAuth

    from polydesk_dagster.web.oidc_client import App

    provider = OAuth().register("oidc", client_cls=App, server_metadata_url=f"{url}/metadata", client_id="polydesk")
    return asyncio.run(provider.load_server_metadata())


@pytest.mark.parametrize("way", [vector, token, identity])
def test_no_secret_goes_to_a_name_that_leads_inside(
    server: Server, leads: dict[str, list[list[str]]], way: Callable[[str], object]
) -> None:
    leads["servizio.example"] = [["127.0.0.1"]]
    with pytest.raises(PermanentError) as refused:
        way(f"http://servizio.example:{server.port}")
    assert refused.value.reason.code == "address_leads_inside"
    assert not server.asked


def test_a_gateway_whose_name_leads_inside_is_closed(server: Server, leads: dict[str, list[list[str]]]) -> None:
    leads["sms.example"] = [["169.254.169.254"]]
    assert sms(f"http://sms.example:{server.port}") == Answer(Fate.CLOSED, code="address_leads_inside")
    assert not server.asked


@pytest.mark.parametrize("way", [sms, vector, token, identity])
def test_every_client_connects_to_what_was_looked_at(
    server: Server, leads: dict[str, list[list[str]]], way: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No proxy that happens to stand in the environment looks the name up instead."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    leads["localhost"] = [["127.0.0.1"]]
    with contextlib.suppress(PermanentError):  # an answer of two braces is not what everybody hopes for
        way(f"http://localhost:{server.port}")
    assert len(server.asked) == 1


Signed = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def signed(name: str, by: Signed | None = None) -> Signed:
    """A certificate for ``name``: of a test's own authority, or signed by it."""
    key = ec.generate_private_key(ec.SECP256R1())
    signer = by[1] if by else key
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by[0].subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        # what whoever verifies strictly, as Python 3.13 does, asks of an authority and of whom it vouches for
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=by is None,
                crl_sign=by is None,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .sign(signer, hashes.SHA256())
    )
    return made, key


class Secure(Server):
    """The same behind TLS; keeps which names it was asked for in the handshake."""

    def __init__(self, certificate: Signed, folder: Path) -> None:
        chain = folder / "server.pem"
        chain.write_bytes(
            certificate[1].private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate[0].public_bytes(serialization.Encoding.PEM)
        )
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(chain)
        self.named: list[str | None] = []
        self.context.sni_callback = lambda _socket, name, _context: self.named.append(name)
        super().__init__()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            try:
                with self.context.wrap_socket(connection, server_side=True) as secured:
                    self.asked.append(secured.recv(65536))
                    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
                    secured.sendall(head + b"Connection: close\r\n\r\n{}")
            except OSError:  # whoever does not believe the certificate goes
                continue


def secure_get(url: str, trust: ssl.SSLContext) -> httpx.Response:
    with httpx.Client(transport=network.transport(trust), trust_env=False) as client:
        return client.get(url)


def secure_look(url: str, trust: ssl.SSLContext) -> httpx.Response:
    async def once() -> httpx.Response:
        async with httpx.AsyncClient(transport=network.async_transport(trust), trust_env=False) as client:
            return await client.get(url)

    return asyncio.run(once())


@pytest.mark.parametrize("way", [secure_get, secure_look])
def test_tls_is_with_the_name_though_the_address_is_pinned(
    leads: dict[str, list[list[str]]],
    tmp_path: Path,
    way: Callable[[str, ssl.SSLContext], httpx.Response],
) -> None:
    authority = signed("Prova CA")
    trust = ssl.create_default_context(cadata=authority[0].public_bytes(serialization.Encoding.PEM).decode())
    server = Secure(signed("localhost", authority), tmp_path)
    leads["localhost"] = [["127.0.0.1"], ["127.0.0.1"]]
    try:
        assert way(f"https://localhost:{server.port}/", trust).json() == {}
        assert server.named == ["localhost"], "the name is said in the handshake, never the address"
        with pytest.raises(httpx.ConnectError, match="certificate"):
            way(f"https://127.0.0.1:{server.port}/", trust)
        with pytest.raises(httpx.ConnectError, match="certificate"):
            way(f"https://localhost:{server.port}/", network.trust())
    finally:
        server.socket.close()
    assert len(server.asked) == 1, "what is not believed is asked nothing"
