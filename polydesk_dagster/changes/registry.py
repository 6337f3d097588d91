"""Which record kinds exist, by name; loaded when a plan of theirs is applied or shown."""

from __future__ import annotations

from importlib import import_module

from polydesk_dagster.changes.kind import Kind

WHERE = {
    "message_template": "polydesk_dagster.clinic.messages.reset:MESSAGE_TEMPLATE",
    "reminder_plan": "polydesk_dagster.clinic.messages.plans:REMINDER_PLAN",
    "expired_hold": "polydesk_dagster.clinic.bookings.sweeping:EXPIRED_HOLD",
    "revoked_hold": "polydesk_dagster.clinic.bookings.releasing:REVOKED_HOLD",
    "offered_place": "polydesk_dagster.clinic.bookings.offers:OFFERED_PLACE",
    "unverified_booking": "polydesk_dagster.clinic.bookings.unverified:UNVERIFIED_BOOKING",
    "cleanup": "polydesk_dagster.clinic.upkeep.retention:CLEANUP",
    "deleted_service": "polydesk_dagster.clinic.upkeep.recovery:DELETED_SERVICE",
    "slot": "polydesk_dagster.clinic.calendar.slot_plan:SLOT",
    "turns": "polydesk_dagster.clinic.calendar.rule_edits:TURNS",
    "desk_closure": "polydesk_dagster.clinic.calendar.desk_closures:DESK_CLOSURE",
    "closing": "polydesk_dagster.clinic.calendar.desk_closures:CLOSING",
    "closure": "polydesk_dagster.clinic.calendar.closures:CLOSURE",
    "municipality": "polydesk_dagster.sources.kinds.municipalities:MUNICIPALITY",
    "service": "polydesk_dagster.sources.kinds.services:SERVICE",
    "collaborator": "polydesk_dagster.sources.kinds.collaborators:COLLABORATOR",
    "agreement": "polydesk_dagster.sources.kinds.agreements:AGREEMENT",
    "price": "polydesk_dagster.sources.kinds.prices:PRICE",
    "patient": "polydesk_dagster.clinic.patients.identity:PATIENT",
    "erasure": "polydesk_dagster.clinic.patients.erasing:ERASURE",
    "sort_name": "polydesk_dagster.clinic.upkeep.names:SORT_NAME",
    "practice_clinic": "polydesk_dagster.sources.practice.kinds:KINDS",
    "practice_location": "polydesk_dagster.sources.practice.kinds:KINDS",
    "practice_travel": "polydesk_dagster.sources.practice.kinds:KINDS",
    "practice_doctor": "polydesk_dagster.sources.practice.kinds:KINDS",
    "practice_service": "polydesk_dagster.sources.practice.kinds:KINDS",
    "practice_group": "polydesk_dagster.sources.practice.kinds:KINDS",
    "practice_group_service": "polydesk_dagster.sources.practice.kinds:KINDS",
    "practice_resource": "polydesk_dagster.sources.practice.kinds:KINDS",
    "practice_resource_service": "polydesk_dagster.sources.practice.kinds:KINDS",
    "practice_agenda": "polydesk_dagster.sources.practice.kinds:KINDS",
    "practice_agenda_service": "polydesk_dagster.sources.practice.kinds:KINDS",
    "practice_turn": "polydesk_dagster.sources.practice.kinds:KINDS",
    "practice_closure": "polydesk_dagster.sources.practice.kinds:KINDS",
    "practice_user": "polydesk_dagster.sources.practice.kinds:KINDS",
    "practice_user_clinic": "polydesk_dagster.sources.practice.kinds:KINDS",
    "practice_text": "polydesk_dagster.sources.practice.kinds:KINDS",
}
"""By name the module and the attribute that holds the kind, or a table of kinds by name."""


def kind(name: str) -> Kind:
    """The kind called ``name``; KeyError if there is none."""
    module, _, attribute = WHERE[name].partition(":")
    found = getattr(import_module(module), attribute)
    if isinstance(found, dict):
        found = found[name]
    assert isinstance(found, Kind)
    return found
