"""Documents opened in a process of their own: real files, and every way in which a file can be no good."""

from __future__ import annotations

import datetime as dt
import io
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from polydesk_dagster.knowledge.formats.pdf import without_running_lines
from polydesk_dagster.knowledge.formats.sheets import shown
from polydesk_dagster.knowledge.formats.text import Loss, UnreadableError
from polydesk_dagster.knowledge.reader import unsaid
from polydesk_dagster.knowledge.reading import Reader, ReaderDiedError, stretches
from polydesk_dagster.knowledge.splitting import MOST, Page, Passage, split, title_of
from tests.knowledge.paper import LETTERHEAD, SCANNED, pdf


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with Reader() as reader:
        yield reader


@pytest.mark.slow
def test_real_documents_keep_headings_tables_and_pages(reader: Reader, shared_data: Path) -> None:
    def passages(name: str) -> list:
        file = shared_data / "kb" / name
        return list(reader.read(file.read_bytes(), file.suffix).passages)

    manual = passages("docpat-manuale-utente.md")
    assert any(len(p.headings) >= 3 for p in manual)
    assert any("|" in p.text and "\n" in p.text for p in manual)
    guide = passages("anpr-guida.rst")
    assert guide[0].headings == ("Guida ad ANPR",)
    assert any(p.headings[-1].startswith("1. Come lavorare") for p in guide)
    rules = passages("linee-guida-esercenti.docx")
    assert any(p.text.startswith("| da attivare") or "| attivo |" in p.text for p in rules)
    agreement = passages("mobilita_sanitaria_2012.pdf")
    assert {p.page for p in agreement} >= set(range(2, 100))
    assert not any("pagina 21 di 131" in p.text for p in agreement)
    for every in (manual, guide, rules, agreement):
        assert max(len(p.text) for p in every) <= MOST


@pytest.mark.slow
def test_every_real_document_has_words_or_says_why_not(reader: Reader, shared_data: Path) -> None:
    refused = {}
    for file in sorted((shared_data / "kb").iterdir()):
        try:
            assert sum(len(p.text) for p in reader.read(file.read_bytes(), file.suffix).passages) > 5000, file.name
        except UnreadableError as error:
            refused[file.name] = error.code
    assert refused == {"modulo_richiesta_ige_2015.pdf": "scan", "flusso_c_specialistica_marche.doc": "legacy_format"}


def _zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


ENCRYPTED_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600) + "EncryptedPackage".encode("utf-16-le")


@pytest.mark.parametrize(
    ("data", "suffix", "code"),
    [
        (b"", ".txt", "empty"),
        (b" \n\t\r\n", ".md", "empty"),
        (bytes(100), ".pdf", "empty"),
        (b"--- *** ###", ".md", "no_text"),
        (b"%PDF-1.7 ...", ".txt", "wrong_extension"),
        (b"solo testo", ".pdf", "wrong_extension"),
        (b"solo testo", ".docx", "wrong_extension"),
        (_zip({"xl/workbook.xml": b"<a/>"}), ".docx", "wrong_extension"),
        (_zip({"word/document.xml": b"<a/>"})[:60], ".docx", "damaged"),
        (b"%PDF-1.7\n1 0 obj\n<<>>", ".pdf", "damaged"),
        (ENCRYPTED_OFFICE, ".docx", "encrypted"),
        (ENCRYPTED_OFFICE[:400], ".xlsx", "legacy_format"),
        (b"\x00\x01\x02\x03" * 50 + b"\x81\x8d", ".txt", "encoding"),
        (b"GIF89a", ".gif", "unsupported"),
        (b"testo", "", "unsupported"),
    ],
    ids=lambda value: value if isinstance(value, str) else "data",
)
def test_what_cannot_be_read_says_why(reader: Reader, data: bytes, suffix: str, code: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        reader.read(data, suffix)
    assert caught.value.code == code


@pytest.mark.slow
def test_what_unpacks_to_too_much_is_not_unpacked(reader: Reader) -> None:
    with pytest.raises(UnreadableError) as caught:
        reader.read(_zip({"word/document.xml": bytes(450 * 1024**2)}), ".docx")
    assert caught.value.code == "too_large"


def test_encrypted_pdf(reader: Reader) -> None:
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]>>",
        b"<</Filter/Standard/V 1/R 2/O<" + b"41" * 32 + b">/U<" + b"42" * 32 + b">/P -44>>",
    ]
    data, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(data)
    data += b"xref\n0 5\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % place for place in places)
    data += b"trailer\n<</Size 5/Root 1 0 R/Encrypt 4 0 R/ID[<41><41>]>>\nstartxref\n%d\n%%%%EOF" % start
    with pytest.raises(UnreadableError) as caught:
        reader.read(data, ".pdf")
    assert caught.value.code == "encrypted"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings(reader: Reader, encoding: str) -> None:
    reading = reader.read("Perché è così: già".encode(encoding), ".txt")
    assert reading.passages == (Passage("Perché è così: già", (), None, (0, 18)),)


