"""What the owner is told of failed runs: grouped by service, seldom enough to be read, without patient data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby

from polydesk_dagster.told import Teller, teller
from polydesk_dagster.values import Instant, Reason, ServiceKey, Several

QUIET = timedelta(minutes=30)
"""After a mail nothing more for so long; while runs keep failing the pause doubles, up to :data:`LONGEST_QUIET`."""
LONGEST_QUIET = timedelta(hours=6)


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that failed and will not be tried again by itself."""

    run_id: str
    service: str
    """The service's key, or the job's name."""
    clinic: str | None
    at: datetime
    reason: Reason | None = None
    """As the service's outcome has it; None if the run ended before it had one."""


@dataclass(frozen=True, slots=True)
class State:
    """What was told; kept as the sensor's cursor. Instants are RFC 3339."""

    told_until: str
    """Failures up to here have been told."""
    mailed_at: str | None = None
    quiet_seconds: float = QUIET.total_seconds()

    @classmethod
    def load(cls, cursor: str | None, now: datetime) -> State:
        return cls(**json.loads(cursor)) if cursor else cls(now.isoformat())

    def dump(self) -> str:
        return json.dumps(asdict(self))

    def since(self) -> datetime:
        return datetime.fromisoformat(self.told_until)

    def quiet_until(self) -> datetime | None:
        if self.mailed_at is None:
            return None
        return datetime.fromisoformat(self.mailed_at) + timedelta(seconds=self.quiet_seconds)

    def after_mail(self, failures: Sequence[Failure], now: datetime) -> State:
        """The state once these failures were told: the pause doubles unless all was well for a long while."""
        calm = self.mailed_at is None or now - datetime.fromisoformat(self.mailed_at) > 2 * LONGEST_QUIET
        pause = QUIET.total_seconds() if calm else min(2 * self.quiet_seconds, LONGEST_QUIET.total_seconds())
        last = max(failure.at for failure in failures)
        return replace(self, told_until=last.isoformat(), mailed_at=now.isoformat(), quiet_seconds=pause)


def in_turn(failed: Sequence[Failure], stopped: Sequence[Failure], most: int) -> list[Failure]:
    """Two lists, each of the oldest ``most`` at least where there are more, as one that may be told now: what is left
    out of either is younger than all that is told, and so comes next time."""
    ends = [max(failure.at for failure in each) for each in (failed, stopped) if len(each) >= most]
    return [failure for failure in (*failed, *stopped) if not ends or failure.at <= min(ends)]


@dataclass(frozen=True, slots=True)
class Mail:
    """One message; ``key`` is the same for the same text, so that a repeated attempt is known as one."""

    key: str
    subject: str
    body: str


def compose(failures: Sequence[Failure], web: str, t: Teller | None = None) -> Mail:
    """The message about these failures, in Italian where nobody else is to speak; ``web`` is the address of Dagster's
    page."""
    t = t or teller()
    ordered = sorted(failures, key=lambda failure: (failure.service, failure.at))
    groups = {service: list(each) for service, each in groupby(ordered, key=lambda failure: failure.service)}
    parts = [_paragraph(t, service, each, web) for service, each in groups.items()]
    names = ", ".join(t.service(service) for service in groups)
    subject = t.text("alert.subject", count=len(failures), services=names)
    body = "\n\n".join([*parts, t.text("alert.advice")])
    return Mail(hashlib.sha256(body.encode()).hexdigest()[:32], subject[:200], body + "\n")


def _paragraph(t: Teller, service: str, failures: Sequence[Failure], web: str) -> str:
    first, last = Instant(failures[0].at), Instant(failures[-1].at)
    head = t.text("alert.failed", count=len(failures), service=ServiceKey(service), first=first, last=last)
    if clinics := sorted({failure.clinic for failure in failures if failure.clinic}):
        head += t.text("alert.clinics", count=len(clinics), clinics=Several(tuple(clinics)))
    reason = failures[-1].reason
    why = t.reason(reason) if reason else t.text("alert.no_reason")
    return f"{head}\n  {why}\n  {web}/dagster/runs/{failures[-1].run_id}"


def failure(
    run_id: str, job: str, tags: Mapping[str, str], at: float | datetime, reason: Reason | None
) -> Failure | None:
    """A failed run of Dagster's history as a failure to tell, or None if it is going to be tried again; a run for many
    clinics is one for each that it failed for."""
    if tags.get("dagster/will_retry") == "true":
        return None
    instant = at if isinstance(at, datetime) else datetime.fromtimestamp(at, UTC)
    instant = instant if instant.tzinfo else instant.replace(tzinfo=UTC)
    clinic = tags.get("dagster/partition") or (reason.clinic if reason else None)
    return Failure(run_id, tags.get("polydesk/service", job), clinic, instant, reason)
