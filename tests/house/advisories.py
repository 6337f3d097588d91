"""What is known against the packages of the lock, as pip-audit reports it, and plainly what nobody could look at:
``python -m tests.house.advisories REPORT LOCK``. Ends with 1 where something is known against a package."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path


def told(report: Path, lock: Path) -> tuple[str, bool]:
    """The sentence, and whether nothing is known against anything; ``report`` is missing where pip-audit made none."""
    locked = set(re.findall(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==", lock.read_text(), re.MULTILINE))
    found = json.loads(report.read_text())["dependencies"] if report.exists() else []
    looked_at = [each for each in found if "skip_reason" not in each]
    bad = {each["name"]: [known["id"] for known in each["vulns"]] for each in looked_at if each["vulns"]}
    said = [f"Advisories: looked at {len(looked_at)} of {len(locked)} packages."]
    if len(looked_at) < len(locked):
        said.append(
            f"NOT LOOKED AT: {len(locked) - len(looked_at)}; no registry within reach tells advisories for them."
        )
    said += [f"Known against {name}: {', '.join(ids)}." for name, ids in sorted(bad.items())]
    return "\n".join(said), not bad


if __name__ == "__main__":
    sentence, good = told(*map(Path, sys.argv[1:]))
    print(sentence)
    sys.exit(0 if good else 1)