def test_html_and_spreadsheets(reader: Reader) -> None:
    page = b"<title>Esami</title><script>alert(1)</script><h1>Digiuno</h1><p>Otto <b>ore</b></p>"
    html = reader.read(page, ".html")
    assert html.title == "Esami"
    assert [(p.text, p.headings) for p in html.passages] == [("Otto ore", ("Digiuno",))]
    import openpyxl

    book = openpyxl.Workbook()
    book.active.title = "Tariffe"
    for row in (["Codice", "Esame"], ["54.00", "Emocromo"]):
        book.active.append(row)
    buffer = io.BytesIO()
    book.save(buffer)
    (passage,) = reader.read(buffer.getvalue(), ".xlsx").passages
    assert passage.headings == ("Tariffe",)
    assert "54.00 | Emocromo" in passage.text
    (passage,) = reader.read(b"Codice;Esame\n54.00;Emocromo\n", ".csv").passages
    assert "54.00 | Emocromo" in passage.text


def test_a_slow_document_is_given_up_and_the_next_is_read() -> None:
    slow = b"%PDF-1.7\n" + struct.pack(">I", 7) * 5_000_000
    with Reader(patience=0.001) as hurried:
        with pytest.raises(ReaderDiedError):
            hurried.read(slow, ".pdf")
        hurried._patience = 30.0
        assert hurried.read(b"ancora qui", ".txt").passages[0].text == "ancora qui"


def test_a_killed_reader_is_told_from_a_bad_document() -> None:
    with Reader() as reader:
        reader.read(b"uno", ".txt")
        assert reader._process is not None
        reader._process.kill()
        reader._process.wait()
        with pytest.raises(ReaderDiedError):
            reader.read(b"due", ".txt")
        assert reader.read(b"tre", ".txt").passages[0].text == "tre"


def test_splitting_keeps_heading_paths_and_repeats_the_table_head() -> None:
    table = "\n".join(["| Codice | Esame |", "| --- | --- |", *(f"| {n:04} | esame numero {n} |" for n in range(200))])
    pages = [Page(f"# Guida\n\nPrima.\n\n## Esami\n\nDopo.\n\n{table}\n\n## Fine\n\nTesto"), Page("Coda", 2)]
    passages = split(pages)
    assert title_of(pages) == "Guida"
    assert [p.headings for p in passages if not p.text.startswith("|")] == [
        ("Guida",),
        ("Guida", "Esami"),
        ("Guida", "Fine"),
        ("Guida", "Fine"),
    ]
    tables = [p.text for p in passages if p.text.startswith("|")]
    assert len(tables) > 3
    assert all(t.startswith("| Codice | Esame |\n") and len(t) <= MOST for t in tables)
    assert sum(t.count("esame numero") for t in tables) == 200


@pytest.mark.parametrize("rows", [0, 3])
def test_a_tables_head_that_is_too_long_to_be_repeated_is_said_once(rows: int) -> None:
    head = "| " + " | ".join(f"colonna{n}" for n in range(300)) + " |"
    page = Page("\n".join([head, "| --- |", *(f"| valore{n} |" for n in range(rows))]))
    passages = split([page])
    assert unsaid([page], passages) == []
    assert max(len(p.text) for p in passages) <= MOST


