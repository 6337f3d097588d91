"""Pictures of every page in three languages and two widths: ``make pictures``, into ``pictures/``.

polydesk up                                # elsewhere, on the demonstration chain
python -m tests.web.pictures LINK          # the link that logs the owner in, as it printed it
"""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.parse import urlsplit

from polydesk_dagster.told import LANGUAGES
from polydesk_dagster.web.words import PLACES
from tests.web.browser import chromium

WIDTHS = (1280, 390)
MORE = ("/servizi/sync_prices", "/servizi/send_reminders", "/rossa/release_all_holds", "/accessibilita")


def main(link: str, folder: Path) -> None:
    parts = urlsplit(link)
    origin = f"{parts.scheme}://{parts.netloc}"
    folder.mkdir(exist_ok=True)
    with chromium() as browser:
        first = browser.new_context()
        first.new_page().goto(link)
        cookies = first.cookies()
        for language in LANGUAGES:
            for width in WIDTHS:
                context = browser.new_context(locale=language, viewport={"width": width, "height": 900})
                context.add_cookies(cookies)  # type: ignore[arg-type]
                page = context.new_page()
                for path in (*(address for address, _, _ in PLACES), *MORE):
                    page.goto(origin + path, wait_until="load")
                    name = path.strip("/").replace("/", "-") or "servizi"
                    page.screenshot(path=folder / f"{name}.{language}.{width}.png", full_page=True)
                context.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "pictures"))
