"""How a customised text is called in plans: what it is for, how and in which language it goes, and whose it is."""

from __future__ import annotations

from polydesk_dagster.changes.why import term, why


def named(row: str, clinic: str) -> str:
    """SQL for the name of ``row``, an alias with a text's columns, of the clinic whose code ``clinic`` is (null: the
    whole chain); a kind with ``told`` shows it."""
    columns = {"kind": "message_kind", "variant": "message_variant", "channel": "channel"}
    values = {name: term(domain, f"{row}.{name}") for name, domain in columns.items()}
    values["language"] = term("language", f"coalesce({row}.language, 'it')")  # blank in a workbook, it is Italian
    return f"""CASE WHEN {clinic} IS NULL THEN {why("text_of_chain", **values)}
                    ELSE {why("text_of_clinic", whose=clinic, **values)} END"""
