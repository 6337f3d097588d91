"""Who may know whom: the walls of the house, held by reading its imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

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


def _knowing(modules: list[tuple[str, Path]], *forbidden: str) -> dict[str, set[str]]:
    """What of that which none of ``modules`` may import those do that import it."""
    assert modules
    met = {name: {i for i in _imports(path) if any(_within(i, wall) for wall in forbidden)} for name, path in modules}
    return {name: known for name, known in met.items() if known}


def _ours(*parts: str) -> Iterator[str]:
    return (f"polydesk_dagster.{part}" for part in parts)


def test_rules_and_database_never_know_dagster_or_who_calls_them() -> None:
    assert _knowing(_of(*RULES, "database"), "dagster", *_ours(*FRONT, "resources", "running", "build", "cli")) == {}


CLOCKS = {"datetime.now", "datetime.utcnow", "date.today", "time.time", "os.getenv", "datetime.today"}
SQL_CLOCKS = {"current_timestamp", "current_date", "localtimestamp", "clock_timestamp()"}


def test_rules_never_read_the_clock_or_the_environment() -> None:
    asked: dict[str, set[str]] = {}
    for name, path in _of(*RULES):
        calls = {ast.unparse(node.func) for node in _nodes(path) if isinstance(node, ast.Call)}
        sql = path.read_text().lower()
        asked[name] = calls & CLOCKS | {clock for clock in SQL_CLOCKS if clock in sql}
        if _reads_the_environment(path):
            asked[name].add("os.environ")
    assert asked
    assert {name: found for name, found in asked.items() if found} == {}


def _reads_the_environment(path: Path) -> bool:
    return "os.environ" in {ast.unparse(node) for node in _nodes(path) if isinstance(node, ast.Attribute)}


def test_the_front_knows_neither_sessions_nor_pages_nor_dagster() -> None:
    assert _knowing(_of("front"), "dagster", *_ours("web", "runtime", *FRONT, "commands")) == {}


def test_the_database_knows_no_rule() -> None:
    assert _knowing(_of("database"), *_ours(*RULES)) == {}


def test_only_the_command_knows_the_demo() -> None:
    others = [(name, path) for name, path in ALL if name.split(".")[0] not in {"demo", "cli", "commands"}]
    assert _knowing(others, *_ours("demo")) == {}


READS_THE_ENVIRONMENT = {"settings", "resources", "runtime", "commands", "cli", "demo"}


def test_only_resources_and_settings_read_configuration() -> None:
    others = [(name, path) for name, path in ALL if name.split(".")[0] not in READS_THE_ENVIRONMENT]
    assert others
    assert [name for name, path in others if _reads_the_environment(path)] == []


def test_no_python_of_ours_looks_for_modules_where_the_operator_stands() -> None:
    started = {name: list(_flags_of_pythons(path)) for name, path in ALL}
    assert any(started.values())
    assert {name: flags for name, flags in started.items() if not {"'-P'", "'-I'"}.issuperset(flags)} == {}


def _flags_of_pythons(path: Path) -> Iterator[str]:
    """What follows the interpreter in each list of words that begins with it."""
    words = [node.elts for node in _nodes(path) if isinstance(node, ast.List | ast.Tuple) and len(node.elts) > 1]
    return (ast.unparse(second) for first, second, *_ in words if ast.unparse(first) == "sys.executable")


def test_what_dagster_reads_keeps_its_annotations() -> None:
    assert _knowing(_of(*DEFINING), "__future__") == {}


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


ASKS_ITSELF = {"runtime.processes"}
"""Whether our own processes are up, at addresses that it made itself."""
OTHER_CLIENTS = ("requests", "urllib.request", "urllib3", "http.client", "aiohttp", "httpx2")
SIGNS_IN = {"web.oidc", "web.oidc_client"}


def test_nobody_connects_but_to_addresses_that_were_looked_at() -> None:
    """``network`` makes the transports; a simulator of the demo talks to this machine alone."""
    others = [(name, path) for name, path in ALL if name != "network" and not _within(name, "demo.simulators")]
    made = {name: list(_clients(path)) for name, path in others}
    assert any(made.values())
    looked_at = re.compile(r"network\.(async_)?transport\(")
    straight = [n for n, by in made.items() if not all(looked_at.match(words.get("transport", "")) for words in by)]
    assert straight == []
    trusting = [n for n, by in made.items() if not all(words.get("trust_env") == "False" for words in by)]
    assert trusting == [], "a proxy of the environment looks names up itself"
    asking = [(name, path) for name, path in others if name not in ASKS_ITSELF]
    assert _knowing(asking, *OTHER_CLIENTS) == {}
    assert [n for n, path in asking if any(i.startswith("httpx.") for i in _imports(path))] == [], "named as httpx."
    assert _knowing([(n, path) for n, path in asking if n not in SIGNS_IN], "authlib.integrations") == {}


def _clients(path: Path) -> Iterator[dict[str | None, str]]:
    """What each client of httpx that a module makes is given by name."""
    for node in _nodes(path):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called.startswith("httpx.") and CONNECTS.fullmatch(called.removeprefix("httpx.")):
                yield {word.arg: ast.unparse(word.value) for word in node.keywords}


INSIDE = "runtime.dagster_inside"


def test_only_one_room_touches_dagsters_inside() -> None:
    outside = [(name, path) for name, path in ALL if not _within(name, INSIDE)]
    assert [name for name, path in outside if any(i.startswith("dagster._") for i in _imports(path))] == []
    assert [name for name, path in outside if any(map(_names_the_inside, _texts(path)))] == []


def _texts(path: Path) -> Iterator[str]:
    return (n.value for n in _nodes(path) if isinstance(n, ast.Constant) and isinstance(n.value, str))


def _names_the_inside(text: str) -> bool:
    return "dagster._" in text or _dagsters_tables().search(text) is not None


DECLARED = re.compile(r'^(revision|down_revision) = (?:"(\d+)"|None)', re.MULTILINE)


def test_migrations_are_one_line_of_numbers() -> None:
    before = None
    for path in sorted((PACKAGE / "database" / "migrations" / "versions").glob("[0-9]*.py")):
        declared = {name: number or None for name, number in DECLARED.findall(path.read_text())}
        assert declared == {"revision": path.name.partition("_")[0], "down_revision": before}, path.name
        before = declared["revision"]


LONG = 400


def test_a_module_is_about_one_thing() -> None:
    """A migration is a story of its own; whatever else passes 400 lines does two things."""
    lengths = {
        name: len(path.read_text().splitlines())
        for name, path in ALL
        if not _within(name, "database.migrations.versions")
    }
    assert {name: length for name, length in lengths.items() if length > LONG} == {}


LONG_TESTS = 450


def test_modules_of_tests_are_about_one_thing_too() -> None:
    """Cases are many lines; what passes 450 tests two things."""
    lengths = {path.name: len(path.read_text().splitlines()) for path in (PACKAGE.parent / "tests").rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > LONG_TESTS} == {}
