"""What tests share: one PostgreSQL server a session, however many processes run it, and a database a test."""

from __future__ import annotations

import gc
import inspect
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from sqlalchemy.engine import URL, make_url
from xdist.scheduler import LoadScopeScheduling

from polydesk_dagster.clinic.calendar import slots
from polydesk_dagster.database.engine import create_engine
from tests import postgres, world
from tests.forked import forked
from tests.lent import FILLS, lent
from tests.waiting import PATIENCE

DATA = Path(__file__).parent / "data"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)

_open = pytest.StashKey[ExitStack]()
_server = pytest.StashKey[str]()


# How long a machine takes that others keep busy says nothing of what is tested.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")

# Whoever asks over HTTP without a word on time has said nothing either; what we ship always says it.
unsaid = inspect.signature(httpx.Client).parameters["timeout"].default
unsaid.connect = unsaid.read = unsaid.write = unsaid.pool = PATIENCE

# The certificates that are believed are read at every client, 20 ms; no test that does not bring its own changes them.
httpx._transports.default.create_ssl_context = cache(httpx.create_ssl_context)

gc.set_threshold(50_000)  # what is imported stays: looking through it again and again is a good part of the start


def pytest_collection_finish() -> None:
    gc.freeze()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where nothing slow is asked for, a file that has nothing else is not imported: in every process it would be, and
    the libraries of some are asked for by nobody else."""
    nothing_slow = config.getoption("markexpr") == "not slow" and collection_path.name.startswith("test_")
    return True if nothing_slow and _WHOLLY_SLOW.search(collection_path.read_text()) else None


_WHOLLY_SLOW = re.compile(r"^pytestmark = .*\bpytest\.mark\.slow\b", re.MULTILINE)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fast tests first, so that what is wrong shows soon; where processes share the work slow ones, so that none is
    left with a long one at the end. Order inside each half stays."""
    shared = hasattr(config, "workerinput")
    items.sort(key=lambda item: (item.get_closest_marker("slow") is not None) is not shared)


class _Units(LoadScopeScheduling):
    """Hands a process one test at a time, with all its parameters; a file at a time where its tests share a world or
    what one of them has read."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if _shared(self.config.rootpath / file) else nodeid.partition("[")[0]


@cache
def _shared(file: Path) -> bool:
    return _KEPT.search(file.read_text()) is not None


_KEPT = re.compile(r'scope="module"|^@cache$', re.MULTILINE)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    return _Units(config, log) if config.getoption("dist") == "load" else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two a core, and two more, as forks cost little: half of its time a test waits for others, for PostgreSQL, for a
    process to start or to end."""
    return 2 * (os.cpu_count() or 1) + 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    python = _opened(config).enter_context(forked(config.invocation_params.args))
    for spec in specs:
        if spec.popen and not spec.python:
            spec.python = python


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """The process that hands out the tests starts the server and tells each of its workers where it is."""
    stash = node.config.stash
    if _server not in stash:
        stash[_server] = _opened(node.config).enter_context(postgres.started()).render_as_string(hide_password=False)
    node.workerinput["server"] = stash[_server]


def _opened(config: pytest.Config) -> ExitStack:
    return config.stash.setdefault(_open, ExitStack())


def pytest_unconfigure(config: pytest.Config) -> None:
    if _open in config.stash:
        config.stash[_open].close()


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """A command that a test runs in this process has it to itself, and changes it: its environment and umask, what it
    does at a signal, the language that it speaks. The next test finds it as this one did."""
    mask = os.umask(0o022)
    os.umask(mask)
    environment, folder, path = os.environ.copy(), Path.cwd(), sys.path[:]
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    root = logging.getLogger()
    level, receivers = root.level, root.handlers[:]
    yield
    os.umask(mask)
    if os.environ != environment:
        os.environ.clear()
        os.environ.update(environment)
    os.chdir(folder)
    sys.path[:] = path
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)
    root.setLevel(level)
    root.handlers[:] = receivers
    if (show := sys.modules.get("polydesk_dagster.commands.show")) is not None:
        show.speak("it")


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[URL]:
    """The PostgreSQL server of this session; its databases are the tests' own."""
    told = getattr(request.config, "workerinput", {}).get("server")
    if told is not None:
        yield make_url(told)
        return
    with postgres.started() as url:
        yield url


@pytest.fixture
def _lent(request: pytest.FixtureRequest, server: URL) -> Iterator[tuple[sa.Engine, Any]]:
    fill = next((FILLS[name] for name in request.fixturenames if name in FILLS), None)
    with lent(server, postgres.EMPTY, fill) as found:
        yield found


@pytest.fixture
def engine(_lent: tuple[sa.Engine, Any]) -> sa.Engine:
    """A migrated, empty database of this test."""
    return _lent[0]


@pytest.fixture
def database(engine: sa.Engine) -> URL:
    return engine.url


@pytest.fixture
def small_chain(server: URL) -> Iterator[sa.Engine]:
    """A database of this test with the demo chain of size ``small`` in it, as of ``world.AS_OF``."""
    with postgres.copied(server, postgres.SMALL_CHAIN) as url:
        engine = create_engine(url)
        yield engine
        engine.dispose()


@pytest.fixture(scope="session")
def unwritten(server: URL) -> Iterator[sa.Engine]:
    """A migrated, empty database in which nothing is ever committed."""
    with postgres.copied(server, postgres.EMPTY) as url:
        engine = create_engine(url)
        sa.event.listen(engine, "commit", _refuse)
        yield engine
        engine.dispose()


def _refuse(_connection: sa.Connection) -> None:
    raise AssertionError("what is committed is for a database of the test's own: ask for `engine` too")


@pytest.fixture
def connection(request: pytest.FixtureRequest) -> Iterator[sa.Connection]:
    """A connection in a transaction that is rolled back at the end; to the test's own database if it has one."""
    own = "engine" in request.fixturenames
    engine: sa.Engine = request.getfixturevalue("engine" if own else "unwritten")
    with engine.connect() as connection:
        yield connection


def _practice(engine: sa.Engine) -> world.Practice:
    with engine.begin() as connection:
        practice = world.practice(connection, horizon_days=14)
    slots.generate(engine, world.AS_OF)
    return practice


FILLS["_practised"] = _practice


@pytest.fixture
def _practised(_lent: tuple[sa.Engine, Any]) -> Any:
    return _lent[1]


@pytest.fixture
def practice(_practised: world.Practice) -> world.Practice:
    """A practice with two weeks of slots, in the test's own database; a module that wants another has its own."""
    return _practised


@pytest.fixture(scope="session")
def _storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import dagster as dg

    folder = tmp_path_factory.mktemp("dagster")
    with dg.DagsterInstance.local_temp(str(folder)):
        return folder


@pytest.fixture
def instance(_storage: Path, tmp_path: Path) -> Iterator[Any]:
    """A Dagster with its storage in the test's folder, copied: to make its tables takes 0.2 s of processor time."""
    import dagster as dg

    shutil.copytree(_storage, tmp_path, dirs_exist_ok=True)
    with dg.DagsterInstance.local_temp(str(tmp_path)) as opened:
        yield opened


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real public data; its README says where each file is from."""
    return DATA
