"""A tiny code location whose schedules and sensors end their ticks in every way that there is."""

from collections.abc import Iterator

import dagster as dg


@dg.op
def work() -> None:
    pass


@dg.job
def tiny() -> None:
    work()


ON = {"job_name": "tiny", "cron_schedule": "* * * * *", "default_status": dg.DefaultScheduleStatus.RUNNING}


@dg.schedule(name="quiet", **ON)
def quiet(_context: dg.ScheduleEvaluationContext) -> dg.SkipReason:
    return dg.SkipReason("Niente è cambiato.")


@dg.schedule(name="busy", **ON)
def busy(_context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
    yield dg.RunRequest(run_key="uno")


@dg.schedule(name="broken", **ON)
def broken(_context: dg.ScheduleEvaluationContext) -> dg.SkipReason:
    raise RuntimeError("rotto")


@dg.schedule(name="stopped", job_name="tiny", cron_schedule="* * * * *")
def stopped(_context: dg.ScheduleEvaluationContext) -> dg.SkipReason:
    return dg.SkipReason("mai chiesto")


@dg.sensor(name="looker", job_name="tiny", default_status=dg.DefaultSensorStatus.RUNNING)
def looker(_context: dg.SensorEvaluationContext) -> dg.SkipReason:
    return dg.SkipReason("Nessuna novità.")


defs = dg.Definitions(jobs=[tiny], schedules=[quiet, busy, broken, stopped], sensors=[looker])
