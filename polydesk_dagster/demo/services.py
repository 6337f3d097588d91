"""What the demo's clinics offer: outpatient services by their nomenclature code, grouped by branch of medicine."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal


@dataclass(frozen=True, slots=True)
class Preparation:
    """What the patient must do before; ``lead_days`` and ``last_hours`` as in the service's record."""

    text: str
    lead_days: int
    last_hours: int


@dataclass(frozen=True, slots=True)
class Offer:
    code: str
    name: str
    minutes: int
    price: Decimal
    preparation: Preparation | None = None
    sensitive: bool = False
    online: bool = True


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch with its services, the first booked most; ``slot_minutes`` is the step of its doctors' agendas."""

    name: str
    slot_minutes: int
    offers: tuple[Offer, ...]
    patients: Literal["F", "M"] | None = None
    """Whose doctor this mostly is; None: everybody's."""


def _offer(
    code: str,
    name: str,
    minutes: int,
    price: int,
    preparation: Preparation | None = None,
    *,
    sensitive: bool = False,
    online: bool = True,
) -> Offer:
    return Offer(code, name, minutes, Decimal(price), preparation, sensitive, online)


FASTING_6H = Preparation(
    "Digiuno da almeno 6 ore. È permessa l'acqua naturale. I farmaci abituali si assumono regolarmente.", 1, 8
)
FASTING_8H = Preparation(
    "Presentarsi a digiuno da almeno 8 ore, con la tessera sanitaria. È permessa l'acqua naturale; "
    "non fumare nell'ora che precede il prelievo.",
    1,
    12,
)
FULL_BLADDER = Preparation(
    "Vescica piena: bere un litro d'acqua naturale nell'ora che precede l'esame e non urinare fino al termine.", 1, 3
)
COLONOSCOPY = Preparation(
    "Nei tre giorni precedenti evitare frutta, verdura, legumi e alimenti integrali. Il giorno prima dieta liquida e "
    "assunzione del preparato intestinale come da foglio consegnato. Digiuno completo da 6 ore, anche dall'acqua da "
    "2 ore. Chi assume anticoagulanti contatti il medico almeno cinque giorni prima. Serve un accompagnatore.",
    5,
    72,
)
GASTROSCOPY = Preparation(
    "Digiuno da 8 ore per i solidi e da 2 ore per l'acqua. Sospendere gli antiacidi da 12 ore. Serve un "
    "accompagnatore se si richiede la sedazione.",
    2,
    12,
)
MAGNETIC = Preparation(
    "Rimuovere oggetti metallici, protesi mobili e trucco. Portare gli esami precedenti e il questionario di "
    "sicurezza compilato. Segnalare pacemaker, protesi, clip o gravidanza almeno due giorni prima.",
    3,
    48,
)
CONTRAST = Preparation(
    "Digiuno da 6 ore. Portare la creatinina eseguita negli ultimi 60 giorni e segnalare allergie a mezzi di "
    "contrasto almeno tre giorni prima.",
    4,
    72,
)
BREATH_TEST = Preparation(
    "Nelle due settimane precedenti niente antibiotici né fermenti lattici; il giorno prima solo riso, carne o pesce "
    "lessi e acqua. Digiuno da 12 ore, non fumare e non fare attività fisica.",
    7,
    36,
)
NO_INHALERS = Preparation(
    "Non usare broncodilatatori nelle 12 ore che precedono l'esame, salvo diversa indicazione del medico. Non fumare "
    "nelle 2 ore precedenti.",
    2,
    14,
)
NO_ANTIHISTAMINES = Preparation(
    "Sospendere antistaminici e cortisonici per bocca da 7 giorni, in accordo con il proprio medico.", 9, 168
)
DILATED_PUPILS = Preparation(
    "Verranno instillate gocce che dilatano la pupilla: non guidare per le 4 ore successive. Togliere le lenti a "
    "contatto morbide da 2 giorni, rigide da 7.",
    3,
    24,
)
CLEAN_SKIN = Preparation("Non applicare creme, oli o profumi sulla pelle il giorno dell'esame.", 1, 12)
MAMMOGRAPHY = Preparation(
    "Il giorno dell'esame non usare deodorante, talco o creme su seno e ascelle. Portare le mammografie precedenti.",
    1,
    10,
)
STRESS_TEST = Preparation(
    "Pasto leggero almeno 3 ore prima, abbigliamento comodo e scarpe da ginnastica. Chiedere al cardiologo se "
    "sospendere i beta-bloccanti.",
    3,
    24,
)
CYTOLOGY = Preparation(
    "Lontano dal ciclo mestruale; nelle 48 ore precedenti niente rapporti, lavande o ovuli vaginali.", 3, 48
)

