"""The folder of workbooks: each file that is new or has changed is looked at once."""

import hashlib
import json
import stat
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg

from polydesk_dagster.jobs.practice import LOOK
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.told import teller

SETTLED = timedelta(seconds=10)
"""How long nobody has touched a file before it is taken for whole."""

ENDINGS = frozenset({".xlsx", ".xlsm", ".xls", ".ods", ".csv"})
"""Of what people take for a workbook; those that are none are looked at too, to be told so."""

Stamps = dict[str, list[int]]


def dropped(folder: Path, now: datetime) -> Stamps:
    """The workbooks of ``folder`` that are whole, by name: when they were last touched, and their size. When they were
    written says their author's clock, which may be wrong, or be kept by whoever copies."""
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(("~$", ".")) or path.suffix.lower() not in ENDINGS:
            continue
        try:
            about = path.stat()
        except OSError:  # gone again, or a link to nowhere
            continue
        if stat.S_ISREG(about.st_mode) and about.st_ctime <= (now - SETTLED).timestamp():
            found[path.name] = [about.st_ctime_ns, about.st_size]
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
