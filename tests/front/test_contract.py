"""The booking API beside its own description: requests that fit it and requests that do not, over a socket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import positive_data_acceptance, unsupported_method

from polydesk_dagster.database.engine import create_engine
from polydesk_dagster.front.booking import application as booking
from polydesk_dagster.front.booking.access import Front
from polydesk_dagster.pace import Buckets
from tests import postgres
from tests.front.desk import EVERY, Desk, open_desk

pytestmark = pytest.mark.slow

load_all_checks()

# What fits may be refused all the same: there is nothing under a key that was made up. The guard answers some methods
# before the API is asked.
NOT_ASKED = [positive_data_acceptance, unsupported_method]

NOWHERE = "postgresql+psycopg://"


@pytest.fixture(scope="module")
def desk(server: sa.URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with postgres.copied(server, postgres.EMPTY) as url:
        engine = create_engine(url)
        without_end = {"visitors": Buckets(1e6, 1e6), "front_ends": Buckets(1e6, 1e6)}
        with open_desk(engine, tmp_path_factory.mktemp("home"), **without_end) as opened:
            yield opened
        engine.dispose()


@pytest.fixture(scope="module")
def token(desk: Desk) -> str:
    return desk.token(EVERY)


schema = schemathesis.openapi.from_dict(booking.application(Front(create_engine(sa.make_url(NOWHERE)))).openapi())
"""What the API publishes; no database is asked for it."""


@schema.parametrize()
@settings(
    max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate]
)
def test_every_answer_is_as_described_whatever_is_asked(case: schemathesis.Case, desk: Desk, token: str) -> None:
    case.call_and_validate(
        base_url=f"{desk.door.origin}/api/booking",
        headers={"Authorization": f"Bearer {token}"},
        excluded_checks=NOT_ASKED,
    )
