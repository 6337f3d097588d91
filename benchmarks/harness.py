"""What the benchmarks share: a server of their own, fresh databases, a figure, and the table of figures."""

from __future__ import annotations

import importlib
import resource
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from polydesk_dagster.database import embedded
from polydesk_dagster.database.engine import create_engine
from polydesk_dagster.database.migrate import create_database, migrate


@dataclass(frozen=True)
class Figure:
    """One measured number beside its reference."""

    benchmark: str
    figure: str
    ours: float
    reference: float
    unit: str
    target: float
    """The bound that the ratio ours ÷ reference must keep: an upper one, or with ``at_least`` a lower one."""
    at_least: bool = False
    peak_mb: float = 0.0

    @property
    def ratio(self) -> float:
        return self.ours / self.reference if self.reference else float("inf")

    @property
    def met(self) -> bool:
        return self.ratio >= self.target if self.at_least else self.ratio <= self.target

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "ratio": self.ratio, "met": self.met}


@dataclass(frozen=True)
class Bench:
    """Where a benchmark runs."""

    server: URL
    scale: float = 1.0
    """1.0 is the size the targets speak of; a smoke test shrinks it."""

    def size(self, whole: int) -> int:
        return max(1, int(whole * self.scale))

    @contextmanager
    def engine(self) -> Iterator[sa.Engine]:
        """A fresh, migrated database, dropped afterwards."""
        name = f"bench_{uuid.uuid4().hex[:8]}"
        url = self.server.set(database=name)
        create_database(url)
        engine = create_engine(url)
        try:
            migrate(engine)
            yield engine
        finally:
            engine.dispose()
            admin = create_engine(self.server.set(database="postgres"))
            with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
            admin.dispose()


def settle(engine: sa.Engine) -> None:
    """Let the server finish what it was left with: whoever is measured next shall not pay for whoever was before."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM ANALYZE"))
        connection.execute(sa.text("CHECKPOINT"))


@contextmanager
def bench(scale: float = 1.0) -> Iterator[Bench]:
    """A server for the benchmarks alone, with the settings that an installation has."""
    with TemporaryDirectory(prefix="polydesk-bench-", dir="/tmp") as folder:  # a socket's path must be short
        home = Path(folder)
        home.chmod(0o755)
        yield Bench(make_url(embedded.start(home)).set(drivername="postgresql+psycopg"), scale)
        embedded.stop(home, patience=5)


def measure(name: str, scale: float) -> list[dict[str, object]]:
    """The figures of one benchmark, in this process; here, because a spawned child cannot import ``__main__``."""
    with bench(scale) as where:
        module = importlib.import_module(f"benchmarks.{name}")
        return [figure.as_dict() for figure in module.figures(where)]


def seconds(action: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def server_of(engine: sa.Engine) -> psutil.Process:
    """The server's first process, of which all its others are children."""
    with engine.connect() as connection:
        backend = psutil.Process(connection.scalar(sa.text("SELECT pg_backend_pid()")))
    first = backend.parent()
    assert first is not None
    return first


def spent(server: psutil.Process) -> float:
    """CPU seconds of the server so far, its processes that have ended included; looked at again where one ends
    meanwhile, which would be counted as neither."""
    while True:
        ended = _ended(server)
        try:
            times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
        except psutil.NoSuchProcess:
            continue
        if _ended(server) == ended:
            return ended + sum(used.user + used.system for used in times)


def _ended(server: psutil.Process) -> float:
    used = server.cpu_times()
    return float(used.children_user + used.children_system)


def cpu(engine: sa.Engine, action: Callable[[], object]) -> float:
    """CPU seconds of one call, of this process and of the server: they do not depend on who else is at work."""
    server = server_of(engine)
    before = spent(server) + time.process_time()
    action()
    return spent(server) + time.process_time() - before


def in_turn(rounds: int, *ways: Callable[[], float]) -> tuple[float, ...]:
    """The medians of what each way measures, all of them in each round: a machine's speed changes meanwhile."""
    measured = [[way() for way in ways] for _ in range(rounds)]
    return tuple(median(each) for each in zip(*measured, strict=True))


def peak_mb() -> float:
    """The most memory this process has had resident so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
