"""Scanned pages: read where an engine is installed, each named with how sure it is."""

from __future__ import annotations

import io
import random
from importlib import resources

import pytest
from PIL import Image, ImageDraw, ImageFont

from polydesk_dagster.knowledge.contents import Content, losses_of
from polydesk_dagster.knowledge.formats import ocr, pdf
from polydesk_dagster.knowledge.formats.text import Loss, UnreadableError
from polydesk_dagster.knowledge.text import words
from polydesk_dagster.knowledge.work import lost
from polydesk_dagster.told import teller
from tests.knowledge import paper

FONT = resources.files("matplotlib") / "mpl-data" / "fonts" / "ttf" / "DejaVuSerif.ttf"
LEAFLET = (
    "Preparazione all'ecografia dell'addome superiore",
    "Il paziente deve essere a digiuno da almeno 6 ore; può bere acqua.",
    "Due giorni prima evitare frutta, verdura, latte e caffè: così si riduce il meteorismo.",
    "Chi è già in terapia non sospende i farmaci. È utile portare gli esami precedenti.",
    "Il costo è di 85,00 € e il referto sarà pronto entro 3 giorni, più l'eventuale festività.",
)


def scanned(*pages: tuple[str, ...]) -> bytes:
    """A PDF of pictures of text, askew and with specks, as a scanner of 200 dots an inch makes it."""
    chance = random.Random(4)
    pictures = []
    for lines in pages:
        picture = Image.new("L", (1654, 2339), 255)
        draw = ImageDraw.Draw(picture)
        for place, line in enumerate(lines):
            draw.text((150, 200 + 60 * place), line, 0, font=ImageFont.truetype(str(FONT), 30))
        picture = picture.rotate(0.4, fillcolor=255, resample=Image.Resampling.BICUBIC)
        for _ in range(200):
            picture.putpixel((chance.randrange(1654), chance.randrange(2339)), chance.randrange(120))
        pictures.append(picture)
    made = io.BytesIO()
    pictures[0].save(made, "PDF", save_all=True, append_images=pictures[1:], resolution=200)
    return made.getvalue()


@pytest.mark.skipif(ocr.engine() is None, reason="the optional engine is not installed")
def test_a_scanned_leaflet_is_read_with_its_accents() -> None:
    text = pdf.read(scanned(LEAFLET, LEAFLET[:3]))
    (loss,) = text.losses
    assert (loss.code[:3], loss.count, loss.pages) == ("ocr", 2, (1, 2))
    assert loss.sure is not None
    assert loss.sure >= 90
    wanted = words("\n".join(LEAFLET))
    assert len([word for word in wanted if word in words(text.pages[0][1])]) >= 0.95 * len(wanted)
    assert "può bere acqua" in text.pages[0][1]


def test_what_an_engine_sees_stands_on_its_page_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([ocr.Seen("# Digiuno di otto ore", 0.99), None, ocr.Seen("Portare 1a tessera", 0.9)])
    monkeypatch.setattr(ocr, "engine", lambda: "engine 1")
    monkeypatch.setattr(ocr, "read", lambda _pictures: next(seen))
    text = pdf.read(paper.pdf([["Preparazione alla scintigrafia ossea."], *[paper.SCANNED] * 3]))
    assert text.losses == [
        Loss("ocr", 1, (2,), 99),
        Loss("ocr_doubtful", 1, (4,), 90),
        Loss("pages_without_text", 1, (3,)),
    ]
    assert [page.strip() for _, page in text.pages][1:] == ["\\# Digiuno di otto ore", "", "Portare 1a tessera"]
    assert Content(None, 1, tuple(text.losses)).wants_eyes
    assert not Content(None, 1, tuple(text.losses[:1])).wants_eyes
    assert losses_of([["ocr", 1, [2], 99], ["running_lines", 3, []]]) == (text.losses[0], Loss("running_lines", 3))
    told = teller("it").reason(lost(text.losses[1:2]))
    assert told == "1 pagina letta da un'immagine con dubbi, sicurezza 90 % (pagina 4)."


def test_a_logo_above_words_that_are_drawn_is_not_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "engine", lambda: "engine 1")
    monkeypatch.setattr(ocr, "read", lambda _pictures: ocr.Seen("Azienda ospedaliera", 1.0))
    drawn = paper.pdf([paper.SCANNED]).replace(b"500 0 0 700", b"100 0 0 100")
    with pytest.raises(UnreadableError, match="scan"):
        pdf.read(drawn)


def test_where_an_engine_sees_nothing_a_scan_is_a_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "engine", lambda: "engine 1")
    monkeypatch.setattr(ocr, "read", lambda _pictures: None)
    with pytest.raises(UnreadableError, match="scan"):
        pdf.read(paper.pdf([paper.SCANNED] * 2))
