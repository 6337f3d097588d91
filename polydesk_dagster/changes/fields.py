"""Which columns of records mean something to people, and what they hold; what they are called is ``told``'s."""

from __future__ import annotations

from collections.abc import Mapping

AMOUNTS = frozenset({"amount", "patient_share", "previous_amount", "previous_share", "price"})
"""Sums of money, in the row's currency."""

MEANINGLESS = frozenset(
    {
        "agenda_id",
        "agreement_id",
        "booking",
        "clinic_id",
        "from_location",
        "line",
        "location_id",
        "name_of_row",
        "place_agenda",
        "resource_id",
        "service_group_id",
        "service_id",
        "slot_id",
        "specialist_id",
        "target",
        "thing",
        "to_location",
        "user_id",
    }
)
"""Numbers of ours, which mean nothing to people: the row's own name says whose it is."""

LISTS: Mapping[str, str] = {
    "state": "record_state",
    "status": "record_state",
    "layer": "message_layer",
    "kind": "message_kind",
    "variant": "message_variant",
    "channel": "channel",
    "language": "language",
    "effect": "closure_effect",
    "role": "role",
    "dataset": "data_set",
}
"""Columns that hold one of a closed list, each with its terms' domain; a value without a term stands for itself."""

RESOURCE_KINDS = ("room", "instrument", "technician")
KINDS: Mapping[str, str] = {
    **dict.fromkeys(RESOURCE_KINDS, "resource_kind"),
    **dict.fromkeys(("insurance", "fund", "company", "public"), "agreement_kind"),
}
"""The domain of what the column ``kind`` of a resource or of an agreement holds; any other is a message's."""

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
"""The terms of the column ``weekday``, whose numbers are ISO's."""
