"""``polydesk knowledge``: the documents of the assistant, what became of each, and what a person decides about it."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import Annotated, Any

import typer

from polydesk_dagster.commands import show as shown
from polydesk_dagster.commands.ask import Role
from polydesk_dagster.commands.installation import opened
from polydesk_dagster.commands.show import say
from polydesk_dagster.settings import person
from polydesk_dagster.values import Instant, Term

app = typer.Typer(no_args_is_help=True, add_completion=False)

Path = Annotated[str, typer.Argument(metavar="DOCUMENT")]
Why = Annotated[str, typer.Option("--reason", metavar="TEXT")]
Json = Annotated[bool, typer.Option("--json")]


@app.command("list")
def listed(
    waiting: Annotated[bool, typer.Option("--waiting")] = False,
    json: Json = False,
) -> None:
    """Elenca i documenti: stato, di chi sono, chi li può leggere, che cosa non è stato letto e perché."""
    from polydesk_dagster.knowledge import shelf
    from polydesk_dagster.resources.meaning import words_alone

    with opened() as installation, installation.engine.connect() as connection:
        documents = shelf.listed(connection, waiting=waiting)
        alone = words_alone(installation.settings)
    if json:
        told = None if alone is None else alone.as_dict()
        shown.as_json([{**_as_dict(document), "words_alone": told} for document in documents])
        return
    if alone:
        shown.out().print(shown.told().reason(alone), style="yellow")
    if not documents:
        shown.out().print(say("command.knowledge.none"))
        return
    t = shown.told()
    columns = [t.label("column", key) for key in ("document", "document_state", "document_of", "document_audience")]
    rows = [
        (
            document.path,
            _state(document),
            _whose(document),
            t.term("role", document.audience),
            " ".join(_waits_for(document)),
        )
        for document in documents
    ]
    shown.table(None, [*columns, t.label("column", "document_why")], rows)


@app.command()
def show(
    path: Path,
    text: Annotated[bool, typer.Option("--text")] = False,
    json: Json = False,
) -> None:
    """Mostra un documento: tutto quello che se ne sa e, con --text, i passaggi con cui risponde."""
    from polydesk_dagster.knowledge import shelf
    from polydesk_dagster.resources.knowledge import library

    with opened() as installation, installation.engine.connect() as connection:
        document = shelf.document(connection, path)
        passages = shelf.text(connection, library(installation.settings), document) if text or json else []
    if json:
        told = [{"text": hit.text, "headings": hit.headings, "page": hit.page} for hit in passages]
        shown.as_json({**_as_dict(document), "text": told})
        return
    console = shown.out()
    console.print(f"{document.path} — {_state(document)}", style="bold")
    console.print(say("command.knowledge.scope", of=_whose(document), role=Term("role", document.audience)))
    if document.valid_from or document.valid_to:
        console.print(say("command.knowledge.valid", first=document.valid_from, end=document.valid_to))
    if document.retracted_at:
        console.print(say("command.knowledge.retracted", at=Instant(document.retracted_at)), style="yellow")
    if document.stale_since:
        console.print(say("command.ask.stale", since=Instant(document.stale_since)), style="yellow")
    for sentence in _waits_for(document):
        console.print(sentence, style="yellow")
    console.print(say("command.knowledge.passages", count=document.passages))
    for hit in passages:
        place = [*hit.headings, *([say("command.ask.page", page=hit.page)] if hit.page else [])]
        console.print(f"\n{' › '.join(place)}", style="dim")
        console.print(hit.text)


@app.command()
def scope(
    path: Annotated[str, typer.Argument(metavar="DOCUMENT")],
    reason: Why,
    clinic: Annotated[str | None, typer.Option(metavar="CODE")] = None,
    chain: Annotated[bool, typer.Option("--chain")] = False,
    role: Annotated[Role | None, typer.Option()] = None,
    since: Annotated[str | None, typer.Option("--from")] = None,
    until: Annotated[str | None, typer.Option()] = None,
    json: Json = False,
) -> None:
    """Dice di chi è un documento o un'intera cartella, chi lo può leggere e per quanto tempo."""
    from polydesk_dagster.knowledge import shelf

    if (clinic is None) != chain:
        raise typer.BadParameter(say("command.knowledge.one_or_chain"))
    as_of, many = datetime.now(UTC), 1
    with opened() as installation, installation.engine.begin() as connection:
        if path.endswith("/") or shelf.is_folder(connection, path):
            if role or since or until:
                raise typer.BadParameter(say("command.knowledge.folder_only_clinic"))
            many = shelf.scope_folder(connection, path, clinic=clinic, actor=person(), reason=reason, as_of=as_of)
        else:
            many = shelf.scope(
                connection,
                path,
                clinic=clinic,
                audience=role,
                valid_from=_day(since),
                valid_to=_day(until),
                actor=person(),
                reason=reason,
                as_of=as_of,
            )
    _done({"path": path, "documents": many}, "command.knowledge.scoped", json=json, count=many)


@app.command()
def retract(
    path: Path,
    reason: Why,
    undo: Annotated[bool, typer.Option("--undo")] = False,
    json: Json = False,
) -> None:
    """Toglie subito un documento, e ogni sua copia, da tutte le risposte."""
    from polydesk_dagster.knowledge import shelf

    with opened() as installation, installation.engine.begin() as connection:
        shelf.retract(connection, path, undo=undo, actor=person(), reason=reason, as_of=datetime.now(UTC))
    name = "command.knowledge.unretracted" if undo else "command.knowledge.taken_out"
    _done({"path": path, "retracted": not undo}, name, json=json, path=path)


