"""Services about messages that keep no asset."""

import dagster as dg

from polydesk_dagster.clinic.messages import activation
from polydesk_dagster.providers import configured
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import ServiceConfig, metadata, serve


class ActivationConfig(ServiceConfig):
    """What the resend of activation e-mails can be asked."""

    everyone: bool = False
    """Also who was written to in the last 72 hours or three times already; never the disabled and the bounced."""


@dg.op(name="resend_activation_emails")
def resend(context: dg.OpExecutionContext, config: ActivationConfig, polydesk: PolydeskResource) -> None:
    """Riscrive a chi non ha ancora attivato il proprio account."""
    report = serve(
        context,
        polydesk,
        "resend_activation_emails",
        config,
        lambda run: activation.resend(
            run.engine,
            run.as_of,
            configured(run.settings),
            clinic=run.clinic,
            preview=run.preview,
            everyone=config.everyone,
            progress=run.progress,
        ),
    )
    context.add_output_metadata(metadata(report))


@dg.job(name="resend_activation_emails", description="Riscrive a chi non ha ancora attivato il proprio account.")
def resend_activation_emails() -> None:
    resend()


JOBS = (resend_activation_emails,)
