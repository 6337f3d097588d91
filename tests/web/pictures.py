"""Pictures of every page in three languages and two widths: ``make pictures``, into ``pictures/``.

polydesk up                                # elsewhere, on the demonstration chain
python -m tests.web.pictures LINK          # the link that logs the owner in, as it printed it
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Page

from polydesk_dagster.told import LANGUAGES
from polydesk_dagster.web.words import PLACES
from tests.web.browser import chromium, opened

WIDTHS = (1280, 390)
TALLEST = 2600
"""Pixels of a picture: of a long list its beginning is enough."""
MORE = (
    "/servizi/sync_prices",
    "/servizi/send_reminders",
    "/rossa/release_all_holds",
    "/messaggi/testi",
    "/messaggi/testi/reminder/plain/sms/it?clinica=BO01",
    "/accessibilita",
    "/entra",
)
FIRST = {"/piani": r"/piani/\d+", "/conoscenza": r"/conoscenza/\d+"}
"""Lists, each with the address of what stands in it: the first one is shown too."""
PRESSED = (
    ("/servizi/sync_prices", "form[action$='/esegui'] button[formaction$='/anteprima']", "anteprima"),
    ("/", "form[action='/servizi/allinea'] button", "allinea"),
    ("/rossa/release_all_holds", "form[action$='/guarda'] button", "rossa"),
)
"""Pages, the button that is pressed on each (it only looks), and what its own page is called."""


def main(link: str, folder: Path) -> None:
    parts = urlsplit(link)
    origin = f"{parts.scheme}://{parts.netloc}"
    folder.mkdir(exist_ok=True)
    with chromium() as browser:
        first = opened(browser, locale="it")
        page = first.new_page()
        page.goto(link)
        cookies = first.cookies()
        addresses = {_name(path): path for path in _addresses(page, origin)}
        addresses |= {name: _pressed(page, origin + path, button) for path, button, name in PRESSED}
        for language in LANGUAGES:
            for width in WIDTHS:
                context = opened(browser, locale=language, viewport={"width": width, "height": 900})
                context.add_cookies(cookies)  # type: ignore[arg-type]
                page = context.new_page()
                for name, path in addresses.items():
                    page.goto(origin + path, wait_until="load")
                    high = min(TALLEST, int(page.evaluate("document.documentElement.scrollHeight")))
                    page.set_viewport_size({"width": width, "height": high})
                    page.screenshot(path=folder / f"{name}.{language}.{width}.png")
                    page.set_viewport_size({"width": width, "height": 900})
                context.close()


def _addresses(page: Page, origin: str) -> Iterator[str]:
    for path in (*(address for address, _, _ in PLACES if address != "/dagster/"), *MORE):
        yield path
        if path in FIRST:
            page.goto(origin + path)
            found = re.search(f'href="({FIRST[path]})"', page.content())
            if found is not None:
                yield found[1]


def _pressed(page: Page, address: str, button: str) -> str:
    """The address of the press that this button begins, once it has ended."""
    page.goto(address)
    page.locator(button).first.click()
    page.wait_for_url("**/premute/**")
    page.wait_for_selector("#press .outcome:not(.running), #press .stage.seen, #press .stage.stopped")
    return urlsplit(page.url).path


def _name(path: str) -> str:
    return re.sub(r"\W+", "-", path.strip("/")) or "servizi"


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "pictures"))
