"""Names that several processes must agree on."""

from __future__ import annotations

PERSON_TAG = "polydesk/person"
"""The tag of a run that says who pressed the button, as the audit trail names people. On Dagster's page the run
coordinator writes it, over whatever the browser sent."""
