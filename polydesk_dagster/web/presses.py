"""Services that people started from the page: each runs in a thread, tells how far it is, and is kept for a while."""

from __future__ import annotations

import logging
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from polydesk_dagster.errors import PolydeskError, where
from polydesk_dagster.outcome import Report, combine
from polydesk_dagster.runtime.orders import Message
from polydesk_dagster.runtime.pressing import Told

log = logging.getLogger("polydesk.door")

KEPT = 200
"""Presses that are remembered; how each ended stands in the history too."""


class Work(Protocol):
    """What a press does, given whom to tell on the way; returns the report of each clinic."""

    def __call__(self, *, told: Told) -> list[tuple[str | None, Report]]: ...


@dataclass(eq=False)
class Pressed:
    """One press of a button."""

    id: str
    service: str
    clinic: str | None
    preview: bool
    by: str
    """As people know who pressed."""
    at: datetime
    progress: Mapping[str, Any] | None = None
    """``done``, ``total`` and ``what``, of the step that is going on."""
    reports: list[tuple[str | None, Report]] | None = None
    """None while it runs."""
    course: object | None = None
    """What it is a step of, where it is one of several."""
    back: str | None = None
    """The page of the plan where it was pressed, if it was."""
    run_id: str | None = None
    """Dagster's run, the newest where there are several."""
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def ended(self) -> bool:
        return self.reports is not None

    @property
    def report(self) -> Report | None:
        """What all of it came to."""
        return None if self.reports is None else combine(report for _, report in self.reports)


class Presses:
    """The presses of one door."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Pressed] = OrderedDict()

    def find(self, press_id: str) -> Pressed | None:
        return self._known.get(press_id)

    def running(self, service: str, clinic: str | None) -> Pressed | None:
        """A press of this button that has not ended; one of the whole chain is one of every clinic."""
        with self._lock:
            return self._running(service, clinic)

    def _running(self, service: str, clinic: str | None) -> Pressed | None:
        for press in self._known.values():
            same = press.clinic is None or clinic is None or press.clinic == clinic
            if press.service == service and same and not press.ended:
                return press
        return None

    def start(
        self,
        service: str,
        clinic: str | None,
        work: Work,
        *,
        preview: bool,
        by: str,
        at: datetime,
        course: object | None = None,
        back: str | None = None,
    ) -> tuple[Pressed, bool]:
        """Start ``work`` unless the same button is at it already; returns that press, and whether it is a new one."""
        with self._lock:
            if (other := self._running(service, clinic)) is not None:
                return other, False
            press = Pressed(secrets.token_urlsafe(12), service, clinic, preview, by, at, course=course, back=back)
            self._known[press.id] = press
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        threading.Thread(target=_carry_out, args=(press, work), name=f"press-{service}", daemon=True).start()
        return press, True


def pressed(
    request: Request,
    service: str,
    clinic: str | None,
    work: Work,
    *,
    preview: bool,
    course: object | None = None,
    back: str | None = None,
) -> Response:
    """Start ``work`` as whoever asks, and go to the page that shows it. Where the same button is at it already, that
    press is shown, and said to be another's."""
    door, by = request.state.door, request.state.person.name
    more = {"course": course, "back": back}
    press, new = door.presses.start(service, clinic, work, preview=preview, by=by, at=door.now(), **more)
    return RedirectResponse(f"/premute/{press.id}" + ("" if new else "?gia=1"), 303)


def _carry_out(press: Pressed, work: Work) -> None:
    def told(message: Message) -> None:
        with press.changed:
            if message["kind"] == "run":
                press.run_id = message["run_id"]
            elif message["kind"] == "progress":
                press.progress = message
            press.changed.notify_all()

    try:
        reports = work(told=told)
    except PolydeskError as error:
        reports = [(press.clinic, Report.of_failure(error.reason))]
    except Exception as error:  # noqa: BLE001 - its message may quote a patient; whoever waits must be told that it ended
        log.error("%s\n%s", press.service, where(error))  # noqa: TRY400
        reports = [(press.clinic, Report.failed("unexpected", {"error": type(error).__name__}, press.clinic))]
    with press.changed:
        press.reports = reports
        press.changed.notify_all()
