"""A vendor is a package of its own, found by its entry point; what its settings say is checked and never quoted."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from polydesk_dagster.errors import ConfigurationError
from polydesk_dagster.sources import vendors
from polydesk_dagster.sources.events import looking
from polydesk_dagster.sources.events.looking import Clinic
from polydesk_dagster.sources.port import Link

MODULE = """
from polydesk_dagster.sources.access import Settings, TokenName
from polydesk_dagster.sources.port import Capabilities, Numbers

class Mine(Settings):
    room: str
    token: TokenName

class Tiny:
    capabilities = Capabilities(frozenset({"services"}))
    def __init__(self, settings, secret):
        self.epoch, self.key = f"tiny {settings.room}", secret
    def list(self, kind, *, etag=None): return iter(())
    def news(self, token, limit): raise NotImplementedError
    def merged(self): return ()
    def deleted(self, kind): return ()
    def close(self): pass

class Vendor:
    settings, news = Mine, Numbers.NONE
    def epoch(self, settings): return f"tiny {settings.room}"
    def open(self, clinic, settings, secret, policy=None): return Tiny(settings, secret(settings.token))

class Lost(Vendor):
    def epoch(self, settings): raise KeyError(settings.room)

VENDOR, LOST = Vendor(), Lost()
"""
SETTINGS = {"room": "B", "token": "POLYDESK_TINY_TOKEN_BO01"}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed package that brings a vendor."""
    (tmp_path / "tiny_vendor.py").write_text(MODULE)
    about = tmp_path / "tiny_vendor-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-vendor\nVersion: 1.0\n")
    points = "tiny = tiny_vendor:VENDOR\nstudiolab = tiny_vendor:VENDOR\nbroken = tiny_vendor:NOTHING\n"
    points += "lost = tiny_vendor:LOST\nraises = raising_vendor:VENDOR\n"
    (tmp_path / "raising_vendor.py").write_text("raise RuntimeError('no licence')")
    (about / "entry_points.txt").write_text(f"[{vendors.GROUP}]\n{points}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tiny_vendor", raising=False)
    return "tiny"


def test_a_package_brings_a_vendor(tiny: str) -> None:
    assert {"tiny", "studiolab", "broken"} <= set(vendors.names())
    source = vendors.open_source(Link("BO01", tiny, SETTINGS), {"POLYDESK_TINY_TOKEN_BO01": "s"}.get)
    assert (source.epoch, source.capabilities.lists) == ("tiny B", frozenset({"services"}))


def test_no_package_takes_the_name_of_ours(tiny: str) -> None:
    assert type(vendors.vendor("studiolab")).__module__ == "polydesk_dagster.sources.studiolab.vendor"


@pytest.mark.parametrize(
    ("vendor", "change", "code"),
    [
        ("tiny", {"token": "PATH"}, "token_name"),
        ("tiny", {"room": 7}, "source_settings"),
        ("tiny", {"password": "hunter2"}, "source_settings"),
        ("studiolab", {"room": None}, "source_settings"),
        ("broken", {}, "vendor_broken"),
        ("raises", {}, "vendor_broken"),
        ("lost", {}, "vendor_broken"),
        ("nobody", {}, "vendor_unknown"),
    ],
)
def test_what_is_wrong_is_named_and_never_quoted(tiny: str, vendor: str, change: dict[str, object], code: str) -> None:
    with pytest.raises(ConfigurationError, match=code) as caught:
        vendors.epoch(Link("BO01", vendor, SETTINGS | change))
    assert caught.value.reason.clinic == "BO01"
    assert "hunter2" not in str(caught.value)


def test_a_token_that_is_not_set_is_named(tiny: str) -> None:
    with pytest.raises(ConfigurationError, match="token_missing"):
        vendors.open_source(Link("BO01", tiny, SETTINGS), {}.get)


def test_what_is_installed_is_looked_for_once(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = vendors.vendor(tiny)
    monkeypatch.setattr(vendors, "entry_points", None)
    assert vendors.vendor(tiny) is first


def test_a_vendor_that_is_installed_meanwhile_is_found(tiny: str) -> None:
    told = Path(sys.path[0]) / "tiny_vendor-1.0.dist-info" / "entry_points.txt"
    points = told.read_text()
    told.write_text(f"[{vendors.GROUP}]\n")
    with pytest.raises(ConfigurationError, match="vendor_unknown"):
        vendors.vendor(tiny)
    told.write_text(points)
    assert vendors.vendor(tiny)


def test_a_package_that_raises_whatever_is_its_clinics_alone(tiny: str) -> None:
    wrong = {"url": "http://[::1", "token": "POLYDESK_STUDIOLAB_TOKEN_BO01"}
    known = [
        Clinic(number, f"C{number}", vendor, settings, None if vendor == "raises" else "x", 0, 0, (), None, 0, None,
               None, due=False)
        for number, (vendor, settings) in enumerate((("raises", SETTINGS), ("lost", SETTINGS), ("studiolab", wrong),
                                                     ("tiny", SETTINGS)))
    ]  # fmt: skip
    seen = looking.look(known, datetime.now(UTC), lambda _: "s")
    assert [each.why.code for each in seen] == ["vendor_broken", "vendor_broken", "source_address", "source_changed"]
