"""The migrations are one line of numbers, each built on the one before."""

from __future__ import annotations

import re

from alembic.script import ScriptDirectory

from polydesk_dagster.database.migrate import MIGRATIONS, _config, head

DECLARED = re.compile(r'^(revision|down_revision) = (?:"(\d+)"|None)', re.MULTILINE)


def test_each_number_is_taken_once_and_follows_the_one_before() -> None:
    before = None
    for path in sorted((MIGRATIONS / "versions").glob("[0-9]*.py")):
        declared = {name: number or None for name, number in DECLARED.findall(path.read_text())}
        assert declared == {"revision": path.name.partition("_")[0], "down_revision": before}, path.name
        before = declared["revision"]


def test_the_newest_is_the_one_that_alembic_means() -> None:
    assert head() == ScriptDirectory.from_config(_config()).get_current_head()