def test_splitting_loses_no_word_of_a_text_without_structure() -> None:
    text = " ".join(f"parola{n}" for n in range(2_000)) + " " + "x" * 4_000
    passages = split([Page(text)])
    assert all(len(p.text) <= MOST for p in passages)
    assert "".join(p.text for p in passages).replace(" ", "") == text.replace(" ", "")


def test_lines_that_look_like_markup_in_plain_text_stay_text(reader: Reader) -> None:
    (passage,) = reader.read(b"# 1 in classifica\nseconda riga", ".txt").passages
    assert passage.text == "# 1 in classifica\nseconda riga"
    assert passage.headings == ()


LEAFLET = [
    [
        "Poliambulatorio Prova - Foglio informativo",
        f"Digiuno da almeno {(6, 8, 12)[number % 3]} ore.",
        f"Testo della pagina {'abcdefghij'[number]} con parole sue.",
        "Ultima riga del testo",
        f"Emocromo {number % 2 + 10},00 euro",
        f"Pagina {number + 1} di 10",
    ]
    for number in range(10)
]


def test_what_repeats_at_a_pages_edge_goes_only_if_it_says_nothing_anew(reader: Reader) -> None:
    reading = reader.read(pdf(LEAFLET), ".pdf")
    by_page = {passage.page: passage.text for passage in reading.passages}
    for number, lines in enumerate(LEAFLET, 1):
        assert all(line in by_page[number] for line in lines[1:5])
        assert "di 10" not in by_page[number]
    assert [page for page, text in by_page.items() if "Foglio informativo" in text] == [1]
    assert reading.losses == (Loss("running_lines", 19),)


def test_a_tables_head_stays_on_every_page() -> None:
    pages = [(number, "| Esame | Prezzo |\n| Emocromo | 4 |\n| Totale | tutto |") for number in range(1, 9)]
    assert without_running_lines(pages) == (pages, 0)


@pytest.mark.parametrize("price", ["{}", "{},50 €", "{},50 euro a prelievo"])
def test_a_tables_head_without_lines_stays_on_every_page_and_the_letterhead_does_not(price: str) -> None:
    rows = [f"Esame di laboratorio {price.format(number)}" for number in range(10, 50)]
    texts = ["\n".join(["Poliambulatorio Prova", "Prestazione Prezzo", *rows[at : at + 9]]) for at in range(0, 40, 9)]
    kept, dropped = without_running_lines(list(enumerate(texts, 1)))
    assert dropped == len(texts) - 1
    assert all("Prestazione Prezzo" in text for _, text in kept)


def test_a_page_that_is_only_a_picture_is_named(reader: Reader) -> None:
    reading = reader.read(pdf([["Una pagina di testo che si legge bene."], SCANNED, SCANNED, SCANNED]), ".pdf")
    assert [passage.page for passage in reading.passages] == [1]
    assert reading.losses == (Loss("pages_without_text", 3, (2, 3, 4)),)
    with pytest.raises(UnreadableError) as caught:
        reader.read(pdf([SCANNED, SCANNED]), ".pdf")
    assert (caught.value.code, caught.value.values) == ("scan", {"pages": 2})


def test_a_scan_under_a_letterhead_is_named_and_a_page_of_text_over_a_picture_is_not(reader: Reader) -> None:
    text = [f"Riga {word} della preparazione alla colonscopia." for word in ("prima", "seconda", "terza", "quarta")]
    reading = reader.read(pdf([text, [LETTERHEAD], [LETTERHEAD, *text], ["Solo questo."]]), ".pdf")
    assert [(loss.code, loss.pages) for loss in reading.losses] == [("pages_without_text", (2,))]
    leaflet = reader.read(pdf([[LETTERHEAD, "Aperto il sabato."]]), ".pdf")
    assert "sabato" in leaflet.passages[0].text
    assert [loss.code for loss in leaflet.losses] == ["pages_without_text"]


