"""The one room that touches Dagster's inside: modules under ``dagster._…``, and the tables and texts that it stores.

Here belongs what no public API of Dagster serves, each use with a sentence that says why; every module is tested on
what real Dagster wrote, so that an upgrade breaks this room and says where. What a service, a page or a rule wants of
it does not belong here: they ask these modules, and import nothing of Dagster but ``dagster`` itself.

``names`` and ``rows`` import nothing of Dagster: the command and the probes of health must answer at once.
"""
