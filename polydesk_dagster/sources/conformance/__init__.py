"""What every adapter must pass, for whoever writes one: a stage is all that the author brings.

A stage is the system itself, as real as it gets (a server on a socket, files in a folder), which can be told what to
hold and how to misbehave. In the author's tests, with a stage of its own for each check::

    @pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
    def test_it_conforms(check, stage):
        check(stage)

Needs ``hypothesis``; what a check finds wrong is an AssertionError. What an adapter says in its capabilities is
exercised, and a stage that cannot make it happen fails the check.
"""

from __future__ import annotations

from collections.abc import Callable

from polydesk_dagster.sources.conformance.drawn import lists
from polydesk_dagster.sources.conformance.of_lists import (
    a_failed_read_is_no_list,
    a_link_elsewhere_is_not_followed,
    a_list_comes_whole,
    a_list_that_changes_while_it_is_read_is_one_of_the_two,
    a_wrong_record_is_set_aside_and_the_rest_is_kept,
    an_unchanged_list_says_so,
    who_was_merged_is_told_and_listed_no_more,
    whom_it_says_to_be_gone_is_gone,
)
from polydesk_dagster.sources.conformance.of_news import (
    failed_news_are_no_news,
    news_come_once_and_in_order,
    the_same_token_gives_the_same_news,
    what_is_no_longer_kept_is_said,
)
from polydesk_dagster.sources.conformance.of_systems import (
    it_is_the_same_source_each_time,
    its_vendor_opens_it_and_checks_its_settings,
)
from polydesk_dagster.sources.conformance.stage import FAULTS, Records, Stage, read

__all__ = ["CHECKS", "FAULTS", "Records", "Stage", "lists", "read"]

CHECKS: tuple[Callable[[Stage], None], ...] = (
    a_list_comes_whole,
    a_wrong_record_is_set_aside_and_the_rest_is_kept,
    an_unchanged_list_says_so,
    a_failed_read_is_no_list,
    a_list_that_changes_while_it_is_read_is_one_of_the_two,
    a_link_elsewhere_is_not_followed,
    who_was_merged_is_told_and_listed_no_more,
    whom_it_says_to_be_gone_is_gone,
    news_come_once_and_in_order,
    the_same_token_gives_the_same_news,
    failed_news_are_no_news,
    what_is_no_longer_kept_is_said,
    it_is_the_same_source_each_time,
    its_vendor_opens_it_and_checks_its_settings,
)