def test_a_short_text_is_no_scan(reader: Reader) -> None:
    assert reader.read(pdf([["Chiuso il 6"]]), ".pdf").passages[0].text == "Chiuso il 6"


def test_the_fields_of_a_form_are_read(reader: Reader) -> None:
    form = pdf(
        [["Modulo di richiesta"], ["Retro"]], {"Esame richiesto": "Ecografia addome", "Note": "a digiuno", "Firma": ""}
    )
    text = next(passage.text for passage in reader.read(form, ".pdf").passages if passage.page == 1)
    assert "Esame richiesto: Ecografia addome" in text
    assert "Note: a digiuno" in text
    assert "Firma" not in text


def test_a_spreadsheet_says_what_a_person_sees_of_it(reader: Reader) -> None:
    import datetime as dt

    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Tariffe"
    for row in (
        ["Esame", "Prezzo", "Sconto", "Dal", "Segreto"],
        ["Emocromo", 130, 0.15, dt.datetime(2026, 1, 31), "non per tutti"],
        ["Nascosto", 1, 0.5, None, None],
        ["Totale", "=B2*2", None, None, None],
    ):
        sheet.append(row)
    sheet["B2"].number_format = '#,##0.00\\ "€"'
    sheet["C2"].number_format = "0%"
    sheet.row_dimensions[3].hidden = True
    sheet.column_dimensions["E"].hidden = True
    for name, state in (("Bozza", "hidden"), ("Margini", "veryHidden")):
        extra = book.create_sheet(name)
        extra.append(["margine", "segretissimo"])
        extra.sheet_state = state
    buffer = io.BytesIO()
    book.save(buffer)
    reading = reader.read(buffer.getvalue(), ".xlsx")
    text = "\n".join(passage.text for passage in reading.passages)
    assert "| Emocromo | 130,00 € | 15% | 31/01/2026 |" in text
    assert not any(word in text for word in ("segret", "Segreto", "Nascosto", "non per tutti"))
    assert {(loss.code, loss.count) for loss in reading.losses} == {
        ("hidden_sheets", 2),
        ("hidden_rows", 1),
        ("hidden_columns", 1),
        ("formulas_without_value", 1),
    }


W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def _docx(body: str, **parts: str) -> bytes:
    kinds = "".join(
        f'<Override PartName="/word/{name}.xml" '
        f'ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.{kind}+xml"/>'
        for name, kind in {"document": "document.main", **{name: name for name in parts}}.items()
    )
    links = "".join(
        f'<Relationship Id="r{name}" Target="{name}.xml" '
        f'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/{name}"/>'
        for name in parts
    )
    relations = 'xmlns="http://schemas.openxmlformats.org/package/2006/relationships"'
    main = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    return _zip(
        {
            "[Content_Types].xml": (
                '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
                '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
                f'<Default Extension="xml" ContentType="application/xml"/>{kinds}</Types>'
            ).encode(),
            "_rels/.rels": (
                f'<Relationships {relations}><Relationship Id="r" Type="{main}" Target="word/document.xml"/>'
                "</Relationships>"
            ).encode(),
            "word/_rels/document.xml.rels": f"<Relationships {relations}>{links}</Relationships>".encode(),
            "word/document.xml": f"<w:document {W}><w:body>{body}</w:body></w:document>".encode(),
            **{f"word/{name}.xml": content.encode() for name, content in parts.items()},
        }
    )


def test_hidden_text_of_a_word_document_stays_out_and_is_told(reader: Reader) -> None:
    body = (
        "<w:p><w:r><w:t>Digiuno di otto ore</w:t></w:r><w:r><w:rPr><w:vanish/></w:rPr><w:t>margine nascosto</w:t></w:r>"
        '<w:r><w:rPr><w:vanish w:val="0"/></w:rPr><w:t> e acqua</w:t></w:r></w:p>'
    )
    note = "<w:footnote><w:p><w:r><w:t>Solo al mattino presto</w:t></w:r></w:p></w:footnote>"
    notes = f"<w:footnotes {W}>{note}</w:footnotes>"
    reading = reader.read(_docx(body, footnotes=notes), ".docx")
    text = "\n".join(passage.text for passage in reading.passages)
    assert "Digiuno di otto ore e acqua" in text
    assert "nascosto" not in text
    assert text.count("Solo al mattino presto") == 1
    assert reading.losses == (Loss("hidden_text", 1),)


