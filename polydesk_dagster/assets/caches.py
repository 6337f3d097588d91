"""Caches: the lists that a browser and the server load first, built together."""

from collections.abc import Iterator
from dataclasses import replace

import dagster as dg

from polydesk_dagster.clinic.caches import documents as caches
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import ClinicConfig, serve
from polydesk_dagster.told.dagster import metadata

DESCRIPTIONS = {
    "specialists": "L'elenco dei medici di ogni clinica, in ordine alfabetico, come il sito lo carica per primo.",
    "locations": "L'elenco delle sedi di ogni clinica, come il sito lo carica per primo.",
}


@dg.multi_asset(
    name="run_refresh_caches",
    specs=[
        dg.AssetSpec(
            ["caches", kind],
            group_name="caches",
            kinds={"postgres", "json"},
            tags={"polydesk/records": "cache"},
            description=f"{description} Ciò che non cambia tiene la sua versione; le prenotazioni non leggono di qui.",
            code_version="1",
        )
        for kind, description in DESCRIPTIONS.items()
    ],
)
def refresh_caches(
    context: dg.AssetExecutionContext, config: ClinicConfig, polydesk: PolydeskResource
) -> Iterator[dg.MaterializeResult]:
    report = serve(
        context,
        polydesk,
        "refresh_caches",
        config,
        lambda run: caches.refresh(run.engine, run.as_of, run.clinic, preview=run.preview, progress=run.progress),
    )
    with polydesk.engine().connect() as connection:
        for kind in caches.CACHES:
            told = replace(report, tables=(*report.tables, caches.current(connection, kind)))
            yield dg.MaterializeResult(asset_key=["caches", kind], metadata=metadata(told))


ASSETS = (refresh_caches,)
