"""What the desk does to the lists by hand: empty the caches, put the specialists' names in order."""

import dagster as dg

from polydesk_dagster.clinic import caches, names
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import ServiceConfig, metadata, serve


@dg.op(
    name="clear_caches", description="Ricostruisce gli elenchi temporanei in una generazione nuova e passa a quella."
)
def clear_caches_op(context: dg.OpExecutionContext, config: ServiceConfig, polydesk: PolydeskResource) -> None:
    report = serve(
        context,
        polydesk,
        "clear_caches",
        config,
        lambda run: caches.clear(run.engine, run.as_of, run.clinic, preview=run.preview, progress=run.progress),
    )
    context.add_output_metadata(metadata(report))


@dg.op(
    name="refresh_sort_names",
    description="Calcola i nomi sotto cui i medici stanno in elenco, senza toccare quelli a mano.",
)
def refresh_sort_names_op(context: dg.OpExecutionContext, config: ServiceConfig, polydesk: PolydeskResource) -> None:
    report = serve(
        context,
        polydesk,
        "refresh_sort_names",
        config,
        lambda run: names.refresh_sort_names(run.engine, run.as_of, run.clinic, preview=run.preview),
    )
    context.add_output_metadata(metadata(report))


@dg.job(
    name="clear_caches",
    description="Svuota tutta la cache: da zero dal database, senza lasciarla mai vuota.",
    tags={"polydesk/service": "clear_caches"},
)
def clear_caches_job() -> None:
    clear_caches_op()


@dg.job(
    name="refresh_sort_names",
    description="Sistema l'ordine alfabetico dei medici nelle liste.",
    tags={"polydesk/service": "refresh_sort_names"},
)
def refresh_sort_names_job() -> None:
    refresh_sort_names_op()


JOBS = (clear_caches_job, refresh_sort_names_job)
