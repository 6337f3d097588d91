"""A small code location with one of each thing that Dagster's page can press; it stands for both of ours."""

import dagster as dg

LETTERS = dg.StaticPartitionsDefinition(["a", "b"])


@dg.op
def look() -> None:
    pass


@dg.job
def small() -> None:
    look()


@dg.job(partitions_def=LETTERS)
def lettered() -> None:
    look()


@dg.asset
def thing() -> None:
    pass


@dg.sensor(job=small)
def ear() -> dg.SkipReason:
    return dg.SkipReason("niente")


defs = dg.Definitions(
    assets=[thing],
    jobs=[small, lettered],
    schedules=[dg.ScheduleDefinition(name="clock", job=small, cron_schedule="0 3 * * *")],
    sensors=[ear],
)
