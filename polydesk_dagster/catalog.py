"""Every service of *Impostazioni → Servizi*, once: schedules, jobs, the command, the docs and health derive from here.

Times are wall-clock ``Europe/Rome``. Whether a service is due is never read from a tick's time, only from the data, so
a missed tick costs nothing. What a service is called, and the sentence that explains it, stand in the catalogues of
``told`` under its key.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

ROME = ZoneInfo("Europe/Rome")


@dataclass(frozen=True, slots=True)
class Daily:
    """Once a local date, at ``at``; on the night when that time does not exist, at the first time after it, and on
    the night when it exists twice, at the second."""

    at: time

    @property
    def cron(self) -> str:
        return f"{self.at.minute} {self.at.hour} * * *"

    @property
    def interval(self) -> timedelta:
        return timedelta(days=1)

    def next_after(self, instant: datetime) -> datetime:
        """The next time that it really runs, in UTC."""
        day = instant.astimezone(ROME).date() - timedelta(days=1)
        while True:
            moment = self._on(day)
            if moment > instant:
                return moment
            day += timedelta(days=1)

    def _on(self, day: date) -> datetime:
        later = datetime.combine(day, self.at, ROME).replace(fold=1).astimezone(UTC)
        if later.astimezone(ROME).replace(tzinfo=None) == datetime.combine(day, self.at):
            return later
        while later.astimezone(ROME).utcoffset() == (later + timedelta(minutes=1)).astimezone(ROME).utcoffset():
            later += timedelta(minutes=1)
        return later + timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Every:
    """A true interval in minutes, counted from the epoch: it does not start over on the hour, as cron's ``*/25`` does
    (25, 25, then 10 minutes)."""

    minutes: int

    @property
    def cron(self) -> str:
        """The ticks to look at; those that :meth:`runs_at` refuses are passed over."""
        if self.minutes < 60 and 60 % self.minutes == 0:
            return "* * * * *" if self.minutes == 1 else f"*/{self.minutes} * * * *"
        if self.minutes == 60:
            return "0 * * * *"
        step = next(step for step in (30, 20, 15, 12, 10, 6, 5, 4, 3, 2, 1) if self.minutes % step == 0)
        return f"*/{step} * * * *"

    @property
    def interval(self) -> timedelta:
        return timedelta(minutes=self.minutes)

    def runs_at(self, instant: datetime) -> bool:
        return int(instant.timestamp()) // 60 % self.minutes == 0

    def next_after(self, instant: datetime) -> datetime:
        step = self.minutes * 60
        return datetime.fromtimestamp((int(instant.timestamp()) // step + 1) * step, UTC)


@dataclass(frozen=True, slots=True)
class OnDemand:
    """Only when somebody presses the button."""


Cadence = Daily | Every | OnDemand


class Place(StrEnum):
    """The code location that a service lives in, so that a deployment can give the two to different people."""

    ORDINARY = "polydesk"
    EMERGENCY = "polydesk_emergency"


@dataclass(frozen=True, slots=True)
class Service:
    """One row of the page."""

    key: str
    cadence: Cadence
    group: str
    assets: tuple[str, ...] = ()
    """Keys of the assets that it materialises, ``group/name``; empty for a job."""
    place: Place = Place.ORDINARY
    together: bool = False
    """Whether one step makes all of its assets at once."""
    per_clinic: bool = False
    """A run per clinic with an active studiolab, each its own partition."""
    whole_chain: bool = False
    """One run for the chain, which cannot be done for a clinic alone."""
    changes_records: bool = True
    """Whether it moves records the clinic owns, so that ``--preview`` must be possible."""
    only_looks: bool = False
    """Whether it is nothing but the preview of another service, so that its previews are its runs."""
    destroys: bool = False
    """Whether what it does does not come back by itself."""
    options: tuple[str, ...] = ()
    """Further fields of its config that the command may set."""
    sensor: str | None = None
    """The sensor that starts it where there is news, in place of a schedule of the service's own name."""

    @property
    def steps(self) -> tuple[str, ...]:
        """The names of its job's steps, which take its config; a step may not be called like its job."""
        if self.assets and not self.together:
            return tuple(key.replace("/", "__") for key in self.assets)
        return (f"run_{self.key}",)

    @property
    def lists(self) -> frozenset[str]:
        """The assets that a run of it reads, each once: a preview and what it previews are one."""
        return frozenset(key.removesuffix("_preview") for key in self.assets)

    @property
    def reaches_out(self) -> bool:
        """Whether it writes to people, or takes over what a system outside says."""
        return self.group in {"notifications", "studiolab"} and not self.only_looks

    @property
    def dangerous(self) -> bool:
        return self.place is Place.EMERGENCY


ON_DEMAND = OnDemand()
HEARTBEAT = timedelta(hours=24)
"""A service with nothing to do still runs once in this time, so that its freshness means something."""

