from __future__ import annotations

from pathlib import Path

from polydesk_dagster.demo import documents
from polydesk_dagster.demo.places import SEATS
from polydesk_dagster.demo.prices import AGREEMENTS


def test_they_are_written_once_and_never_over_a_changed_one(tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    written = documents.write(folder)
    files = sorted(folder.iterdir())
    assert len(files) == written >= 12
    changed = folder / "domande-frequenti.md"
    changed.write_text("# Cambiato")
    files[0].unlink()
    assert documents.write(folder) == 1
    assert changed.read_text() == "# Cambiato"


def test_they_agree_with_the_chain(tmp_path: Path) -> None:
    documents.write(tmp_path)
    texts = {file.name: file.read_text(encoding="utf-8") for file in tmp_path.iterdir()}
    assert all(text.startswith("# ") for text in texts.values())
    for seat in SEATS[:4]:
        for _, street in seat.addresses:
            words = street.split(" / ")[0].split()
            assert words[0].lower() + " " + " ".join(words[1:]) in " ".join(texts["orari-e-sedi.md"].split())
    for name, *_ in AGREEMENTS:
        assert name.split(" – ")[0] in " ".join(texts["pagamenti-e-convenzioni.md"].split())
