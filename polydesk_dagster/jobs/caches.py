"""What the desk does to the lists by hand: empty the caches, put the specialists' names in order."""

from polydesk_dagster.clinic.caches import documents as caches
from polydesk_dagster.clinic.upkeep import names
from polydesk_dagster.running import service_job

JOBS = (
    service_job(
        "clear_caches",
        lambda run, _: caches.clear(run.engine, run.as_of, run.clinic, preview=run.preview, progress=run.progress),
    ),
    service_job(
        "refresh_sort_names",
        lambda run, _: names.refresh_sort_names(run.engine, run.as_of, run.clinic, preview=run.preview),
    ),
)
