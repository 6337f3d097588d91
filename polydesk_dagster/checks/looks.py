"""Checks that look one after another at what a step has made, as one step of their own."""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime

import dagster as dg
import sqlalchemy as sa

from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.runtime.dagster_inside.outputs import together
from polydesk_dagster.told import teller

Look = Callable[[sa.Connection, datetime], dg.AssetCheckResult]


def checks_of(asset: dg.AssetKey, looks: Mapping[str, Look]) -> dg.AssetChecksDefinition:
    """A check of ``asset`` for each of ``looks``, by name; what it is about is ``check.<name>``.

    A step costs a run as much as all that it looks at here. A look that breaks off fails the step once the others have
    said what they found.
    """
    told = teller()

    @dg.multi_asset_check(
        name="_".join((*asset.path, "looked_at")),
        specs=[dg.AssetCheckSpec(name, asset=asset, description=told.text(f"check.{name}")) for name in looks],
        can_subset=True,
    )
    def step(context: dg.AssetCheckExecutionContext, polydesk: PolydeskResource) -> Iterator[dg.AssetCheckResult]:
        asked = {key.name for key in context.selected_asset_check_keys}
        broken: list[Exception] = []

        def results() -> Iterator[dg.AssetCheckResult]:
            for name in (each for each in looks if each in asked):
                try:
                    with polydesk.looking() as connection:
                        found = looks[name](connection, polydesk.now())
                except Exception as error:  # noqa: BLE001 - whatever it is, it is raised when all have looked
                    broken.append(error)
                else:
                    yield found._replace(asset_key=asset, check_name=name)

        yield from together(results())
        if broken:
            raise broken[0]

    return step
