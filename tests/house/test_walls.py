"""Who may know whom: the walls of the house, held by reading its imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata
from dagster._core.storage.runs.schema import RunStorageSqlMetadata
from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata

PACKAGE = Path(__file__).resolve().parents[2] / "polydesk_dagster"
RULES = ("clinic", "changes", "sources", "knowledge")
FRONT = ("assets", "jobs", "sensors", "schedules", "checks")
DEFINING = ("assets", "jobs", "sensors", "checks", "resources")


def _modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts), path


@cache
def _nodes(path: Path) -> tuple[ast.AST, ...]:
    """Read once, however many walls look at it."""
    return tuple(ast.walk(ast.parse(path.read_text())))


@cache
def _imports(path: Path) -> frozenset[str]:
    found: set[str] = set()
    for node in _nodes(path):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


ALL = list(_modules())


def _of(*packages: str) -> list[tuple[str, Path]]:
    return [(name, path) for name, path in ALL if name.split(".")[0] in packages]


def _ids(modules: list[tuple[str, Path]]) -> list[str]:
    return [name for name, _ in modules]


@pytest.mark.parametrize(("name", "path"), _of(*RULES, "database"), ids=_ids(_of(*RULES, "database")))
def test_rules_and_database_never_know_dagster_or_who_calls_them(name: str, path: Path) -> None:
    forbidden = ("dagster", *(f"polydesk_dagster.{part}" for part in (*FRONT, "resources", "running", "build", "cli")))
    assert not [i for i in _imports(path) if any(_within(i, wall) for wall in forbidden)]


@pytest.mark.parametrize(("name", "path"), _of(*RULES), ids=_ids(_of(*RULES)))
def test_rules_never_read_the_clock_or_the_environment(name: str, path: Path) -> None:
    calls = {ast.unparse(node.func) for node in _nodes(path) if isinstance(node, ast.Call)}
    reads = {ast.unparse(node) for node in _nodes(path) if isinstance(node, ast.Attribute)}
    assert not calls & {"datetime.now", "datetime.utcnow", "date.today", "time.time", "os.getenv", "datetime.today"}
    assert "os.environ" not in reads
    sql = path.read_text().lower()
    for clock in ("current_timestamp", "current_date", "localtimestamp", "clock_timestamp()"):
        assert clock not in sql, f"{name} asks the database for the time"


@pytest.mark.parametrize(("name", "path"), _of("front"), ids=_ids(_of("front")))
def test_the_front_knows_neither_sessions_nor_pages_nor_dagster(name: str, path: Path) -> None:
    forbidden = ("dagster", *(f"polydesk_dagster.{part}" for part in ("web", "runtime", *FRONT, "commands")))
    assert not [i for i in _imports(path) if any(_within(i, wall) for wall in forbidden)]


@pytest.mark.parametrize(("name", "path"), _of("database"), ids=_ids(_of("database")))
def test_the_database_knows_no_rule(name: str, path: Path) -> None:
    forbidden = tuple(f"polydesk_dagster.{part}" for part in RULES)
    assert not [i for i in _imports(path) if any(_within(i, wall) for wall in forbidden)]


@pytest.mark.parametrize(("name", "path"), ALL, ids=_ids(ALL))
def test_only_the_command_knows_the_demo(name: str, path: Path) -> None:
    if name.split(".", maxsplit=1)[0] not in {"demo", "cli", "commands"}:
        assert not [i for i in _imports(path) if _within(i, "polydesk_dagster.demo")]


READS_THE_ENVIRONMENT = {"settings", "resources", "runtime", "commands", "cli", "demo"}


@pytest.mark.parametrize(("name", "path"), ALL, ids=_ids(ALL))
def test_only_resources_and_settings_read_configuration(name: str, path: Path) -> None:
    if name.split(".", maxsplit=1)[0] not in READS_THE_ENVIRONMENT:
        reads = {ast.unparse(n) for n in _nodes(path) if isinstance(n, ast.Attribute)}
        assert "os.environ" not in reads


@pytest.mark.parametrize(("name", "path"), ALL, ids=_ids(ALL))
def test_no_python_of_ours_looks_for_modules_where_the_operator_stands(name: str, path: Path) -> None:
    words = [node.elts for node in _nodes(path) if isinstance(node, ast.List | ast.Tuple) and len(node.elts) > 1]
    started = [ast.unparse(second) for first, second, *_ in words if ast.unparse(first) == "sys.executable"]
    assert not [flag for flag in started if flag not in {"'-P'", "'-I'"}]


@pytest.mark.parametrize(("name", "path"), _of(*DEFINING), ids=_ids(_of(*DEFINING)))
def test_what_dagster_reads_keeps_its_annotations(name: str, path: Path) -> None:
    assert "__future__" not in _imports(path)


def test_there_is_no_circle() -> None:
    """Of modules, whether they import at module level or inside a function."""
    known = {name.removesuffix(".__init__") for name, _ in ALL}
    graph: dict[str, set[str]] = {}
    for name, path in ALL:
        module = name.removesuffix(".__init__")
        found = {i.removeprefix("polydesk_dagster.") for i in _imports(path) if i.startswith("polydesk_dagster.")}
        graph[module] = {i for i in found if i in known and i != module and not module.startswith(f"{i}.")}
    assert list(TopologicalSorter(graph).static_order())


@cache
def _dagsters_tables() -> re.Pattern[str]:
    schemas = (RunStorageSqlMetadata, SqlEventLogStorageMetadata, ScheduleStorageSqlMetadata)
    names = "|".join(sorted({table for schema in schemas for table in schema.tables}))
    return re.compile(rf"\b(from|join|into|update|to_regclass\(')\s*({names})\b(?!\s+import)", re.IGNORECASE)


CONNECTS = re.compile(r"(Async)?(Client|HTTPTransport)|(get|post|put|patch|delete|head|options|request|stream)")


@pytest.mark.parametrize(("name", "path"), ALL, ids=_ids(ALL))
def test_nobody_connects_but_to_addresses_that_were_looked_at(name: str, path: Path) -> None:
    """``network`` makes the transports; a simulator of the demo talks to this machine alone."""
    if name == "network" or _within(name, "demo.simulators"):
        return
    calls = [node for node in _nodes(path) if isinstance(node, ast.Call)]
    made = [
        call
        for call in calls
        if (called := ast.unparse(call.func)).startswith("httpx.") and CONNECTS.fullmatch(called.removeprefix("httpx."))
    ]
    by = [{word.arg: ast.unparse(word.value) for word in call.keywords} for call in made]
    assert all(re.match(r"network\.(async_)?transport\(", words.get("transport", "")) for words in by)
    assert all(words.get("trust_env") == "False" for words in by), "a proxy of the environment looks names up itself"
    if name == "runtime.processes":  # asks our own processes whether they are up, at addresses that it made itself
        return
    others = ("requests", "urllib.request", "urllib3", "http.client", "aiohttp", "httpx2")
    assert not [i for i in _imports(path) if any(_within(i, other) for other in others)]
    assert not [i for i in _imports(path) if i.startswith("httpx.")], "named as httpx. it can be found"
    authlib = "authlib.integrations"
    assert name in {"web.oidc", "web.oidc_client"} or not [i for i in _imports(path) if _within(i, authlib)]


INSIDE = "runtime.dagster_inside"


@pytest.mark.parametrize(("name", "path"), ALL, ids=_ids(ALL))
def test_only_one_room_touches_dagsters_inside(name: str, path: Path) -> None:
    if _within(name, INSIDE):
        return
    assert not [i for i in _imports(path) if i.startswith("dagster._")]
    texts = [n.value for n in _nodes(path) if isinstance(n, ast.Constant)]
    said = [text for text in texts if isinstance(text, str)]
    assert not [text for text in said if "dagster._" in text or _dagsters_tables().search(text)]


DECLARED = re.compile(r'^(revision|down_revision) = (?:"(\d+)"|None)', re.MULTILINE)


def test_migrations_are_one_line_of_numbers() -> None:
    before = None
    for path in sorted((PACKAGE / "database" / "migrations" / "versions").glob("[0-9]*.py")):
        declared = {name: number or None for name, number in DECLARED.findall(path.read_text())}
        assert declared == {"revision": path.name.partition("_")[0], "down_revision": before}, path.name
        before = declared["revision"]


LONG = 400


@pytest.mark.parametrize(("name", "path"), ALL, ids=_ids(ALL))
def test_a_module_is_about_one_thing(name: str, path: Path) -> None:
    """A migration is a story of its own; whatever else passes 400 lines does two things."""
    if not _within(name, "database.migrations.versions"):
        assert len(path.read_text().splitlines()) <= LONG


LONG_TESTS = 450


def test_modules_of_tests_are_about_one_thing_too() -> None:
    """Cases are many lines; what passes 450 tests two things."""
    lengths = {path.name: len(path.read_text().splitlines()) for path in (PACKAGE.parent / "tests").rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > LONG_TESTS} == {}
