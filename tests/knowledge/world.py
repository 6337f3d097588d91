"""A folder of documents and an index of it, for tests."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

import sqlalchemy as sa

from polydesk_dagster.knowledge import indexing, searching
from polydesk_dagster.knowledge.embedding import Embedder
from polydesk_dagster.knowledge.library import Library
from polydesk_dagster.outcome import Report

AS_OF = datetime(2026, 3, 10, 9, 0, tzinfo=UTC)

TOPICS = {
    "colonscopia": "Prima della colonscopia seguire una dieta senza scorie per tre giorni e assumere il lassativo.",
    "prelievo": "Per il prelievo del sangue presentarsi a digiuno da almeno otto ore, bevendo solo acqua.",
    "risonanza": "La risonanza magnetica non si esegue con pacemaker: togliere orologi, anelli e protesi metalliche.",
    "parcheggio": "Il parcheggio sotterraneo è gratuito per le prime due ore mostrando la ricevuta alla cassa.",
    "rimborso": "Il rimborso dell'assicurazione si chiede entro sessanta giorni allegando la fattura quietanzata.",
    "ecografia": "L'ecografia addominale richiede il digiuno da sei ore e la vescica piena.",
    "vaccino": "Il vaccino antinfluenzale si prenota da ottobre; portare la tessera delle vaccinazioni.",
    "disdetta": "La disdetta di una visita si comunica almeno ventiquattro ore prima, anche per telefono.",
    "referto": "Il referto si ritira allo sportello con un documento oppure si scarica dal portale.",
    "ortopedia": "In ortopedia portare le radiografie precedenti e calzature comode per la prova del passo.",
}


def short_documents(folder: Path) -> None:
    """The demo's documents, none longer than a sentence or two: a vector costs by the word, where what a night does is
    the point and not what it reads."""
    folder.mkdir(mode=0o700)
    for document in (resources.files("polydesk_dagster.demo") / "knowledge").iterdir():
        (folder / document.name).touch(0o600)
        (folder / document.name).write_text(document.read_text()[:200])


@dataclass
class Shelf:
    """The library under test."""

    engine: sa.Engine
    home: Path
    embedder: Embedder | None = None
    library: Library = field(init=False)

    def __post_init__(self) -> None:
        (self.home / "documents").mkdir(exist_ok=True)
        self.library = Library(self.home / "documents", str(self.home / "index"), self.embedder)

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.library.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    def said(self, folder: str, clinic: str | None = None) -> None:
        """Somebody says whose a folder is; without a clinic, the whole chain's."""
        self.sql(
            "INSERT INTO knowledge_folder (name, clinic_id, said_by, said_at, reason) "
            "VALUES (:name, (SELECT id FROM clinic WHERE code = :clinic), 'prova', :at, '-')",
            name=folder,
            clinic=clinic,
            at=AS_OF,
        )

    def topics(self) -> None:
        for name, text in TOPICS.items():
            self.write(f"{name}.md", f"# {name.capitalize()}\n\n{text}\n")

    def blue(self, **options: object) -> Report:
        return indexing.refresh(self.engine, AS_OF, self.library, **options)  # type: ignore[arg-type]

    def yellow(self, **options: object) -> Report:
        return indexing.rebuild(self.engine, AS_OF, self.library, **options)  # type: ignore[arg-type]

    def ask(self, question: str, **options: object) -> list[str]:
        """The paths of the documents that answer, best first."""
        answer = searching.ask(self.engine, AS_OF, self.library, question, **options)  # type: ignore[arg-type]
        return list(dict.fromkeys(source.path for found in answer.passages for source in found.sources))

    def sql(self, statement: str, **values: object) -> list[sa.Row]:
        with self.engine.begin() as connection:
            result = connection.execute(sa.text(statement), values)
            return list(result) if result.returns_rows else []

    def whole(self) -> None:
        """What PostgreSQL declares of the current generation is exactly what LanceDB holds, words included."""
        from collections import Counter

        from polydesk_dagster.knowledge.store import Store
        from polydesk_dagster.knowledge.text import words

        ((generation,),) = self.sql("SELECT id FROM knowledge_generation WHERE state = 'current'")
        store = Store(self.library.uri)
        contents = self.sql("SELECT key, state, passages FROM knowledge_content WHERE generation_id = :g", g=generation)
        assert {row.state for row in contents} <= {"ready"}
        assert store.passages_by_key(generation) == {row.key: row.passages for row in contents}
        counted: Counter[str] = Counter()
        for text in store.marked(generation, [row.key for row in contents]):
            counted.update(set(words(text)))
        terms = self.sql("SELECT term, passages FROM knowledge_term WHERE generation_id = :g", g=generation)
        assert dict(counted) == {row.term: row.passages for row in terms}


def older(path: Path) -> None:
    """Make a file look a day older, as a copy that keeps its times would."""
    status = path.stat()
    os.utime(path, (status.st_atime - 86_400, status.st_mtime - 86_400))
