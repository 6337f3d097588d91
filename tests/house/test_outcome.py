"""What the parts of a run come to together."""

from __future__ import annotations

import pytest

from polydesk_dagster.outcome import Outcome, Reason, Report, combine


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        ((Outcome.NOTHING_TO_DO, Outcome.REFUSED), Outcome.REFUSED),
        ((Outcome.SKIPPED, Outcome.REFUSED), Outcome.REFUSED),
        ((Outcome.OK, Outcome.REFUSED), Outcome.PARTIAL),
        ((Outcome.NOTHING_TO_DO, Outcome.FAILED), Outcome.PARTIAL),
        ((Outcome.REFUSED, Outcome.FAILED), Outcome.FAILED),
        ((Outcome.NOTHING_TO_DO, Outcome.OK), Outcome.OK),
    ],
)
def test_parts_come_to_one_outcome(parts: tuple[Outcome, ...], whole: Outcome) -> None:
    assert combine(Report(part) for part in parts).outcome is whole
    assert combine(Report(part) for part in reversed(parts)).outcome is whole


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        ((Outcome.NOTHING_TO_DO, Outcome.FAILED), Outcome.FAILED),
        ((Outcome.SKIPPED, Outcome.FAILED), Outcome.FAILED),
        ((Outcome.NOTHING_TO_DO, Outcome.REFUSED, Outcome.FAILED), Outcome.FAILED),
        ((Outcome.NOTHING_TO_DO, Outcome.REFUSED), Outcome.REFUSED),
        ((Outcome.OK, Outcome.FAILED), Outcome.PARTIAL),
        ((Outcome.NOTHING_TO_DO, Outcome.PARTIAL), Outcome.PARTIAL),
        ((Outcome.NOTHING_TO_DO, Outcome.SKIPPED), Outcome.NOTHING_TO_DO),
    ],
)
def test_a_run_whose_only_working_step_failed_has_failed(parts: tuple[Outcome, ...], whole: Outcome) -> None:
    assert combine((Report(part) for part in parts), steps=True).outcome is whole
    assert combine((Report(part) for part in reversed(parts)), steps=True).outcome is whole


def test_of_several_plans_the_last_that_does_something_is_the_whole_s_and_reasons_name_the_others() -> None:
    idle, first, last = (
        Report(outcome, plan_id=plan)
        for outcome, plan in ((Outcome.NOTHING_TO_DO, 1), (Outcome.OK, 2), (Outcome.REFUSED, 3))
    )
    both = combine([idle, first, last, idle])
    assert (both.plan_id, [reason.code for reason in both.reasons]) == (3, ["other_plans"])
    assert (combine([first, idle]).plan_id, combine([idle]).plan_id) == (2, 1)


def test_what_parts_say_alike_is_said_once_and_what_did_something_speaks_first() -> None:
    same, other = Reason("off", {}, "BO01"), Reason("guard", {}, "BO01")
    whole = combine([Report(Outcome.NOTHING_TO_DO, reasons=(same,)), Report(Outcome.REFUSED, reasons=(other, same))])
    assert whole.reasons == (other, same)


def test_a_reason_that_names_a_clinic_keeps_it() -> None:
    report = Report(Outcome.PARTIAL, reasons=(Reason("a"), Reason("b", {}, "MI01")))
    assert [reason.clinic for reason in report.of_clinic("BO01").reasons] == ["BO01", "MI01"]
    assert report.of_clinic(None) is report
