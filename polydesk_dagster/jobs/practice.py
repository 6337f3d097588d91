"""Looking at a workbook and importing it, each by itself: a file that is dropped makes a plan, never a change."""

import dagster as dg

from polydesk_dagster.told import teller

LOOK, IMPORT = "look_at_workbook", "import_workbook"


def _job(name: str, asset: str) -> object:
    return dg.define_asset_job(
        name,
        selection=dg.AssetSelection.assets(asset),
        description=f"{teller().service(name)}. {teller().summary_of(name)}",
        tags={"polydesk/service": name, "dagster/max_runtime": "3600"},
    )


TOOLS = (_job(LOOK, "practice/workbook_preview"), _job(IMPORT, "practice/workbook"))
