"""Which system it is, and how it is opened by what an integration says of it."""

from __future__ import annotations

from contextlib import closing

from polydesk_dagster.errors import ConfigurationError
from polydesk_dagster.sources import vendors
from polydesk_dagster.sources.conformance.stage import Stage
from polydesk_dagster.sources.port import RECORDS, Link, Numbers


def it_is_the_same_source_each_time(stage: Stage) -> None:
    """Its epoch is stable, holds no secret and is no other system's, and it only has the lists that it says."""
    with closing(stage.open()) as first, closing(stage.open()) as second, closing(stage.other()) as other:
        assert first.epoch, "every system has an epoch"
        assert first.epoch == second.epoch, "the same system has the same epoch"
        assert first.epoch != other.epoch, "two systems have two epochs"
        assert not [name for name, value in stage.secrets.items() if value in first.epoch], "an epoch holds no secret"
        assert first.capabilities.lists == frozenset(stage.carries), "the lists that it says are those that there are"
        assert first.capabilities.lists <= frozenset(RECORDS), "lists that nobody asks for"
        assert isinstance(first.capabilities.news, Numbers), "news are told in one of three ways"


def its_vendor_opens_it_and_checks_its_settings(stage: Stage) -> None:
    """By its entry point; the epoch is known without asking, and what the settings must not be is refused unquoted."""
    link = stage.link
    with closing(vendors.open_source(link, stage.secrets.get)) as source, closing(stage.open()) as opened:
        assert vendors.epoch(link) == source.epoch == opened.epoch, "the vendor's epoch is the source's"
        assert vendors.vendor(link.vendor).news is source.capabilities.news, "the vendor's word on news is the source's"
        assert source.capabilities == opened.capabilities, "however it is opened, it can the same"
    strange = "not a setting that anybody knows"
    assert strange not in _refusal(Link(link.clinic, link.vendor, {**link.settings, "of_tomorrow": strange}))
    for field in [field for field, value in link.settings.items() if value in list(stage.secrets)]:
        _refusal(Link(link.clinic, link.vendor, {**link.settings, field: "PATH"}))


def _refusal(link: Link) -> str:
    """Why the vendor refuses the link's settings."""
    try:
        vendors.settings(link)
    except ConfigurationError as error:
        return str(error.reason.as_dict())
    raise AssertionError("settings that make no sense are taken")