def test_what_a_style_hides_is_hidden_too(reader: Reader) -> None:
    styles = (
        '<w:style w:type="paragraph" w:styleId="Note"><w:rPr><w:vanish/></w:rPr></w:style>'
        '<w:style w:type="paragraph" w:styleId="Below"><w:basedOn w:val="Note"/></w:style>'
        '<w:style w:type="character" w:styleId="Shown"><w:basedOn w:val="Shown"/></w:style>'
    )
    written = [
        ("Note", "", "uno"),
        ("Below", "", "due"),
        ("Below", '<w:vanish w:val="0"/>', "tre"),
        ("Shown", "", "sei"),
    ]
    body = "".join(
        f'<w:p><w:pPr><w:pStyle w:val="{style}"/></w:pPr><w:r><w:rPr>{own}</w:rPr><w:t>parola {word}</w:t></w:r></w:p>'
        for style, own, word in written
    )
    reading = reader.read(_docx(body, styles=f"<w:styles {W}>{styles}</w:styles>"), ".docx")
    assert "\n".join(passage.text for passage in reading.passages).split() == ["parola", "tre", "parola", "sei"]
    assert reading.losses == (Loss("hidden_text", 2),)


@pytest.mark.parametrize(
    ("value", "pattern", "seen"),
    [
        (130, "[$€-410] #,##0.00", "130,00 €"),
        (12.5, "[$CHF] #,##0.00", "12,50 CHF"),
        (99.9, "_-* #,##0.00 €_-", "99,90 €"),
        (dt.timedelta(hours=26, minutes=30), "[h]:mm", "26:30"),
    ],
)
def test_a_cell_is_read_as_it_looks(value: object, pattern: str, seen: str) -> None:
    from openpyxl import Workbook

    sheet = Workbook().worksheets[0]
    cell = sheet.cell(1, 1, value)  # type: ignore[arg-type]
    cell.number_format = pattern
    assert shown(cell) == seen


def test_a_heading_with_nothing_under_it_is_a_passage_of_its_own() -> None:
    passages = split([Page("# Guida\n\n## Digiuno di otto ore\n\n## Acqua sì\n\nBere molto.\n\n### Fine")])
    assert [(p.headings, p.text) for p in passages] == [
        (("Guida",), "Digiuno di otto ore"),
        (("Guida", "Acqua sì"), "Bere molto.\n\nFine"),
    ]


def test_what_only_looks_like_a_tag_is_text() -> None:
    (passage,) = split([Page("Valore <soglia e >minimo, vedi [qui](http://x) <br/> fine")])
    assert passage.text == "Valore <soglia e >minimo, vedi qui  fine"


def test_words_that_go_in_and_do_not_come_out_are_counted_by_page() -> None:
    pages = [Page("uno due tre quattro", 1), Page("cinque sei sette otto nove dieci", 2)]
    kept = split(pages)
    assert unsaid(pages, kept) == []
    assert unsaid(pages, kept[:1]) == [Loss("words_lost", 6, (2,))]


def test_a_line_without_end_is_split_in_bounded_steps(reader: Reader) -> None:
    text = "x" * 4_000_000 + " parola" * 100_000
    passages = split([Page(text)])
    assert sum(len(p.text.replace(" ", "")) for p in passages) == len(text.replace(" ", ""))
    assert max(len(p.text) for p in passages) <= MOST


def test_patience_grows_with_the_document_and_is_told_for_what_it_is() -> None:
    assert stretches(b"%PDF-1.7 /Count 300 " + bytes(8 * 1024**2)) > 4.9
    with Reader(patience=0.02) as hurried, pytest.raises(ReaderDiedError) as caught:
        hurried.read(pdf(LEAFLET), ".pdf")
    assert caught.value.code == "reader_slow"
