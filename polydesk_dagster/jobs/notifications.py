"""Services about messages that keep no asset."""

from polydesk_dagster.clinic.emergency import Press
from polydesk_dagster.clinic.messages import activation, reset
from polydesk_dagster.outcome import Report
from polydesk_dagster.providers import configured
from polydesk_dagster.running import Run, ServiceConfig, service_job


class ActivationConfig(ServiceConfig):
    """What the resend of activation e-mails can be asked."""

    everyone: bool = False
    """Also who was written to in the last 72 hours or three times already; never the disabled and the bounced."""


class ResetConfig(ServiceConfig):
    """What the reset of templates can be asked; without a reason and the phrase it only shows its plan."""

    reason: str = ""
    """Why, at least ten characters; it stays in the audit trail."""
    confirm: str = ""
    """The phrase that the preview says."""


def _resend(run: Run, config: ActivationConfig) -> Report:
    return activation.resend(
        run.engine,
        run.as_of,
        configured(run.settings),
        clinic=run.clinic,
        preview=run.preview,
        everyone=config.everyone,
        progress=run.progress,
    )


def _reset(run: Run, config: ResetConfig) -> Report:
    given = Press(config.reason, config.confirm)
    return reset.reset(run.engine, run.as_of, given, clinic=run.clinic, preview=run.preview)


JOBS = (
    service_job("resend_activation_emails", _resend, ActivationConfig),
    service_job("reset_message_templates", _reset, ResetConfig),
)
