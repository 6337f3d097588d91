"""In which language, and as what, whoever asks is answered."""

from __future__ import annotations

from html import escape

from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from polydesk_dagster.told import LANGUAGES, Teller, accepted, teller

LANGUAGE_COOKIE = "polydesk-language"


def language_of(connection: HTTPConnection) -> str:
    """The language that a page is asked for in: the one chosen on it, else the first of ours that the browser takes."""
    chosen = connection.cookies.get(LANGUAGE_COOKIE, "")
    return chosen if chosen in LANGUAGES else accepted(connection.headers.get("accept-language", ""))


def teller_of(connection: HTTPConnection) -> Teller:
    """Who speaks the reader's language."""
    return teller(language_of(connection), page=True)


def reads_pages(connection: HTTPConnection) -> bool:
    """Whether whoever asks would show a page; a script asks for what it can read."""
    accepted_ = connection.headers.get("accept", "*/*")
    return "text/html" in accepted_ or "*/*" in accepted_.partition(",")[0]


def bare(connection: HTTPConnection, status: int, name: str, headers: dict[str, str]) -> Response:
    """The sentence ``name`` of the catalogues for who is answered before anything is known of her, or of anything: what
    happened and what to do. A page of its own for who reads pages, else the text."""
    t = teller_of(connection)
    title, said = t.text("door.refused"), t.text(name)
    if not reads_pages(connection):
        return PlainTextResponse(said, status, headers)
    page = f"""<!DOCTYPE html>
<html lang="{t.language}">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)} · Polydesk</title><link rel="stylesheet" href="/static/polydesk.css"></head>
<body><header><a class="brand" href="/">Polydesk</a></header>
<main id="main"><h1>{escape(title)}</h1><p>{escape(said)}</p><p><a href="/">{escape(t.text("door.back"))}</a></p></main>
</body></html>
"""
    return HTMLResponse(page, status, headers)
