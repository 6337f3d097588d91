"""The folder of workbooks: each file that is new or has changed is looked at once."""

import hashlib
import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg

from polydesk_dagster.jobs.practice import LOOK
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.told import teller

SETTLED = timedelta(seconds=10)
"""How long nobody has written to a file before it is taken for whole."""

Stamps = dict[str, list[int]]


def dropped(folder: Path, now: datetime) -> Stamps:
    """The workbooks of ``folder`` that are whole, by name: when they were written, and their size."""
    found = {}
    for path in sorted(folder.glob("*.xlsx")) if folder.is_dir() else ():
        state = path.stat()
        if not path.name.startswith(("~$", ".")) and state.st_mtime <= (now - SETTLED).timestamp():
            found[path.name] = [state.st_mtime_ns, state.st_size]
    return found


@dg.sensor(
    name="practice_folder",
    job_name=LOOK,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=f"{teller().service(LOOK)}. {teller().text('sensor.practice_folder')}",
)
def practice_folder(
    context: dg.SensorEvaluationContext, polydesk: PolydeskResource
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    found = dropped(polydesk.settings().practice_folder, polydesk.now())
    seen: Stamps = json.loads(context.cursor or "{}")
    new = [name for name, stamp in found.items() if seen.get(name) != stamp]
    if not new:
        yield dg.SkipReason(teller().text("reason.no_new_workbook"))
        return
    for name in new:
        key = hashlib.sha256(json.dumps([name, *found[name]]).encode()).hexdigest()
        config = {"ops": {"practice__workbook_preview": {"config": {"file": name}}}}
        yield dg.RunRequest(run_key=f"workbook:{key}", run_config=config)
    context.update_cursor(json.dumps(found))


SENSORS = (practice_folder,)
