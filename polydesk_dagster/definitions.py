"""The code location «polydesk»: the ordinary services."""

from polydesk_dagster.build import definitions
from polydesk_dagster.catalog import Place

defs = definitions(Place.ORDINARY)
