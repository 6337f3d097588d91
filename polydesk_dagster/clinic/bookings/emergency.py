"""The gate before a dangerous button: a plan that was looked at, a reason, a phrase that nobody can count out, a pause.

A service behind the gate is pressed twice. First for a preview: it stores a plan and says the phrase to type, which
holds a word drawn for that plan. Then with the plan's number, the reason and the phrase: exactly that plan is applied,
if it still stands, and the audit trail keeps who, when, why and what. Three wrong phrases void the plan.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import Kind, Plan, Scope, plans
from polydesk_dagster.changes.audit import LEAST_REASON, is_reason
from polydesk_dagster.database.locks import in_turn
from polydesk_dagster.outcome import WHAT_TO_DO, Outcome, Reason, Report
from polydesk_dagster.values import Duration, Instant

VERBS: Mapping[str, str] = {
    "release_all_holds": "LIBERA",
    "reset_message_templates": "RIPRISTINA",
    "recover_deleted_services": "RECUPERA",
}
"""The services behind the gate, and the verb of each one's phrase."""

PAUSE = timedelta(minutes=10)
"""Between two uses of the same button on the same clinic, by the server's clock: long enough to see what the first
one did."""


@dataclass(frozen=True, slots=True)
class Press:
    """What was typed. Without a reason and a phrase nothing is done: the plan is only shown."""

    reason: str = ""
    confirm: str = ""
    actor: str = "desk"
    plan_id: int | None = None
    """The plan that was looked at."""

    @property
    def looks_only(self) -> bool:
        return not self.reason.strip() and not self.confirm.strip()


MOST_WRONG = 3
"""Wrong phrases after which a plan is void."""


def phrase(plan: Plan, word: str) -> str:
    """What must be typed to apply ``plan``, e.g. ``LIBERA 37 bilora``."""
    return f"{VERBS[plan.service]} {plan.writes} {word}"


def _draw() -> str:
    """A word that means nothing and can be read out: one of 175,616."""
    return "".join(secrets.choice(syllables) for syllables in (_SYLLABLES,) * 3)


_SYLLABLES = tuple(consonant + vowel for consonant in "bdfglmnprstvzc" for vowel in "aeio")


def press(
    connection: sa.Connection,
    given: Press,
    *,
    scope: Scope,
    kind: Kind,
    propose: Callable[[], Plan],
    as_of: datetime,
    preview: bool = False,
) -> Report:
    """Show what the button would do, or do it, in the caller's transaction.

    Refused, with nothing written but the count of wrong phrases, when the reason is too short, no plan is named or
    stands, the phrase is not the plan's, or the button was pressed a moment ago; and for the reasons of
    :func:`changes.apply`. An empty plan asks for nothing.
    """
    if preview or given.looks_only:
        return _show(connection, propose(), kind)
    if given.plan_id is None:
        return without_reason(None, given.reason) or Report.refused("plan_not_named")
    return settle(connection, _standing(connection, scope, given.plan_id), given, as_of=as_of)


def settle(
    connection: sa.Connection,
    plan: Plan | None,
    given: Press,
    *,
    as_of: datetime,
    past_guards: Collection[str] = (),
) -> Report:
    """Apply ``plan`` if what was typed allows it, in the caller's transaction, so that nobody comes in between; for
    whoever applies a plan by its id too."""
    refusal = check(connection, plan, given)
    if refusal is not None or plan is None:
        return refusal or _NO_PLAN
    return changes.apply(
        connection, plan.id, as_of=as_of, actor=given.actor, reason=given.reason.strip(), past_guards=past_guards
    )


def _show(connection: sa.Connection, plan: Plan, kind: Kind) -> Report:
    report = changes.preview(connection, plan, kind)
    if not plan.writes:
        return report
    word = connection.execute(_GIVE_WORD, {"plan": plan.id, "word": _draw()}).scalar_one()
    within = Duration(kind.expires.total_seconds())
    todo = Reason("confirm_with", {"within": within, "phrase": phrase(plan, word), "plan": plan.id})
    return replace(report, figures={**report.figures, WHAT_TO_DO: todo})


