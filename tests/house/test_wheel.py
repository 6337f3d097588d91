"""What a wheel holds, and that it works where nothing of the repository is."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.database.engine import create_engine, plain_url
from polydesk_dagster.database.migrate import create_database, head

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "polydesk_dagster"


@dataclass(frozen=True)
class Elsewhere:
    """An environment that has the wheel and this one's other packages, and a folder to call it from."""

    wheel: Path
    folder: Path

    def run(self, *command: str, **environment: str) -> str:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("POLYDESK_", "PYTHON"))}
        done = subprocess.run(
            [str(self.folder / "bin" / command[0]), *command[1:]],
            cwd=self.folder,
            env={**clean, "POLYDESK_HOME": str(self.folder / "home"), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    built, folder = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("elsewhere")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(built), str(ROOT)], check=True)
    (wheel,) = built.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    subprocess.run([*pip, "--python", str(folder / "bin" / "python"), "install", "--no-deps", str(wheel)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(
        "\n".join(site.getsitepackages())
    )  # what .pth files name there is not followed
    return Elsewhere(wheel, folder)


def test_every_file_of_the_package_is_in_the_wheel(elsewhere: Elsewhere) -> None:
    """Migrations, templates, static files, message catalogues, the demo's documents: whatever is not code, too."""
    ours = {
        str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(elsewhere.wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name and ".data/" not in name}
    assert packed == ours
    for kind in ("/versions/", "/templates/", "/static/", "/locale/", "/demo/knowledge/"):
        assert any(kind in name for name in packed), kind


def test_what_an_installation_needs_is_beside_the_wheels_program(elsewhere: Elsewhere) -> None:
    """A deployment's instance and workspace, and what whoever is on call reads."""
    share = elsewhere.folder / "share" / "polydesk"
    found = {path.name: path.read_text() for path in share.iterdir()}
    ours = ("deploy/production.yaml", "deploy/workspace.yaml", "docs/deployment.md", "docs/runbook.md")
    assert found == {Path(path).name: (ROOT / path).read_text() for path in ours}


def test_the_command_of_a_wheel_is_the_wheels(elsewhere: Elsewhere) -> None:
    where = elsewhere.run("python", "-c", "import polydesk_dagster; print(polydesk_dagster.__file__)")
    assert Path(where).is_relative_to(elsewhere.folder)
    assert elsewhere.run("polydesk", "--version") == "polydesk 0.1.0\n"
    told = "from polydesk_dagster.told import teller; print(teller('de').service('clear_caches'))"
    assert elsewhere.run("python", "-c", told) == "Alle Zwischenspeicher leeren\n"


def test_a_wheel_migrates_and_fills_a_database(elsewhere: Elsewhere, server: URL) -> None:
    url = server.set(database="from_a_wheel")
    create_database(url)
    elsewhere.run("polydesk", "db", "migrate", POLYDESK_DATABASE_URL=plain_url(url))
    fill = (
        "import sys, sqlalchemy, datetime\n"
        "from polydesk_dagster.database.engine import create_engine\n"
        "from polydesk_dagster.demo import chain, documents\n"
        "from pathlib import Path\n"
        "engine = create_engine(sqlalchemy.make_url(sys.argv[1]))\n"
        "chain.load(engine, 'small', as_of=datetime.datetime(2026, 3, 10, 9, tzinfo=datetime.UTC))\n"
        "documents.write(Path('documents'))\n"
    )
    elsewhere.run("python", "-c", fill, url.render_as_string(hide_password=False))
    engine = create_engine(url)
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM appointment"))
        assert connection.scalar(sa.text("SELECT version_num FROM alembic_version")) == head()
    engine.dispose()
    assert list((elsewhere.folder / "documents").glob("*.md"))
