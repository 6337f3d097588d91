"""The carriers of messages: the SMS gateway and the mail relay.

Here belongs how a text or a letter goes over the wire and what the other side says of it. What is written to whom, and
what became of it, is ``clinic.messages``; how any system is asked over HTTP, ``remote``.
"""

from __future__ import annotations

from polydesk_dagster.clinic.messages.kinds import Channel
from polydesk_dagster.clinic.messages.links import Reach
from polydesk_dagster.clinic.messages.provider import Provider
from polydesk_dagster.settings import Settings


def configured(settings: Settings) -> dict[Channel, Provider]:
    """The carriers of this installation; what is not configured is left out."""
    from polydesk_dagster.providers.sms import SmsGateway
    from polydesk_dagster.providers.smtp import MailRelay

    carriers: dict[Channel, Provider] = {}
    if settings.sms_url and settings.sms_token and settings.sms_sender:
        carriers["sms"] = SmsGateway(settings.sms_url, settings.sms_token.get_secret_value(), settings.sms_sender)
    if settings.smtp_url and settings.mail_from:
        carriers["email"] = MailRelay(settings.smtp_url.get_secret_value(), settings.mail_from)
    return carriers


def reach(settings: Settings) -> Reach:
    """How who is written to reaches back: texts can be answered where the gateway tells us so, and the sender is a
    number."""
    number = (settings.sms_sender or "").lstrip("+").isdigit()
    return Reach(settings.public_url, number and settings.sms_webhook_secret is not None)
