"""What is opened for who first asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from polydesk_dagster.web.opened import Opened


def test_it_is_opened_once_for_who_asks_again_where_that_failed_and_closed_in_the_end() -> None:
    came: list[str] = []

    @contextmanager
    def page() -> Iterator[ASGIApp]:
        came.append("opens")
        if len(came) == 1:
            raise OSError("the code servers are not there yet")
        yield PlainTextResponse("here")
        came.append("closes")

    with Opened(page) as opened:
        client = TestClient(Starlette(routes=[Mount("/dagster", opened)]))
        assert client.get("/elsewhere").status_code == 404
        assert came == []
        with pytest.raises(OSError, match="not there yet"):
            client.get("/dagster/")
        assert [client.get("/dagster/").text for _ in range(2)] == ["here", "here"]
        assert came == ["opens", "opens"]
    assert came == ["opens", "opens", "closes"]