BRANCHES = (
    Branch(
        "Cardiologia",
        30,
        (
            _offer("89.7A.3", "Prima visita cardiologica con ECG", 30, 130),
            _offer("89.01.3", "Visita cardiologica di controllo con ECG", 30, 100),
            _offer("88.72.2", "Ecocolordoppler cardiaco", 30, 120, CLEAN_SKIN),
            _offer("89.41", "Test cardiovascolare da sforzo", 30, 140, STRESS_TEST, online=False),
            _offer("89.50", "ECG dinamico secondo Holter", 30, 110, CLEAN_SKIN),
        ),
    ),
    Branch(
        "Dermatologia",
        20,
        (
            _offer("89.7A.7", "Prima visita dermatologica", 20, 110),
            _offer("89.01.7", "Visita dermatologica di controllo", 20, 85),
            _offer("86.11", "Biopsia della cute", 20, 160, online=False),
        ),
    ),
    Branch(
        "Ginecologia e ostetricia",
        30,
        (
            _offer("89.26.1", "Prima visita ginecologica", 30, 120, CYTOLOGY),
            _offer("89.26.2", "Visita ginecologica di controllo", 30, 95),
            _offer("88.78.2", "Ecografia ginecologica", 30, 100),
            _offer("88.78", "Ecografia ostetrica", 30, 120, sensitive=True),
            _offer("70.21", "Colposcopia", 30, 130, CYTOLOGY, sensitive=True),
        ),
        "F",
    ),
    Branch(
        "Ortopedia",
        20,
        (
            _offer("89.7B.7", "Prima visita ortopedica", 20, 120),
            _offer("89.01.G", "Visita ortopedica di controllo", 20, 90),
            _offer("81.92", "Infiltrazione articolare", 20, 110, online=False),
        ),
    ),
    Branch(
        "Oculistica",
        20,
        (
            _offer("95.02", "Prima visita oculistica", 20, 110, DILATED_PUPILS),
            _offer("89.01.D", "Visita oculistica di controllo", 20, 85),
            _offer("95.05", "Studio del campo visivo", 20, 80),
            _offer("95.03.3", "Tomografia retinica OCT", 20, 95),
        ),
    ),
    Branch(
        "Otorinolaringoiatria",
        20,
        (
            _offer("89.7B.8", "Prima visita otorinolaringoiatrica", 20, 110),
            _offer("89.01.H", "Visita otorinolaringoiatrica di controllo", 20, 85),
            _offer("95.41.1", "Esame audiometrico tonale", 20, 55),
            _offer("95.42", "Impedenzometria", 20, 45),
        ),
    ),
    Branch(
        "Radiologia ed ecografia",
        20,
        (
            _offer("88.76.1", "Ecografia dell'addome completo", 20, 95, FASTING_6H),
            _offer("88.75.1", "Ecografia dell'addome inferiore", 20, 80, FULL_BLADDER),
            _offer("88.71.4", "Ecografia del capo e del collo", 20, 75),
            _offer("88.79.3", "Ecografia muscolotendinea", 20, 75),
            _offer("88.73.1", "Ecografia mammaria bilaterale", 20, 90),
        ),
    ),
    Branch(
        "Fisiatria e riabilitazione",
        30,
        (
            _offer("93.11.1", "Rieducazione motoria individuale", 30, 45),
            _offer("89.7B.2", "Prima visita fisiatrica", 30, 110),
            _offer("89.01.W", "Visita fisiatrica di controllo", 30, 85),
            _offer("93.39.2", "Massoterapia per drenaggio linfatico", 30, 50),
        ),
    ),
    Branch(
        "Neurologia",
        30,
        (
            _offer("89.13", "Prima visita neurologica", 30, 140),
            _offer("89.01.C", "Visita neurologica di controllo", 30, 110),
            _offer("93.08.A", "Elettromiografia dell'arto superiore", 30, 120, CLEAN_SKIN),
        ),
    ),
    Branch(
        "Endocrinologia",
        30,
        (
            _offer("89.7A.8", "Prima visita endocrinologica", 30, 130),
            _offer("89.01.8", "Visita endocrinologica di controllo", 30, 100),
        ),
    ),
    Branch(
        "Gastroenterologia",
        30,
        (
            _offer("89.7A.9", "Prima visita gastroenterologica", 30, 130),
            _offer("89.01.9", "Visita gastroenterologica di controllo", 30, 100),
            _offer("45.13", "Esofagogastroduodenoscopia", 30, 220, GASTROSCOPY, online=False),
            _offer("45.23", "Colonscopia totale", 30, 280, COLONOSCOPY, online=False),
            _offer("45.29.3", "Breath test al lattosio", 30, 90, BREATH_TEST),
        ),
    ),
    Branch(
        "Urologia",
        20,
        (
            _offer("89.7C.2", "Prima visita urologica", 20, 120),
            _offer("89.01.Q", "Visita urologica di controllo", 20, 95),
            _offer("88.79.8", "Ecografia prostatica transrettale", 20, 110, FULL_BLADDER, sensitive=True),
        ),
        "M",
    ),
    Branch(
        "Pneumologia e allergologia",
        30,
        (
            _offer("89.7B.9", "Prima visita pneumologica", 30, 120),
            _offer("89.01.L", "Visita pneumologica di controllo", 30, 90),
            _offer("91.90.4", "Prick test per inalanti e alimenti", 30, 90, NO_ANTIHISTAMINES),
        ),
    ),
    Branch(
        "Psichiatria e psicologia",
        40,
        (
            _offer("94.3", "Psicoterapia individuale", 40, 80, sensitive=True, online=False),
            _offer("94.19.1", "Prima visita psichiatrica", 40, 140, sensitive=True),
            _offer("94.12.1", "Visita psichiatrica di controllo", 40, 110, sensitive=True),
            _offer("94.09", "Colloquio psicologico clinico", 40, 75, sensitive=True),
        ),
    ),
    Branch(
        "Oncologia",
        40,
        (
            _offer("89.01.F", "Visita oncologica di controllo", 40, 120, sensitive=True, online=False),
            _offer("89.7B.6", "Prima visita oncologica", 40, 150, sensitive=True),
        ),
    ),
    Branch(
        "Angiologia",
        30,
        (
            _offer("89.7A.2", "Prima visita angiologica", 30, 120),
            _offer("88.77.4", "Ecocolordoppler degli arti inferiori", 30, 110),
            _offer("88.73.5", "Ecocolordoppler dei tronchi sovraaortici", 30, 110),
        ),
    ),
)

