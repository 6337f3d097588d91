"""Every service of *Impostazioni → Servizi*, once: schedules, jobs, the command, the docs and health derive from here.

Times are wall-clock ``Europe/Rome``. Whether a service is due is never read from a tick's time, only from the data, so
a missed tick costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    def sentence(self) -> str:
        return f"ogni notte alle {self.at:%H:%M}"

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
    def sentence(self) -> str:
        if self.minutes == 1:
            return "ogni minuto"
        return "ogni ora" if self.minutes == 60 else f"ogni {self.minutes} minuti"

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

    @property
    def sentence(self) -> str:
        return "su richiesta"


Cadence = Daily | Every | OnDemand


class Place(StrEnum):
    """The code location that a service lives in, so that a deployment can give the two to different people."""

    ORDINARY = "polydesk"
    EMERGENCY = "polydesk_emergency"


@dataclass(frozen=True, slots=True)
class Service:
    """One row of the page."""

    key: str
    name: str
    cadence: Cadence
    summary: str
    """One Italian sentence: what it does, for the desk."""
    group: str
    assets: tuple[str, ...] = ()
    """Keys of the assets that it materialises, ``group/name``; empty for a job."""
    place: Place = Place.ORDINARY
    together: bool = False
    """Whether one step makes all of its assets at once."""
    per_clinic: bool = False
    """A run per clinic with an active studiolab, each its own partition."""
    changes_records: bool = True
    """Whether it moves records the clinic owns, so that ``--preview`` must be possible."""
    only_looks: bool = False
    """Whether it is nothing but the preview of another service, so that its previews are its runs."""
    destroys: bool = False
    """Whether what it does does not come back by itself: it never works at an instant that is still to come."""
    options: tuple[str, ...] = ()
    """Further fields of its config that the command may set."""
    sensor: str | None = None
    """The sensor that starts it where there is news, in place of a schedule of the service's own name."""
    available: bool = False
    """Whether this version can run it."""

    @property
    def steps(self) -> tuple[str, ...]:
        """The names of its job's steps, which take its config; a step may not be called like its job."""
        if self.assets and not self.together:
            return tuple(key.replace("/", "__") for key in self.assets)
        return (f"run_{self.key}",)

    @property
    def dangerous(self) -> bool:
        return self.place is Place.EMERGENCY


ON_DEMAND = OnDemand()

