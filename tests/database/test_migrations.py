"""What the program takes for the newest migration is what Alembic takes for it."""

from __future__ import annotations

from alembic.script import ScriptDirectory

from polydesk_dagster.database.migrate import _config, head


def test_the_newest_is_the_one_that_alembic_means() -> None:
    assert head() == ScriptDirectory.from_config(_config()).get_current_head()
