"""Appointments as calendars take them (RFC 5545, RFC 5546), beside the words of a letter."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from icalendar import Calendar, vCalAddress, vText
from icalendar import Event as Entry

from polydesk_dagster.clinic.messages.provider import Event


def method(events: Sequence[Event]) -> str:
    """What a calendar is to do with ``events``."""
    return "CANCEL" if any(event.cancelled for event in events) else "REQUEST"


def invitation(events: Sequence[Event], *, organizer: str, name: str, attendee: str, now: datetime) -> bytes:
    """``events`` as one calendar; ``organizer`` and ``attendee`` are bare addresses, ``name`` is the organizer's."""
    calendar = Calendar()
    calendar.add("prodid", "-//Polydesk//IT")
    calendar.add("version", "2.0")
    calendar.add("method", method(events))
    for event in events:
        calendar.add_component(_entry(event, organizer, name, attendee, now))
    return bytes(calendar.to_ical())


def _entry(event: Event, organizer: str, name: str, attendee: str, now: datetime) -> Entry:
    entry = Entry()
    entry.add("uid", f"{event.uid}@{organizer.rpartition('@')[2]}")
    entry.add("sequence", event.sequence)
    entry.add("dtstamp", now)
    entry.add("dtstart", event.start)
    entry.add("dtend", event.end)
    entry.add("summary", event.summary)
    if event.location:
        entry.add("location", event.location)
    entry.add("status", "CANCELLED" if event.cancelled else "CONFIRMED")
    host, guest = vCalAddress(f"mailto:{organizer}"), vCalAddress(f"mailto:{attendee}")
    host.params["CN"] = vText(name)
    guest.params["PARTSTAT"], guest.params["RSVP"] = vText("ACCEPTED"), vText("FALSE")
    entry.add("organizer", host)
    entry.add("attendee", guest)
    return entry
