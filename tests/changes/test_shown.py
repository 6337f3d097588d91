"""What people read of a plan's rows."""

from __future__ import annotations

import pytest

from polydesk_dagster.changes import registry
from polydesk_dagster.changes.fields import FIELD_NAMES, MEANINGLESS
from polydesk_dagster.changes.show import Row, difference


@pytest.mark.parametrize("name", registry.WHERE)
def test_every_field_that_a_plan_shows_has_an_italian_name(name: str) -> None:
    kind = registry.kind(name)
    identity = kind.identity if kind.identity != ("id",) else ()
    shown = {*identity, *kind.written, *kind.carried}
    assert shown - MEANINGLESS <= FIELD_NAMES.keys()
    assert not MEANINGLESS & FIELD_NAMES.keys()


def _row(action: str, before: dict[str, object], after: dict[str, object]) -> Row:
    return Row(1, action, "89.01", None, None, before, after)


def test_a_difference_is_told_by_italian_names_without_the_ids_that_mean_nothing() -> None:
    created = _row("create", {}, {"clinic_id": 1, "code": "89.01", "active": True, "preparation": None, "unheard": 2})
    assert difference(created) == "codice 89.01, attivo sì, unheard 2"
    assert difference(created, english=True) == "code 89.01, active True, unheard 2"
    assert difference(_row("delete", created.after, {})) == difference(created)
    changed = _row("update", {"amount": "130.00", "email": "a@b.it"}, {"amount": "91.00", "email": None})
    assert difference(changed, ("email",)) == "importo 130.00 → 91.00, email ••• → —"