_GIVE_WORD = sa.text("""
    INSERT INTO press_word AS held (plan_id, word) VALUES (:plan, :word)
    ON CONFLICT (plan_id) DO UPDATE SET word = held.word RETURNING word""")

_HELD_WORD = sa.text("SELECT word, wrong FROM press_word WHERE plan_id = :plan FOR UPDATE")

_STANDING = sa.text("""
    SELECT id FROM plan
    WHERE service = :service AND clinic_id IS NOT DISTINCT FROM CAST(:clinic AS bigint) AND state = 'ready'
      AND undoes IS NULL AND expires_at >= now() AND id = :plan""")


def _standing(connection: sa.Connection, scope: Scope, plan_id: int) -> Plan | None:
    """The plan that is named, if it is the button's, for the same clinic or the whole chain, and nobody applied it."""
    given = {"service": scope.service, "clinic": scope.clinic_id, "plan": plan_id}
    found = connection.scalar(_STANDING, given)
    return None if found is None else plans.load(connection, found)


_NO_PLAN = Report.refused("no_plan")


# The whole chain is every clinic.
_LAST = sa.text("""
    SELECT at, extract(epoch FROM at + CAST(:pause AS interval) - statement_timestamp()) AS left
    FROM audit
    WHERE service = :service AND action = 'apply' AND at > now() - CAST(:pause AS interval)
      AND (clinic IS NULL OR CAST(:clinic AS text) IS NULL OR clinic = :clinic)
    ORDER BY id DESC LIMIT 1""")


def without_reason(clinic: str | None, reason: str) -> Report | None:
    """The refusal of what needs a reason, an undo as well, where ``reason`` is too short to be one."""
    if is_reason(reason):
        return None
    return Report.refused("reason_missing", {"least": LEAST_REASON}, clinic)


def check(connection: sa.Connection, plan: Plan | None, given: Press) -> Report | None:
    """Why ``plan`` must not be applied on what was typed, or None if it may, until the end of the transaction."""
    clinic = plan.clinic if plan is not None else None
    if plan is not None and not plan.writes:
        reasons = (Reason("empty_plan", {"plan": plan.id}, clinic),)
        return Report(Outcome.NOTHING_TO_DO, reasons=reasons, plan_id=plan.id)
    if (refusal := without_reason(clinic, given.reason)) is not None:
        return refusal
    if plan is None:
        return _NO_PLAN
    if (refusal := _wrong(connection, plan, given.confirm)) is not None:
        return refusal
    in_turn(connection, "press", plan.service)  # who presses the same button meanwhile then finds this press
    last = connection.execute(_LAST, {"service": plan.service, "clinic": clinic, "pause": PAUSE}).one_or_none()
    if last is None:
        return None
    wait = Duration(60 * math.ceil(last.left / 60))
    return Report.refused("too_soon", {"at": Instant(last.at), "wait": wait}, clinic)


def _wrong(connection: sa.Connection, plan: Plan, typed: str) -> Report | None:
    """Why what was typed is not the plan's phrase, or None if it is; whoever tries beside us waits for our count."""
    held = connection.execute(_HELD_WORD, {"plan": plan.id}).one_or_none()
    if held is None:  # nobody was shown it
        return _NO_PLAN
    if held.wrong >= MOST_WRONG:
        return Report.refused("plan_void", {"plan": plan.id}, plan.clinic)
    if " ".join(typed.split()) == phrase(plan, held.word):
        return None
    connection.execute(sa.text("UPDATE press_word SET wrong = wrong + 1 WHERE plan_id = :plan"), {"plan": plan.id})
    left = MOST_WRONG - held.wrong - 1
    if not left:
        return Report.refused("plan_void", {"plan": plan.id}, plan.clinic)
    return Report.refused("wrong_phrase", {"plan": plan.id, "left": left}, plan.clinic)
