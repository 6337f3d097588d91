"""A look at many clinics: who hangs keeps nobody from being read, and the look ends when it is to end."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from polydesk_dagster import network
from polydesk_dagster.demo.simulators.fleet import Fleet, address, in_thread
from polydesk_dagster.sources.events import looking
from polydesk_dagster.sources.events.looking import Clinic, Seen
from polydesk_dagster.sources.events.rounds import Bounds
from polydesk_dagster.told import teller
from tests.sources.events_world import NOW
from tests.sources.test_events_sensor import PATIENT
from tests.waiting import PATIENCE, until

HURRIED = Bounds(quick=8, slow_after=0.05, open=100, longest=300)
"""Far fewer at once than hang; who answers has all the time that a busy machine needs."""


def clinic(number: int, url: str, vendor: str = "studiolab") -> Clinic:
    settings = {"url": url, "token": f"POLYDESK_{vendor.upper()}_TOKEN_TEST"}
    return Clinic(number, f"C{number:03}", vendor, settings, None, 0, 0, (), None, 0, None, None, False)


def look(known: list[Clinic], bounds: Bounds = HURRIED) -> list[Seen]:
    return looking.look(known, NOW, lambda _: "t", policy=PATIENT, bounds=bounds)


class ReleasedLast(Fleet):
    """The first so many who ask are let go when all the others have their answer."""

    def __init__(self, hanging: int, of: int) -> None:
        super().__init__(hangs=lambda question: question <= hanging)
        self._others = of - hanging

    @property
    def answered(self) -> int:
        return self._answered

    @answered.setter
    def answered(self, number: int) -> None:
        self._answered = number
        if number and number == self._others:
            self.release()


def test_64_of_200_hang_and_every_other_one_is_read_in_the_same_look() -> None:
    with in_thread(ReleasedLast(64, 200)) as port:
        seen = look([clinic(number, address(port, number)) for number in range(200)])
    assert [each.clinic.id for each in seen] == list(range(200))
    assert sum(each.why == looking.NOTHING and each.answered for each in seen) == 136
    assert {each.error.reason.code for each in seen if each.error} == {"remote_cut"}  # nobody «unreachable»


def test_names_that_nobody_resolves_keep_no_other_name(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = ReleasedLast(0, 5)
    over = threading.Event()
    monkeypatch.setattr(fleet, "release", over.set)
    resolve = network.resolve

    def hang(host: str, port: int) -> list[str]:
        if host != "localhost":
            over.wait(PATIENCE)
            raise OSError(-3, "Temporary failure in name resolution")
        return resolve(host, port)

    monkeypatch.setattr(network, "resolve", hang)
    with in_thread(fleet) as port:
        lost = [clinic(number, f"https://s{number}.example/api/v1") for number in range(60)]
        found = [clinic(number, f"http://localhost:{port}/api/v1") for number in range(60, 65)]
        seen = look(lost + found)
    assert [each.why.code for each in seen] == ["remote_unreachable"] * 60 + ["no_news"] * 5


@pytest.mark.parametrize("vendor", ["studiolab", "fhir"])
def test_a_look_ends_at_its_deadline_and_finds_nobody_unwell_for_it(vendor: str) -> None:
    before = threading.active_count()
    fleet = Fleet(hangs=lambda _: True)
    with in_thread(fleet) as port:
        known = [clinic(number, address(port, number), vendor) for number in range(20)]
        seen = look(known, Bounds(quick=4, slow_after=60, open=8, longest=0.5))
        assert {each.why for each in seen} == {looking.NOT_REACHED}
        assert not looking.changed(seen)
        assert len(fleet.asked) <= 4
        failed_before = [replace(each, clinic=replace(each.clinic, failures=3)) for each in seen]
        assert not looking.changed(failed_before)  # nor well again
    until(lambda: threading.active_count() <= before, "threads of the look are left")
    assert "tempo" in teller().reason(looking.NOT_REACHED)


def test_what_a_vendor_of_somebody_elses_raises_is_that_clinics_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from polydesk_dagster.sources.studiolab.vendor import StudiolabVendor

    glance = StudiolabVendor.glance

    async def broken(self: StudiolabVendor, pool: object, code: str, *given: object) -> object:
        if code == "C001":
            raise KeyError("fiscal code of somebody")
        return await glance(self, pool, code, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(StudiolabVendor, "glance", broken)
    with in_thread(Fleet()) as port:
        seen = look([clinic(number, address(port, number)) for number in range(3)])
    assert [each.why.code for each in seen] == ["no_news", "vendor_broken", "no_news"]
    assert "somebody" not in str(seen[1].error)
