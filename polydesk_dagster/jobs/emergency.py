"""The dangerous buttons: each shows its plan first and does nothing without a reason and a phrase with the count."""

from typing import Any

from pydantic import model_validator

from polydesk_dagster.clinic.bookings import releasing
from polydesk_dagster.clinic.bookings.emergency import Press
from polydesk_dagster.clinic.messages import reset
from polydesk_dagster.clinic.upkeep import recovery
from polydesk_dagster.outcome import Report
from polydesk_dagster.running import ClinicConfig, Run, service_job


class EmergencyConfig(ClinicConfig):
    """What a dangerous service asks for; the defaults only show the plan."""

    reason: str = ""
    """Why, at least 10 characters: it stays in the audit trail. It does not make up for a missing phrase."""
    confirm: str = ""
    """The phrase that the preview gave, e.g. «LIBERA 37 bilora». It is good for that plan alone, for a few minutes."""
    plan: int | None = None
    """The plan that was looked at; the preview says its number."""

    @model_validator(mode="before")
    @classmethod
    def _looking_is_a_preview(cls, given: dict[str, Any]) -> dict[str, Any]:
        looks_only = Press(given.get("reason") or "", given.get("confirm") or "").looks_only
        return {**given, "preview": True} if looks_only else given


def press_of(run: Run, config: EmergencyConfig) -> Press:
    """What was typed, and by whom, for the gate."""
    return Press(config.reason, config.confirm, run.person, config.plan)


def _release_all_holds(run: Run, config: EmergencyConfig) -> Report:
    with run.engine.begin() as connection:
        return releasing.release_all(
            connection, run.as_of, press_of(run, config), clinic=run.clinic, preview=run.preview
        )


def _recover_deleted_services(run: Run, config: EmergencyConfig) -> Report:
    with run.engine.begin() as connection:
        return recovery.recover(connection, run.as_of, press_of(run, config), clinic=run.clinic, preview=run.preview)


def _reset_message_templates(run: Run, config: EmergencyConfig) -> Report:
    return reset.reset(run.engine, run.as_of, press_of(run, config), clinic=run.clinic, preview=run.preview)


JOBS = (
    service_job("release_all_holds", _release_all_holds, EmergencyConfig),
    service_job("reset_message_templates", _reset_message_templates, EmergencyConfig),
    service_job("recover_deleted_services", _recover_deleted_services, EmergencyConfig),
)
