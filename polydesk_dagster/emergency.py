"""The code location «polydesk_emergency»: the dangerous services, so that a deployment can give them to few."""

from polydesk_dagster.build import definitions
from polydesk_dagster.catalog import Place

defs = definitions(Place.EMERGENCY)