SERVICES: tuple[Service, ...] = (
    Service(
        "generate_slots",
        Daily(time(3, 0)),
        "calendar",
        assets=("calendar/agenda_slots",),
    ),
    Service(
        "import_closures",
        Daily(time(3, 15)),
        "calendar",
        assets=("calendar/closures",),
        whole_chain=True,
    ),
    Service(
        "resend_activation_emails",
        ON_DEMAND,
        "notifications",
        options=("everyone",),
    ),
    Service(
        "send_preparation_notices",
        Every(25),
        "notifications",
        assets=("notifications/preparation_notices",),
        changes_records=False,
    ),
    Service(
        "send_reminders",
        Every(20),
        "notifications",
        assets=("notifications/appointment_reminders",),
        changes_records=False,
    ),
    Service(
        "refresh_statistics",
        Every(15),
        "statistics",
        assets=(
            "statistics/appointments",
            "statistics/occupancy",
            "statistics/attendance",
            "statistics/lead_time",
            "statistics/revenue",
            "statistics/online_funnel",
            "statistics/messages",
            "statistics/report_turnaround",
        ),
        together=True,
        changes_records=False,
        options=("full",),
    ),
    Service(
        "refresh_caches",
        Every(10),
        "caches",
        assets=("caches/specialists", "caches/locations"),
        together=True,
        changes_records=False,
    ),
    Service(
        "clear_caches",
        ON_DEMAND,
        "caches",
        changes_records=False,
    ),
    Service(
        "refresh_sort_names",
        ON_DEMAND,
        "caches",
    ),
    Service(
        "nightly_cleanup",
        Daily(time(2, 30)),
        "maintenance",
        destroys=True,
        options=("past_guard", "reason", "only"),
    ),
    Service(
        "delete_unverified_appointments",
        Every(60),
        "maintenance",
        destroys=True,
        options=("past_guard", "reason"),
    ),
    Service(
        "release_expired_holds",
        Every(5),
        "maintenance",
        destroys=True,
        options=("unpaid",),
    ),
    Service(
        "index_knowledge",
        Every(30),
        "knowledge",
        assets=("knowledge/index",),
        changes_records=False,
        options=("past_guard",),
        whole_chain=True,
    ),
    Service(
        "reindex_knowledge",
        ON_DEMAND,
        "knowledge",
        assets=("knowledge/index",),
        changes_records=False,
        options=("past_guard", "rollback"),
        whole_chain=True,
    ),
    Service(
        "sync_events",
        Every(1),
        "studiolab",
        assets=("studiolab/events",),
        per_clinic=True,
        changes_records=False,
        options=("reconcile",),
        sensor="studiolab_events",
    ),
    Service(
        "import_municipalities",
        Daily(time(2, 30)),
        "studiolab",
        assets=(
            "studiolab/municipalities_preview",
            "studiolab/municipalities",
        ),
        whole_chain=True,
        options=("plan", "past_guard", "reason"),
    ),
    Service(
        "sync_prices",
        Daily(time(3, 30)),
        "studiolab",
        assets=(
            "studiolab/agreements_preview",
            "studiolab/agreements",
            "studiolab/prices_preview",
            "studiolab/prices",
        ),
        per_clinic=True,
        options=("plan", "past_guard", "reason"),
    ),
    Service(
        "import_patients",
        Daily(time(4, 0)),
        "studiolab",
        assets=(
            "studiolab/patients_preview",
            "studiolab/patients",
        ),
        per_clinic=True,
        options=("plan", "past_guard", "reason"),
    ),
    Service(
        "sync_collaborators",
        ON_DEMAND,
        "studiolab",
        assets=(
            "studiolab/collaborators_preview",
            "studiolab/collaborators",
        ),
        per_clinic=True,
        options=("plan", "past_guard", "reason"),
    ),
    Service(
        "sync_services",
        ON_DEMAND,
        "studiolab",
        assets=(
            "studiolab/services_preview",
            "studiolab/services",
        ),
        per_clinic=True,
        options=("plan", "past_guard", "reason"),
    ),
    Service(
        "preview_prices",
        ON_DEMAND,
        "studiolab",
        assets=(
            "studiolab/agreements_preview",
            "studiolab/prices_preview",
        ),
        per_clinic=True,
        changes_records=False,
        only_looks=True,
    ),
    Service(
        "preview_collaborators",
        ON_DEMAND,
        "studiolab",
        assets=("studiolab/collaborators_preview",),
        per_clinic=True,
        changes_records=False,
        only_looks=True,
    ),
    Service(
        "preview_services",
        ON_DEMAND,
        "studiolab",
        assets=("studiolab/services_preview",),
        per_clinic=True,
        changes_records=False,
        only_looks=True,
    ),
    Service(
        "release_all_holds",
        ON_DEMAND,
        "emergency",
        place=Place.EMERGENCY,
        destroys=True,
        options=("reason", "confirm", "plan"),
    ),
    Service(
        "reset_message_templates",
        ON_DEMAND,
        "emergency",
        place=Place.EMERGENCY,
        destroys=True,
        options=("reason", "confirm", "plan"),
    ),
    Service(
        "recover_deleted_services",
        ON_DEMAND,
        "emergency",
        place=Place.EMERGENCY,
        destroys=True,
        options=("reason", "confirm", "plan"),
    ),
)

BY_KEY = {service.key: service for service in SERVICES}


def next_run(service: Service, instant: datetime) -> datetime | None:
    """When the service really runs next, in UTC; None if only on demand."""
    return None if isinstance(service.cadence, OnDemand) else service.cadence.next_after(instant)


def of_place(place: Place) -> tuple[Service, ...]:
    """The services of one code location."""
    return tuple(service for service in SERVICES if service.place is place)
