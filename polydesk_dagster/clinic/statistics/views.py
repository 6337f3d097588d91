"""Each statistic as it is shown: its plot, its figures and its tables for a period."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from polydesk_dagster.clinic.statistics import pictures, reading
from polydesk_dagster.clinic.statistics.reading import MESSAGE_STATES, STATUSES, Overview, Period
from polydesk_dagster.outcome import Table

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, slots=True)
class View:
    """One statistic. ``figures`` picks from the overview, by Italian label."""

    key: str
    label: str
    description: str
    topics: tuple[str, ...]
    picture: Callable[[sa.Connection, Period], bytes]
    figures: Callable[[Overview], Mapping[str, str | int | float]]
    tables: tuple[Callable[[sa.Connection, Period], Table], ...] = ()


def _appointments(connection: sa.Connection, period: Period) -> bytes:
    columns = {label: f"appointments * CAST(status = '{key}' AS integer)" for key, label in STATUSES.items()}
    days = reading.daily(connection, period, columns, "statistic_appointment")
    return pictures.stacked("Appuntamenti per giorno ed esito", days, "appuntamenti")


def _occupancy(connection: sa.Connection, period: Period) -> bytes:
    columns = {"booked": "booked_minutes", "offered": "offered_minutes"}
    days = reading.daily(connection, period, columns, "statistic_occupancy")
    shares = _shares(days, {"occupazione": ("booked", "offered")}, 100)
    return pictures.lines("Minuti prenotati su minuti offerti", shares, "%")


def _attendance(connection: sa.Connection, period: Period) -> bytes:
    columns = {"no_shows": "no_shows", "due": "due", "cancellations": "cancellations", "made": "made"}
    days = reading.daily(connection, period, columns, "statistic_attendance")
    pairs = {"assenti su attesi": ("no_shows", "due"), "disdetti su presi": ("cancellations", "made")}
    return pictures.lines("Assenze e disdette", _shares(days, pairs, 100), "%")


def _lead_time(connection: sa.Connection, period: Period) -> bytes:
    columns = {"known": "appointments", "minutes": "lead_minutes"}
    days = reading.daily(connection, period, columns, "statistic_lead_time")
    means = _shares(days, {"attesa media": ("minutes", "known")}, 1 / 1440)
    return pictures.lines("Giorni dalla prenotazione alla visita", means, "giorni")


def _revenue(connection: sa.Connection, period: Period) -> bytes:
    columns = {"accettato": "accepted", "ancora da accettare": "booked - accepted"}
    days = reading.daily(connection, period, columns, "statistic_revenue")
    return pictures.stacked("Valore prenotato", days, "€")


def _funnel(connection: sa.Connection, period: Period) -> bytes:
    columns = {"bloccati": "held", "prenotati": "booked", "verificati": "verified", "confermati": "confirmed"}
    days = reading.daily(connection, period, columns, "statistic_funnel")
    return pictures.lines("Prenotazione online, per giorno di inizio", days, "richieste")


def _messages(connection: sa.Connection, period: Period) -> bytes:
    columns = {label: f"messages * CAST(state = '{key}' AS integer)" for key, label in MESSAGE_STATES.items()}
    days = reading.daily(connection, period, columns, "statistic_message")
    return pictures.stacked("Messaggi per giorno di programmazione", days, "messaggi")


def _reports(connection: sa.Connection, period: Period) -> bytes:
    days = reading.daily(connection, period, {"timed": "timed", "minutes": "minutes"}, "statistic_report")
    means = _shares(days, {"tempo medio": ("minutes", "timed")}, 1 / 60)
    return pictures.lines("Ore dalla visita al referto, per giorno di pubblicazione", means, "ore")


def _shares(days: DataFrame, pairs: Mapping[str, tuple[str, str]], scale: float) -> DataFrame:
    """For each label ``scale`` × part ÷ whole, day by day; a day without a whole has none."""
    import pandas as pd

    return pd.DataFrame(
        {label: scale * days[part] / days[whole].where(days[whole] != 0) for label, (part, whole) in pairs.items()}
    )


VIEWS: Mapping[str, View] = {
    view.key: view
    for view in (
        View(
            "appointments",
            "Appuntamenti",
            "Gli appuntamenti per clinica, giorno, specialista, prestazione, canale ed esito.",
            ("appointments",),
            _appointments,
            lambda o: {"Appuntamenti": o.appointments, **{STATUSES[s].capitalize(): n for s, n in o.by_status.items()}},
            (reading.by_week, reading.by_clinic, reading.by_channel, reading.by_service, reading.by_specialist),
        ),
        View(
            "occupancy",
            "Occupazione",
            "I minuti prenotati sui minuti offerti, per clinica, giorno e agenda.",
            ("appointments", "offer"),
            _occupancy,
            lambda o: {"Minuti prenotati su offerti": str(o.occupancy)},
            (reading.by_agenda,),
        ),
        View(
            "attendance",
            "Assenze e disdette",
            "Quanti non si sono presentati e quanti hanno disdetto, con numeratore e denominatore.",
            ("appointments",),
            _attendance,
            lambda o: {"Assenti su attesi": str(o.no_shows), "Disdetti su presi": str(o.cancellations)},
        ),
        View(
            "lead_time",
            "Tempi di attesa",
            "I giorni dalla prenotazione alla visita.",
            ("appointments",),
            _lead_time,
            lambda o: {
                "Attesa media (giorni)": "n.d." if o.lead_days is None else round(o.lead_days, 1),
                "Entro 7 giorni": str(o.within_7_days),
                "Entro 30 giorni": str(o.within_30_days),
            },
        ),
        View(
            "revenue",
            "Valore prenotato e accettato",
            "Il valore degli appuntamenti prenotati e accettati, per convenzione, al prezzo comunicato.",
            ("appointments",),
            _revenue,
            lambda o: {
                "Valore prenotato €": f"{o.revenue_booked:.2f}",
                "Valore accettato €": f"{o.revenue_accepted:.2f}",
                "Appuntamenti senza prezzo": o.unpriced,
            },
            (reading.by_agreement,),
        ),
        View(
            "online_funnel",
            "Prenotazione online",
            "Quanti orari bloccati online diventano prenotazioni, verificate e confermate.",
            ("funnel",),
            _funnel,
            lambda o: {
                "Bloccati": o.held,
                "Prenotati": o.booked_online,
                "Verificati": o.verified,
                "Confermati": o.confirmed,
            },
        ),
        View(
            "messages",
            "Messaggi",
            "I messaggi ai pazienti, per tipo, canale e stato.",
            ("messages",),
            _messages,
            lambda o: {MESSAGE_STATES[state].capitalize(): n for state, n in o.messages.items()},
            (reading.by_message_kind,),
        ),
        View(
            "report_turnaround",
            "Tempi dei referti",
            "Le ore dalla fine della visita alla pubblicazione del suo referto.",
            ("reports",),
            _reports,
            lambda o: {
                "Referti pubblicati": o.reports,
                "Ritirati": o.reports_withdrawn,
                "Tempo medio (ore)": "n.d." if o.turnaround_hours is None else round(o.turnaround_hours, 1),
                "Entro 24 ore": str(o.reports_within_1_day),
                "Entro 72 ore": str(o.reports_within_3_days),
            },
        ),
    )
}