BLOOD_TEST = _offer("91.49.2", "Prelievo di sangue venoso", 10, 12, FASTING_8H)
DESK_SERVICES = (
    BLOOD_TEST,
    _offer("89.52", "Elettrocardiogramma", 10, 35, CLEAN_SKIN),
    _offer("89.37.1", "Spirometria semplice", 20, 50, NO_INHALERS),
    _offer("89.61.1", "Monitoraggio della pressione nelle 24 ore", 20, 60),
)
"""Services with an agenda of their own, without a doctor's name; the first has many places an hour."""


@dataclass(frozen=True, slots=True)
class Machine:
    """An instrument with its own agenda and what is done on it."""

    name: str
    slot_minutes: int
    offers: tuple[Offer, ...]


MACHINES = (
    Machine(
        "Radiologia digitale",
        20,
        (
            _offer("87.44.1", "Radiografia del torace", 20, 45),
            _offer("88.27.2", "Radiografia del ginocchio", 20, 40),
            _offer("88.26.1", "Radiografia del bacino", 20, 45),
            _offer("87.11.3", "Ortopanoramica delle arcate dentarie", 20, 40),
        ),
    ),
    Machine(
        "Risonanza magnetica 1,5 T",
        30,
        (
            _offer("88.94.D", "Risonanza magnetica del ginocchio", 30, 180, MAGNETIC),
            _offer("88.93.4", "Risonanza magnetica lombosacrale", 30, 190, MAGNETIC),
            _offer("88.91.1", "Risonanza magnetica dell'encefalo", 30, 220, MAGNETIC),
            _offer("88.95.2", "Risonanza magnetica dell'addome con contrasto", 30, 320, CONTRAST, online=False),
        ),
    ),
    Machine(
        "Mammografo e densitometro",
        20,
        (
            _offer("87.37.1", "Mammografia bilaterale", 20, 90, MAMMOGRAPHY),
            _offer("88.99.6", "Densitometria ossea lombare", 20, 60),
        ),
    ),
)
"""The first works every day of the year, Sundays and holidays too."""

WITHDRAWN = (
    _offer("89.58.1", "Pletismografia degli arti inferiori", 20, 60),
    _offer("93.15", "Manipolazione della colonna vertebrale", 30, 70),
)
"""Offered once, deleted since."""

GROUPS = {
    "Prime visite": "Prima visita",
    "Visite di controllo": "controllo",
    "Ecografie ed ecocolordoppler": "Eco",
    "Risonanza magnetica": "Risonanza",
    "Radiografie": "Radiografia",
    "Psicologia e psichiatria": "psic",
}
"""Service groups: a name and the text that the names of their services contain."""


def all_offers() -> tuple[Offer, ...]:
    """Every service in use, each code once."""
    return (
        *(offer for branch in BRANCHES for offer in branch.offers),
        *DESK_SERVICES,
        *(offer for machine in MACHINES for offer in machine.offers),
    )
