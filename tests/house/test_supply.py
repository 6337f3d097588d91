"""What this is made of may be used as it is here: the licence of every package of the lock is one of those known."""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path

import pytest

from tests.house.advisories import told

LOCK = Path(__file__).resolve().parents[2] / "requirements.lock"
LOCKED = sorted(re.findall(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==", LOCK.read_text(), re.MULTILINE))

ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "ISC",
    "LGPL-3.0-only",  # psycopg, imported as it is
    "MIT",
    "MIT-0",
    "MIT-CMU",
    "MPL-2.0",  # of single files, unchanged here
    "PSF-2.0",
    "Zlib",
}

CALLED = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD 3-Clause": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "GNU Library or Lesser General Public License (LGPL)": "LGPL-3.0-only",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
"""Names from before there were SPDX expressions."""

NO_LICENCES = {"DFSG approved", "OSI Approved"}

DECIDED = {
    "asyncssh": "EPL-2.0",  # offered under GPL as well; used unchanged
    "axe-playwright-python": "MIT",  # said in its repository; its archive names none. Tests only.
    "text-unidecode": "Artistic",  # offered under GPL as well; slugs of a tool for developers only
}
"""Where a person has read what the package itself does not say in a form that can be read."""


def _licences(name: str) -> set[str]:
    about = metadata.metadata(name)
    classified = [each for each in about.get_all("Classifier") or [] if each.startswith("License ::")]
    named = [each.split(" :: ")[-1] for each in classified] or (about.get("License") or "").splitlines()[:1]
    if expression := about.get("License-Expression"):
        named = [expression]
    return {part for each in named for part in re.split(r" (?:OR|AND) ", each)} - NO_LICENCES


@pytest.mark.parametrize("name", LOCKED)
def test_every_packages_licence_is_known_and_allowed(name: str) -> None:
    if name in DECIDED:
        return
    try:
        found = _licences(name)
    except metadata.PackageNotFoundError:
        pytest.skip("of another system or Python")
    assert found
    assert {CALLED.get(each, each) for each in found} <= ALLOWED


def test_what_was_decided_by_hand_is_still_there() -> None:
    assert DECIDED.keys() <= set(LOCKED)


def test_what_nobody_could_look_at_is_said_and_what_is_known_fails(tmp_path: Path) -> None:
    lock, report = tmp_path / "lock", tmp_path / "report"
    lock.write_text("a==1 \\\n    --hash=x\nb==2\n")
    assert told(report, lock)[0].splitlines()[0] == "Advisories: looked at 0 of 2 packages."
    unseen = {"name": "b", "skip_reason": "not found"}
    report.write_text(json.dumps({"dependencies": [{"name": "a", "vulns": []}, unseen]}))
    said, good = told(report, lock)
    assert ("NOT LOOKED AT: 1;" in said, good) == (True, True)
    report.write_text(json.dumps({"dependencies": [{"name": "a", "vulns": [{"id": "CVE-1"}]}, unseen]}))
    assert told(report, lock) == (f"{said}\nKnown against a: CVE-1.", False)
