"""Studiolab as a vendor: an address, the name of its token's variable, nothing else."""

from __future__ import annotations

import httpx

from polydesk_dagster import remote
from polydesk_dagster.remote import Policy
from polydesk_dagster.sources.access import Address, Settings, TokenName
from polydesk_dagster.sources.port import News, Numbers, Secret
from polydesk_dagster.sources.studiolab.client import GONE, Studiolab, epoch, news, system


class StudiolabSettings(Settings):
    """What an integration says of its studiolab."""

    url: Address
    token: TokenName


class StudiolabVendor:
    """Opens a clinic's studiolab, and looks at many at once."""

    settings = StudiolabSettings
    news = Numbers.DENSE

    def epoch(self, settings: StudiolabSettings) -> str:
        return epoch(settings.url)

    def open(self, clinic: str, settings: StudiolabSettings, secret: Secret, policy: Policy | None = None) -> Studiolab:
        return Studiolab(clinic, settings.url, secret(settings.token), policy)

    async def glance(
        self,
        pool: httpx.AsyncClient,
        clinic: str,
        settings: StudiolabSettings,
        secret: Secret,
        after: int,
        limit: int,
        policy: Policy,
    ) -> News:
        answer = await remote.look(
            pool,
            system(clinic),
            settings.url,
            "/events",
            token=secret(settings.token),
            query={"after": after, "limit": limit},
            policy=policy,
            expected=GONE,
        )
        return news(system(clinic), answer, after)


VENDOR = StudiolabVendor()
