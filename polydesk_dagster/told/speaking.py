"""Reasons, counts, outcomes and typed values as sentences in one language."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Literal
from zoneinfo import ZoneInfo

from polydesk_dagster.catalog import Cadence, Daily, Every, OnDemand
from polydesk_dagster.inert import plain
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.told.catalogue import LANGUAGES, catalogue
from polydesk_dagster.values import (
    SAID,
    Count,
    Duration,
    Instant,
    Money,
    Named,
    Reason,
    ServiceKey,
    Several,
    Share,
    Term,
    Value,
)

if TYPE_CHECKING:
    from polydesk_dagster.outcome import Counts

NOTHING = "—"
"""What stands where there is no value."""


@cache
def teller(language: str = LANGUAGES[0], *, page: bool = False) -> Teller:
    """Who speaks ``language``; one that is not ours is answered in Italian. On the ``page`` what to do next is a button
    or a place of the page, where there is one, and no command."""
    return Teller(language if language in LANGUAGES else LANGUAGES[0], page=page)


class Teller:
    """Speaks one language. What is missing in the catalogues is told by its name and values, never an error: the run
    that it speaks of is over."""

    def __init__(self, language: str, *, page: bool = False) -> None:
        self.language = language
        self._page = page
        self._messages = catalogue(language)

    def text(self, name: str, /, **values: Value) -> str:
        """The sentence ``name``; of its plural forms the one for the value ``count``."""
        return self._filled(name, values)

    def knows(self, name: str) -> bool:
        return self._form(name, 1) is not None

    def reason(self, reason: Reason) -> str:
        """A reason as a sentence, its clinic not named unless the sentence does."""
        if SAID in reason.values:
            return self.value(reason.values[SAID])
        values = {"clinic": reason.clinic, "count": reason.count, **reason.values}
        return self._filled(self._name(reason), values)

    def times(self, reason: Reason) -> str:
        """How often a reason held, to stand behind its sentence: «(12)»; nothing for once, or where the sentence says
        it itself."""
        said = SAID not in reason.values and "{count" in (self._form(self._name(reason), reason.count) or "")
        return "" if said or reason.count == 1 else f"({reason.count})"

    def _name(self, reason: Reason) -> str:
        name = f"reason.{reason.code}"
        return f"page.{name}" if self._page and self.knows(f"page.{name}") else name

    def value(self, value: Value) -> str:
        """``value`` as people write it: money, instants in their zone, shares, names, lists."""
        from babel import dates, lists, numbers

        match value:
            case None:
                return NOTHING
            case bool():
                return self.term("bool", "true" if value else "false")
            case int():
                return str(value)
            case float() | Decimal():
                return numbers.format_decimal(value, locale=self.language)
            case Instant():
                pattern = f"{DAYS[self.language]} HH:mm"
                return dates.format_datetime(value.at, pattern, tzinfo=ZoneInfo(value.zone), locale=self.language)
            case datetime():
                return self.value(Instant(value))
            case date():
                return dates.format_date(value, DAYS[self.language], locale=self.language)
            case time():
                return dates.format_time(value, "HH:mm", locale=self.language)
            case Money():
                return numbers.format_currency(value.amount, value.currency, locale=self.language)
            case Share():
                return numbers.format_percent(value.fraction, "#,##0.# %", locale=self.language)
            case Count():
                return self._filled(f"count.{value.noun}", {"count": value.n})
            case Term():
                return self.term(value.domain, value.code)
            case Named():
                return f"{self.value(value.name)} ({self.value(value.code)})" if value.name else self.value(value.code)
            case ServiceKey():
                return self.service(value.key)
            case Duration():
                return self.duration(value.seconds)
            case Several():
                return lists.format_list([self.value(each) for each in value.items], locale=self.language)
            case Reason():
                return self.reason(value)
            case _:
                return plain(value)

    def term(self, domain: str, code: str) -> str:
        """One of a closed list, in words; a code that has none stands for itself."""
        found = self._form(f"term.{domain}.{code}", 1)
        return plain(code) if found is None else found

    def named_term(self, term: str) -> str:
        """A term by its whole name, ``DOMAIN.CODE``."""
        domain, _, code = term.partition(".")
        return self.term(domain, code)

    def service(self, key: str) -> str:
        """The name of a row of the page; what is no service of ours stands for itself."""
        found = self._form(f"service.{key}.name", 1)
        return plain(key) if found is None else found

    def summary_of(self, key: str) -> str:
        """One sentence: what a row of the page does, for the desk."""
        return self.text(f"service.{key}.summary")

    def cadence(self, cadence: Cadence) -> str:
        """When a service runs: «ogni notte alle 03:00»."""
        match cadence:
            case Daily(at):
                return self.text("cadence.daily", at=at)
            case Every(60):
                return self.text("cadence.hourly")
            case Every(minutes):
                return self.text("cadence.every", count=minutes)
            case OnDemand():
                return self.text("cadence.on_demand")

    def label(self, kind: str, key: str) -> str:
        """What a ``figure``, ``column`` or ``table`` is called; a key without a name stands for itself."""
        found = self._form(f"{kind}.{key}", 1)
        return key if found is None else found

    def duration(self, seconds: float) -> str:
        """«1 ora e 9 minuti»: the two largest units, whole."""
        from babel import dates, lists

        rest = round(seconds)
        parts = []
        for unit, size in UNITS:
            many, rest = divmod(rest, size)
            if many:
                span = timedelta(seconds=many * size)
                parts.append(dates.format_timedelta(span, unit, threshold=10**9, locale=self.language))
            elif parts:
                break
        none = dates.format_timedelta(timedelta(0), "second", threshold=10**9, locale=self.language)
        return lists.format_list(parts[:2] or [none], locale=self.language)

    def ago(self, then: datetime, now: datetime) -> str:
        """«1 ora e 9 minuti fa»."""
        return self.text("ago", duration=Duration((now - then).total_seconds()))

    def outcome(self, outcome: Outcome | str, *, preview: bool = False) -> str:
        """How a run ended, in words; of a preview that it was one."""
        if preview and outcome in PREVIEWED:
            return self.text(PREVIEWED[Outcome(outcome)])
        return self.term("outcome", outcome)

    def counts(self, counts: Counts | Mapping[str, int], *, preview: bool = False, kind: str | None = None) -> str:
        """The counts that are not zero: «1 aggiunta, 3 modifiche»; where a ``kind`` of record has words of its own, in
        those."""
        numbers = counts if isinstance(counts, Mapping) else counts.as_dict()
        noun = "preview_counts" if preview else "counts"
        said = []
        for key, n in numbers.items():
            own = f"{noun}.{key}.{kind}"
            if n:
                said.append(self.value(Count(own if self.knows(f"count.{own}") else f"{noun}.{key}", n)))
        return ", ".join(said)

    def summary(self, report: Report) -> str:
        """One line: the outcome, the counts, the first reason. A preview never reads like the deed."""
        counts = self.counts(report.counts, preview=report.preview)
        first = f" — {self.reason(report.reasons[0])}" if report.reasons else ""
        return f"{self.outcome(report.outcome, preview=report.preview)}{f' ({counts})' if counts else ''}{first}"

    def _filled(self, name: str, values: Mapping[str, Value]) -> str:
        number = values.get("count")
        form = self._form(name, number if isinstance(number, int) else 1)
        if form is not None:
            try:
                return form.format_map({key: self.value(value) for key, value in values.items()})
            except (KeyError, IndexError, ValueError):
                pass
        given = ", ".join(f"{key}={self.value(value)}" for key, value in values.items() if value is not None)
        known = plain(name.removeprefix("reason.") if given else name)
        return f"{known} ({given})" if given else known

    def _form(self, name: str, number: int) -> str | None:
        found = self._messages.ngettext(name, name, number)
        if found == name:  # not a message with plural forms
            found = self._messages.gettext(name)
        return None if found == name else found


PREVIEWED: Mapping[Outcome | str, str] = {
    Outcome.OK: "outcome.preview",
    Outcome.PARTIAL: "outcome.preview",
    Outcome.NOTHING_TO_DO: "outcome.preview_nothing",
}
"""What a preview says in place of how the deed would be called."""

UNITS: tuple[tuple[Literal["day", "hour", "minute", "second"], int], ...] = (
    ("day", 86400),
    ("hour", 3600),
    ("minute", 60),
    ("second", 1),
)

DAYS: Mapping[str, str] = {"it": "dd/MM/yyyy", "en": "d MMM yyyy", "de": "dd.MM.yyyy"}
"""How a day is written."""
