"""Lists as they come over the wire: written once as an outside system answers them, served by a process of its own.

So ours, the plain reference and any peer begin with the same bytes, and what serving them costs is nobody's.
"""

from __future__ import annotations

import json
import multiprocessing
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

PAGE = 1000
ROOT = "/api/v1"
ETAG = '"as-written"'
CONTEXT = ssl.create_default_context()
"""Made once, as ours is: it takes longer than many a question."""
VERSION = "version"
"""A file that says which ETag every list has from now on."""


def write(folder: Path, kind: str, records: Iterable[dict[str, Any]], total: int) -> None:
    """The pages of the list ``kind``, a file each, instead of those that were there."""
    there = folder / kind
    there.mkdir(exist_ok=True)
    for old in there.iterdir():
        old.unlink()
    last = max(1, -(-total // PAGE))
    coming = iter(records)
    for number in range(1, last + 1):
        following = str(number + 1) if number < last else None
        page = {"items": list(islice(coming, PAGE)), "next_page": following, "total": total, "snapshot": "s"}
        (there / str(number)).write_text(json.dumps(page))


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a studiolab that has the lists written into ``folder``; each has one ETag for good, or until the
    folder's ``VERSION`` says another. What is written into a folder in it is served under its name, before ``ROOT``."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(folder, there), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}{ROOT}"
    finally:
        process.kill()
        process.join()


def client() -> httpx.Client:
    """One that has nothing of ours."""
    return httpx.Client(trust_env=False, verify=CONTEXT)


def pages(url: str, kind: str) -> Iterator[list[dict[str, Any]]]:
    """The items of each page, read as plainly as can be."""
    with client() as asking:
        following: str | None = "1"
        while following is not None:
            body = json.loads(asking.get(f"{url}/{kind}", params={"limit": PAGE, "page": following}).content)
            following = body["next_page"]
            yield body["items"]


def _serve(folder: Path, told: Connection) -> None:
    class Answering(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            number = parse_qs(asked.query).get("page", ["1"])[0]
            version = folder / VERSION
            etag = f'"{version.read_text()}"' if version.exists() else ETAG
            same = self.headers.get("If-None-Match") == etag
            body = b"" if same else (folder / asked.path.replace(ROOT, "", 1).strip("/") / number).read_bytes()
            self.send_response(304 if same else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("ETag", etag)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *_: object) -> None:  # noqa: A002 - the parent's name
            """Nothing is told of requests."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        told.send(server.server_address[1])
        server.serve_forever()
