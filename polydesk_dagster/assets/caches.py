"""Caches: the lists that a browser and the server load first, built together."""

from collections.abc import Iterator
from dataclasses import replace

import dagster as dg

from polydesk_dagster.clinic.caches import documents as caches
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import ClinicConfig, Shown, serve, shown
from polydesk_dagster.told import teller


@dg.multi_asset(
    name="run_refresh_caches",
    can_subset=True,  # all are built together, and those that were asked for are shown
    specs=[
        dg.AssetSpec(
            ["caches", kind],
            group_name="caches",
            kinds={"postgres", "json"},
            tags={"polydesk/records": "cache"},
            description=teller().text(f"asset.{kind}"),
            skippable=True,
            code_version="1",
        )
        for kind in caches.CACHES
    ],
)
def refresh_caches(
    context: dg.AssetExecutionContext, config: ClinicConfig, polydesk: PolydeskResource
) -> Iterator[Shown]:
    report = serve(
        context,
        polydesk,
        "refresh_caches",
        config,
        lambda run: caches.refresh(run.engine, run.as_of, run.clinic, preview=run.preview, progress=run.progress),
    )
    with polydesk.engine().connect() as connection:
        for kind in caches.CACHES:
            if dg.AssetKey(["caches", kind]) in context.selected_asset_keys:
                told = replace(report, tables=(*report.tables, caches.current(connection, kind)))
                yield shown(context, ["caches", kind], told)


ASSETS = (refresh_caches,)
