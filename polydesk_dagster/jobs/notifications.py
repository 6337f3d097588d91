"""Services about messages that keep no asset."""

from polydesk_dagster.clinic.messages import activation
from polydesk_dagster.outcome import Report
from polydesk_dagster.providers import configured
from polydesk_dagster.running import ClinicConfig, Run, service_job


class ActivationConfig(ClinicConfig):
    """What the resend of activation e-mails can be asked."""

    everyone: bool = False
    """Also who was written to in the last 72 hours or three times already; never the disabled and the bounced."""


def _resend(run: Run, config: ActivationConfig) -> Report:
    return activation.resend(
        run.engine,
        run.as_of,
        configured(run.settings),
        clinic=run.clinic,
        preview=run.preview,
        everyone=config.everyone,
        door=f"{run.settings.address}/attiva",
        progress=run.progress,
    )


JOBS = (service_job("resend_activation_emails", _resend, ActivationConfig),)
