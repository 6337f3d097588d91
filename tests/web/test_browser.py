"""The pages in a real browser: who logs in and what she can do with keyboard alone, accessible by axe-core, and nothing
that a page of another origin tries comes to anything."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import sqlalchemy as sa
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page

from polydesk_dagster.outcome import Counts, Outcome, Reason, Report
from polydesk_dagster.web.words import PLACES
from tests import world
from tests.web.browser import chromium, opened
from tests.web.test_services import ran
from tests.web.world import PASSWORD, Served, person, session

PATHS = (
    *(address for address, _, _ in PLACES if address != "/dagster/"),
    *("/messaggi/testi", "/messaggi/testi/reminder/plain/sms/it?clinica=BO01"),
    *("/servizi/clear_caches", "/servizi/send_reminders", "/rossa/release_all_holds", "/accessibilita"),
)

REBOUND = "rebound.example"
"""A name of somebody else that leads to this machine."""

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1") as found:
        yield found


@pytest.fixture
def served(door: Served) -> Served:
    with door.door.engine.begin() as connection:
        world.clinic(connection)
    ran(door.door.engine, "clear_caches", Report(Outcome.PARTIAL, Counts(updated=2, failed=1)))
    ran(door.door.engine, "sync_prices", Report(Outcome.FAILED, Counts(failed=1), (Reason("unexpected"),)), "BO01")
    return door


def _signed_in(browser: Browser, served: Served, role: str, **more: Any) -> BrowserContext:
    with served.door.engine.begin() as connection:
        token = session(connection, person(connection, role))
    context = opened(browser, base_url=served.origin, **more)
    context.add_cookies([{"name": served.door.cookie, "value": token, "url": served.origin}])
    return context


# Of what is well nothing is described or sent: that is most of a page, several times over.
AUDIT = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"], "resultTypes": ["violations"]}


def _violations(page: Page) -> list[str]:
    found = Axe().run(page, options=AUDIT).response
    return [f"{each['id']}: {[node['html'][:120] for node in each['nodes'][:3]]}" for each in found["violations"]]


@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_meets_the_rules_of_accessibility(browser: Browser, served: Served, width: int) -> None:
    context = _signed_in(browser, served, "superuser", viewport={"width": width, "height": 900})
    page = context.new_page()
    for path in PATHS:
        page.goto(path)
        assert not _violations(page), path
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0, f"{path} is wider than {width} pixels"
    context.clear_cookies()
    page.goto("/entra")
    assert not _violations(page)
    context.close()


def test_she_logs_in_and_pauses_a_service_with_the_keyboard_alone(browser: Browser, served: Served) -> None:
    with served.door.engine.begin() as connection:
        person(connection, "manager", password=True, email="direzione@example.org")
    context = opened(browser, base_url=served.origin, locale="it-IT")
    page = context.new_page()
    page.goto("/")
    assert page.url.startswith(f"{served.origin}/entra")
    page.keyboard.type("direzione@example.org")
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{served.origin}/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.goto("/servizi/send_reminders")
    page.focus("#reason")
    page.keyboard.type("Tutto è stato provato")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert page.locator("#for").count() == 1  # it is live, and can be paused
    page.select_option("#for", "week")
    page.focus("#reason")
    page.keyboard.type("La posta è rotta")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert "messo in pausa da" in page.inner_text("main")
    context.close()


def test_without_script_the_pages_work_all_the_same(browser: Browser, served: Served) -> None:
    context = _signed_in(browser, served, "superuser", java_script_enabled=False, locale="it-IT")
    page = context.new_page()
    page.goto("/")
    assert page.locator(".service").count() >= 26
    page.select_option("#lingua", "de")
    page.get_by_role("button", name="Scegli").click()
    assert "Einstellungen → Dienste" in page.content()
    context.close()


EVIL = """<!doctype html><body>
<img src="{door}/servizi/clear_caches/esegui"><img src="{door}/dagster/graphql?query=mutation%7Bx%7D">
<iframe src="{door}/" id="frame"></iframe>
<form id="form" method="post" action="{door}/servizi/clear_caches/esegui" target="hidden"><input name="clinic"></form>
<iframe name="hidden"></iframe>
<script>
window.tried = [];
const note = (name) => (value) => window.tried.push([name, String(value)]);
document.getElementById("form").submit();
Promise.allSettled([
  fetch("{door}/servizi/clear_caches/esegui",
        {{method: "POST", credentials: "include", body: new URLSearchParams({{a: 1}})}})
    .then((r) => note("post")(r.status), note("post failed")),
  fetch("{door}/", {{credentials: "include"}}).then((r) => r.text()).then(note("read"), note("read failed")),
  new Promise((done) => {{ const ws = new WebSocket("{door}/dagster/graphql".replace("http", "ws"), "graphql-ws");
    ws.onopen = () => {{ note("socket")("open"); done(); }};
    ws.onerror = () => {{ note("socket failed")(""); done(); }}; }}),
]).then(() => {{ document.title = "done"; }});
</script>"""


@contextmanager
def _evil(door: str) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = EVIL.format(door=door).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def test_a_page_of_another_origin_changes_and_reads_nothing(browser: Browser, served: Served) -> None:
    context = _signed_in(browser, served, "superuser")
    page = context.new_page()
    with _evil(served.origin) as evil:
        page.goto(evil)
        page.wait_for_function("document.title === 'done'")
        tried = dict(page.evaluate("window.tried"))
    assert "read" not in tried
    assert "socket" not in tried
    assert tried.get("post", "0") != "200"
    frames = [frame for frame in page.frames if frame != page.main_frame]
    assert frames
    assert not [frame for frame in frames if "Polydesk" in frame.content()]
    assert served.door.presses.running("clear_caches", None) is None
    with served.door.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM service_run WHERE service = 'clear_caches'")) == 1
    context.close()


def test_a_name_that_another_page_had_pointed_here_gets_nothing(browser: Browser, served: Served) -> None:
    """DNS rebinding: the browser takes this door for the other page's own server and sends what it likes."""
    elsewhere = f"http://{REBOUND}:{served.door.settings.web_port}"
    with served.door.engine.begin() as connection:
        token = session(connection, person(connection, "superuser"))
    context = opened(browser)
    context.add_cookies([{"name": served.door.cookie, "value": token, "url": elsewhere}])
    page = context.new_page()
    answer = page.goto(f"{elsewhere}/")
    assert answer is not None
    assert answer.status == 421
    posts = "(path) => fetch(path, {method: 'POST', body: 'form_token=x'}).then((answer) => answer.status)"
    assert page.evaluate(posts, "/servizi/clear_caches/esegui") == 421
    assert served.door.presses.running("clear_caches", None) is None
    context.close()
