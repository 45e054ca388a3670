"""What is installed is known: each file by its hash, each package by its licence."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import licences

ROOT = Path(__file__).parent.parent
LOCKS = {path.name: path.read_text() for path in sorted((ROOT / "locks").glob("*.txt"))}
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]


def versions(lock: str) -> dict[str, str]:
    """Package and version of each line."""
    return dict(re.findall(r"^([\w.-]+)==([^\s;\\]+)", lock, re.MULTILINE))


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_hashes(name: str) -> None:
    """Each entry of a lock is one version with at least one SHA-256, and no entry depends on an index."""
    entries = re.split(r"\n(?! )", LOCKS[name].strip())
    for entry in entries:
        assert re.fullmatch(r"[\w.-]+==[^\s;]+( ; [^\n\\]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+", entry), (
            entry[:200]
        )
    assert "://" not in LOCKS[name]


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("gateway.txt", PROJECT["project"]["dependencies"]),
        ("central.txt", PROJECT["project"]["dependencies"] + EXTRAS["central"]),
        ("dev.txt", PROJECT["project"]["dependencies"] + EXTRAS["central"] + EXTRAS["dev"]),
        ("build.txt", PROJECT["build-system"]["requires"]),
    ],
)
def test_the_locks_have_what_the_project_asks_for(name: str, asked: list[str]) -> None:
    """Each dependency of pyproject.toml stands in its lock, in an allowed version: else `make lock`."""
    locked = versions(LOCKS[name])
    for requirement in map(Requirement, asked):
        if requirement.name != PROJECT["project"]["name"]:
            assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement


def test_the_locks_agree() -> None:
    """What is tested is what is installed: the same versions in all locks and in constraints.txt."""
    tested = versions(LOCKS["dev.txt"])
    assert versions((ROOT / "constraints.txt").read_text()) == tested
    for name in ("gateway.txt", "central.txt"):
        assert versions(LOCKS[name]).items() <= tested.items(), name
    assert versions(LOCKS["gateway.txt"]).items() < versions(LOCKS["central.txt"]).items()


def test_every_licence_is_allowed_and_listed() -> None:
    """docs/licences.md is what `make licences` writes, and has no licence that nobody has looked at."""
    found = {name: licences.licence(name) for name in licences.names("central.txt")}
    assert not {name: licence for name, licence in found.items() if licence not in licences.ALLOWED}
    assert (ROOT / "docs/licences.md").read_text() == licences.page(), "run: make licences"
