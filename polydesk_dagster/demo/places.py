"""Where the demo's clinics stand and their patients live: real municipalities with their codes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    cadastral_code: str
    name: str
    postal_code: str


@dataclass(frozen=True, slots=True)
class Seat:
    """A town that a clinic of the demo stands in, with the towns around it; the first place is the town itself."""

    code: str
    """Two letters of the clinic's code, also its province."""
    region: str
    area_code: str
    addresses: tuple[tuple[str, str], ...]
    """Locations of the clinic: name and street."""
    places: tuple[Place, ...]
    language: str = "it"


SEATS = (
    Seat(
        "BO",
        "Emilia-Romagna",
        "051",
        (("Centro", "Via Indipendenza 44"), ("Mazzini", "Via Mazzini 120")),
        (
            Place("A944", "Bologna", "40121"),
            Place("B880", "Casalecchio di Reno", "40033"),
            Place("H945", "San Lazzaro di Savena", "40068"),
            Place("E289", "Imola", "40026"),
            Place("C204", "Castel Maggiore", "40013"),
            Place("M185", "Zola Predosa", "40069"),
            Place("B249", "Budrio", "40054"),
            Place("C292", "Castenaso", "40055"),
        ),
    ),
    Seat(
        "BZ",
        "Trentino-Alto Adige",
        "0471",
        (("Centro / Zentrum", "Via Museo 12 / Museumstraße 12"),),
        (
            Place("A952", "Bolzano", "39100"),
            Place("F132", "Merano", "39012"),
            Place("B160", "Bressanone", "39042"),
            Place("E421", "Laives", "39055"),
            Place("A332", "Appiano sulla strada del vino", "39057"),
            Place("B220", "Brunico", "39031"),
            Place("B397", "Caldaro sulla strada del vino", "39052"),
            Place("H236", "Renon", "39054"),
        ),
        language="de",
    ),
    Seat(
        "MI",
        "Lombardia",
        "02",
        (("Porta Venezia", "Corso Buenos Aires 33"), ("Navigli", "Viale Gorizia 8")),
        (
            Place("F205", "Milano", "20121"),
            Place("I690", "Sesto San Giovanni", "20099"),
            Place("C707", "Cinisello Balsamo", "20092"),
            Place("H264", "Rho", "20017"),
            Place("C895", "Cologno Monzese", "20093"),
            Place("E514", "Legnano", "20025"),
            Place("I577", "Segrate", "20054"),
            Place("D045", "Corsico", "20094"),
        ),
    ),
    Seat(
        "NA",
        "Campania",
        "081",
        (("Chiaia", "Via dei Mille 16"), ("Vomero", "Via Scarlatti 88")),
        (
            Place("F839", "Napoli", "80121"),
            Place("G964", "Pozzuoli", "80078"),
            Place("G902", "Portici", "80055"),
            Place("H243", "Ercolano", "80056"),
            Place("B990", "Casoria", "80026"),
            Place("E054", "Giugliano in Campania", "80014"),
            Place("H892", "San Giorgio a Cremano", "80046"),
            Place("C129", "Castellammare di Stabia", "80053"),
        ),
    ),
    Seat(
        "TO",
        "Piemonte",
        "011",
        (("Crocetta", "Corso Duca degli Abruzzi 40"),),
        (Place("L219", "Torino", "10121"), Place("F335", "Moncalieri", "10024"), Place("H355", "Rivoli", "10098")),
    ),
    Seat(
        "RM",
        "Lazio",
        "06",
        (("Prati", "Via Cola di Rienzo 200"), ("Eur", "Viale Europa 55")),
        (Place("H501", "Roma", "00118"), Place("M297", "Fiumicino", "00054"), Place("L182", "Tivoli", "00019")),
    ),
    Seat(
        "FI",
        "Toscana",
        "055",
        (("Novoli", "Viale Guidoni 10"),),
        (
            Place("D612", "Firenze", "50121"),
            Place("B962", "Scandicci", "50018"),
            Place("I684", "Sesto Fiorentino", "50019"),
        ),
    ),
    Seat(
        "GE",
        "Liguria",
        "010",
        (("Brignole", "Via XX Settembre 30"),),
        (Place("D969", "Genova", "16121"), Place("H183", "Rapallo", "16035"), Place("C621", "Chiavari", "16043")),
    ),
    Seat(
        "BA",
        "Puglia",
        "080",
        (("Murat", "Via Sparano 60"),),
        (Place("A662", "Bari", "70121"), Place("A225", "Altamura", "70022"), Place("A893", "Bitonto", "70032")),
    ),
    Seat(
        "VR",
        "Veneto",
        "045",
        (("Borgo Trento", "Via Mameli 25"),),
        (
            Place("L781", "Verona", "37121"),
            Place("L949", "Villafranca di Verona", "37069"),
            Place("H783", "San Bonifacio", "37047"),
        ),
    ),
)
"""In the order in which a chain of n clinics takes them; a larger chain begins again from the first."""