SERVICES: tuple[Service, ...] = (
    Service(
        "generate_slots",
        "Generazione automatica schedule agende",
        Daily(time(3, 0)),
        "Crea gli orari prenotabili delle agende con la generazione automatica.",
        "calendar",
        assets=("calendar/agenda_slots",),
        options=("past_guard",),
        available=True,
    ),
    Service(
        "import_closures",
        "Importa chiusure di default",
        Daily(time(3, 15)),
        "Prende le festività dal server centrale e chiude, nella stessa esecuzione, gli orari dei giorni toccati.",
        "calendar",
        assets=("calendar/closures",),
        available=True,
    ),
    Service(
        "resend_activation_emails",
        "Reinvia email di attivazione",
        ON_DEMAND,
        "Riscrive a chi non ha ancora attivato il proprio account.",
        "notifications",
        options=("everyone",),
        available=True,
    ),
    Service(
        "send_preparation_notices",
        "Invio notifiche preparazione appuntamenti",
        Every(25),
        "Manda le istruzioni da seguire prima della visita.",
        "notifications",
        assets=("notifications/preparation_notices",),
        changes_records=False,
        options=("past_guard",),
        available=True,
    ),
    Service(
        "send_reminders",
        "Invio notifiche promemoria",
        Every(20),
        "Ricorda ai pazienti l'appuntamento di domani.",
        "notifications",
        assets=("notifications/appointment_reminders",),
        changes_records=False,
        options=("past_guard",),
        available=True,
    ),
    Service(
        "refresh_statistics",
        "Aggiornamento statistiche",
        Every(15),
        "Ricalcola i numeri dei grafici per i giorni che sono cambiati.",
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
        available=True,
    ),
    Service(
        "refresh_caches",
        "Aggiornamento cache",
        Every(10),
        "Prepara gli elenchi di medici e sedi che il sito carica per primi.",
        "caches",
        assets=("caches/specialists", "caches/locations"),
        together=True,
        changes_records=False,
        available=True,
    ),
    Service(
        "clear_caches",
        "Svuota tutta la cache",
        ON_DEMAND,
        "Ricostruisce da zero gli elenchi temporanei, senza lasciarli mai vuoti.",
        "caches",
        changes_records=False,
        available=True,
    ),
    Service(
        "refresh_sort_names",
        "Aggiorna nomi ordinamento specialisti",
        ON_DEMAND,
        "Sistema l'ordine alfabetico dei medici nelle liste.",
        "caches",
        available=True,
    ),
    Service(
        "nightly_cleanup",
        "Pulizia notturna dati",
        Daily(time(2, 30)),
        "Elimina registri vecchi e file temporanei secondo le regole di conservazione.",
        "maintenance",
        destroys=True,
        options=("past_guard", "reason", "operator", "only"),
        available=True,
    ),
    Service(
        "delete_unverified_appointments",
        "Elimina appuntamenti non verificati",
        Every(60),
        "Libera le prenotazioni online che il paziente non ha confermato.",
        "maintenance",
        destroys=True,
        options=("past_guard", "reason", "operator"),
        available=True,
    ),
    Service(
        "release_expired_holds",
        "Elimina slot temporaneamente bloccati",
        Every(5),
        "Libera gli orari rimasti bloccati da una prenotazione online non conclusa.",
        "maintenance",
        destroys=True,
        options=("unpaid", "operator"),
        available=True,
    ),
    Service(
        "index_knowledge",
        "Indicizza knowledge base (icona blu)",
        Every(30),
        "Legge i documenti nuovi o cambiati per l'assistente.",
        "knowledge",
        assets=("knowledge/index",),
        changes_records=False,
        options=("past_guard",),
        available=True,
    ),
    Service(
        "reindex_knowledge",
        "Indicizza knowledge base (icona gialla)",
        ON_DEMAND,
        "Rilegge da zero tutti i documenti per l'assistente.",
        "knowledge",
        assets=("knowledge/index",),
        changes_records=False,
        options=("past_guard", "rollback"),
        available=True,
    ),
    Service(
        "sync_events",
        "Sincronizzazione eventi",
        Every(1),
        "Riceve da studiolab referti, accettazioni e spostamenti.",
        "studiolab",
        assets=("studiolab/events",),
        per_clinic=True,
        changes_records=False,
        options=("reconcile",),
        sensor="studiolab_events",
        available=True,
    ),
    Service(
        "import_municipalities",
        "Importa comuni",
        Daily(time(2, 30)),
        "Allinea l'elenco dei comuni italiani a studiolab.",
        "studiolab",
        assets=(
            "studiolab/municipalities_preview",
            "studiolab/municipalities",
        ),
        options=("plan", "past_guard", "reason", "operator"),
        available=True,
    ),
    Service(
        "sync_prices",
        "Sync prezzi e convenzioni",
        Daily(time(3, 30)),
        "Allinea listino e convenzioni a studiolab.",
        "studiolab",
        assets=(
            "studiolab/agreements_preview",
            "studiolab/agreements",
            "studiolab/prices_preview",
            "studiolab/prices",
        ),
        per_clinic=True,
        options=("plan", "past_guard", "reason", "operator"),
        available=True,
    ),
    Service(
        "import_patients",
        "Import pazienti",
        Daily(time(4, 0)),
        "Aggiunge le anagrafiche che mancano; non ne cambia nessuna.",
        "studiolab",
        assets=(
            "studiolab/patients_preview",
            "studiolab/patients",
        ),
        per_clinic=True,
        options=("plan", "past_guard", "reason", "operator"),
        available=True,
    ),
    Service(
        "sync_collaborators",
        "Sync collaboratori",
        ON_DEMAND,
        "Allinea medici e tecnici a studiolab.",
        "studiolab",
        assets=(
            "studiolab/collaborators_preview",
            "studiolab/collaborators",
        ),
        per_clinic=True,
        options=("plan", "past_guard", "reason", "operator"),
        available=True,
    ),
    Service(
        "sync_services",
        "Sync servizi",
        ON_DEMAND,
        "Allinea le prestazioni a studiolab.",
        "studiolab",
        assets=(
            "studiolab/services_preview",
            "studiolab/services",
        ),
        per_clinic=True,
        options=("plan", "past_guard", "reason", "operator"),
        available=True,
    ),
    Service(
        "preview_prices",
        "Anteprima prezzi e convenzioni (occhio)",
        ON_DEMAND,
        "Mostra che cosa cambierebbe nel listino, senza cambiare nulla.",
        "studiolab",
        assets=(
            "studiolab/agreements_preview",
            "studiolab/prices_preview",
        ),
        per_clinic=True,
        changes_records=False,
        only_looks=True,
        available=True,
    ),
    Service(
        "preview_collaborators",
        "Anteprima collaboratori (occhio)",
        ON_DEMAND,
        "Mostra che cosa cambierebbe tra medici e tecnici, senza cambiare nulla.",
        "studiolab",
        assets=("studiolab/collaborators_preview",),
        per_clinic=True,
        changes_records=False,
        only_looks=True,
        available=True,
    ),
    Service(
        "preview_services",
        "Anteprima servizi (occhio)",
        ON_DEMAND,
        "Mostra che cosa cambierebbe tra le prestazioni, senza cambiare nulla.",
        "studiolab",
        assets=("studiolab/services_preview",),
        per_clinic=True,
        changes_records=False,
        only_looks=True,
        available=True,
    ),
    Service(
        "release_all_holds",
        "Elimina TUTTI gli slot bloccati",
        ON_DEMAND,
        "Libera ogni orario in fase di prenotazione, senza mai creare un overbooking.",
        "emergency",
        place=Place.EMERGENCY,
        destroys=True,
        options=("reason", "confirm", "plan", "operator"),
        available=True,
    ),
    Service(
        "reset_message_templates",
        "Reset template notifiche",
        ON_DEMAND,
        "Riporta i testi di SMS ed email a quelli di fabbrica, conservando una copia.",
        "emergency",
        place=Place.EMERGENCY,
        destroys=True,
        options=("reason", "confirm", "plan", "operator"),
        available=True,
    ),
    Service(
        "recover_deleted_services",
        "Recupera servizi eliminati (superuser)",
        ON_DEMAND,
        "Ripristina le prestazioni eliminate per errore.",
        "emergency",
        place=Place.EMERGENCY,
        destroys=True,
        options=("reason", "confirm", "plan", "operator"),
        available=True,
    ),
)

BY_KEY = {service.key: service for service in SERVICES}


def name_of(key: str) -> str:
    """The Italian name of a service; the key itself of what is none, or is none any more."""
    return BY_KEY[key].name if key in BY_KEY else key


def next_run(service: Service, instant: datetime) -> datetime | None:
    """When the service really runs next, in UTC; None if only on demand."""
    return None if isinstance(service.cadence, OnDemand) else service.cadence.next_after(instant)


def available(place: Place | None = None) -> Iterator[Service]:
    """The services that this version can run, of one place or of both."""
    return (s for s in SERVICES if s.available and place in (None, s.place))