@app.command()
def clear(path: Path, reason: Why, json: Json = False) -> None:
    """Dice che qualcuno ha guardato un documento: può rispondere così com'è, finché non cambia."""
    from polydesk_dagster.knowledge import shelf

    with opened() as installation, installation.engine.begin() as connection:
        shelf.clear(connection, path, actor=person(), reason=reason, as_of=datetime.now(UTC))
    _done({"path": path, "cleared": True}, "command.knowledge.cleared", json=json, path=path)


@app.command()
def probes(
    add: Annotated[str | None, typer.Option(metavar="QUESTION")] = None,
    document: Annotated[str | None, typer.Option()] = None,
    remove: Annotated[int | None, typer.Option()] = None,
    json: Json = False,
) -> None:
    """Elenca, aggiunge o toglie le domande a cui ogni nuova generazione dell'indice deve saper rispondere."""
    from polydesk_dagster.knowledge import shelf

    if (add is None) != (document is None):
        raise typer.BadParameter(say("command.knowledge.question_and_document"))
    with opened() as installation, installation.engine.begin() as connection:
        if add is not None and document is not None:
            shelf.add_probe(connection, add, document)
        if remove is not None and not shelf.remove_probe(connection, remove):
            raise typer.BadParameter(say("command.knowledge.no_probe", number=remove))
        found = shelf.probes(connection)
    if json:
        shown.as_json([{"id": number, "question": question, "document": path} for number, question, path in found])
        return
    if not found:
        shown.out().print(say("command.knowledge.no_probes"))
        return
    t = shown.told()
    shown.table(None, [t.label("column", key) for key in ("probe_number", "probe_question", "document")], found)


@app.command()
def questions(
    number: Annotated[int | None, typer.Argument(metavar="NUMBER")] = None,
    document: Annotated[str | None, typer.Option()] = None,
    dismiss: Annotated[bool, typer.Option("--dismiss")] = False,
    json: Json = False,
) -> None:
    """Elenca le domande che i documenti hanno lasciato aperte, o dice quale documento risponde a una di loro."""
    from polydesk_dagster.knowledge import unanswered

    if (number is not None) != ((document is not None) != dismiss):
        raise typer.BadParameter(say("command.knowledge.which_question"))
    with opened() as installation, installation.engine.begin() as connection:
        if number is not None:
            unanswered.settle(connection, number, document, actor=person(), as_of=datetime.now(UTC))
        found = unanswered.listed(connection)
    if json:
        shown.as_json([asdict(each) for each in found])
        return
    if not found:
        shown.out().print(say("command.knowledge.no_questions"))
        return
    t = shown.told()
    columns = ("probe_number", "probe_question", "question_kind", "clinic", "question_times", "question_last")
    rows = [
        (
            each.id,
            each.question,
            t.term("question_kind", each.kind),
            each.clinic,
            each.times,
            t.value(Instant(each.last_at)),
        )
        for each in found
    ]
    shown.table(None, [t.label("column", key) for key in columns], rows)


@app.command("words")
def lay_words(
    lay: Annotated[str | None, typer.Argument(metavar="WORDS")] = None,
    clinical: Annotated[str | None, typer.Option("--means")] = None,
    remove: Annotated[bool, typer.Option("--remove")] = False,
    json: Json = False,
) -> None:
    """Elenca, aggiunge o toglie le parole della gente per quelle dei documenti (favismo: G6PD)."""
    from polydesk_dagster.knowledge import shelf

    if (lay is None) != (clinical is None):
        raise typer.BadParameter(say("command.knowledge.words_and_means"))
    with opened() as installation, installation.engine.begin() as connection:
        if lay is not None and clinical is not None:
            shelf.set_lay_word(connection, lay, clinical, remove=remove)
        found = shelf.lay_words(connection)
    if json:
        shown.as_json([{"lay": said, "clinical": meant} for said, meant in found])
        return
    t = shown.told()
    shown.table(None, [t.label("column", key) for key in ("lay_word", "clinical_word")], found)


def _as_dict(document: Any) -> dict[str, Any]:
    told = asdict(document)
    told.pop("key")
    return {**told, "why": None if document.why is None else document.why.as_dict()}


def _state(document: Any) -> str:
    return shown.told().term("document_state", "retracted" if document.retracted_at else document.state)


def _waits_for(document: Any) -> list[str]:
    """Why nobody is given it, and what of it was not read."""
    nobodys = [shown.told().text("web.nobodys_document")] if document.scoped_by == "nobody" else []
    return nobodys + ([] if document.why is None else [shown.told().reason(document.why)])


def _whose(document: Any) -> str:
    if document.scoped_by == "nobody":
        return say("command.knowledge.nobodys")
    return document.clinic or say("command.knowledge.chain")


def _day(text: str | None) -> date | None:
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(say("command.knowledge.day", text=text)) from None


def _done(result: dict[str, Any], name: str, /, *, json: bool, **values: Any) -> None:
    if json:
        shown.as_json(result)
    else:
        shown.out().print(say(name, **values))
