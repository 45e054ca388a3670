"""Guests for the tests, and what is kept of one when a test fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hardware import debian, install, parcel
from tests.hardware.gate import Gate
from tests.hardware.guest import Guest
from tests.hardware.kept import CHECKOUT

FAILURES = CHECKOUT / ".hardware-failures"
"""A folder for each test that failed: journal, consoles, the state of the units."""


@pytest.fixture(scope="session")
def installed() -> Path:
    """The disk with the gateway installed as README.md says."""
    return install.disk()


@pytest.fixture(scope="module")
def computers(
    installed: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Guest]]:
    """Makes guests, switched off, with the gateway installed; they are gone at the end of the module."""
    made: list[Guest] = []
    brought = parcel.parcel()

    def make(**options: Any) -> Guest:
        folder = tmp_path_factory.mktemp("guest")
        made.append(Guest(folder, debian.base(), installed, parcel=brought.folder, **options))
        return made[-1]

    request.node.stash[_GUESTS] = made
    yield make
    for guest in made:
        guest.cut()


@pytest.fixture(scope="module")
def guest(computers: Callable[..., Guest]) -> Guest:
    """A guest, switched on, that the tests of a module share."""
    guest = computers()
    guest.boot(until="system")
    return guest


@pytest.fixture(scope="module")
def gate(guest: Guest) -> Gate:
    """The gate in it."""
    return Gate(guest)


@pytest.fixture
def say(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Lines for the end of the run, whether the test passes or not: what was tried, and its seed."""
    return lambda text: record_property("said", text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in (r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])):
        said = [str(value) for key, value in report.user_properties if key == "said"]
        if said and report.when == "call":
            terminalreporter.write_line("\n".join([report.nodeid, *(f"    {line}" for line in said)]))


_GUESTS: pytest.StashKey[list[Guest]] = pytest.StashKey()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    report = yield
    if report.failed:
        module = item.getparent(pytest.Module)
        for number, guest in enumerate(module.stash.get(_GUESTS, []) if module is not None else []):
            target = FAILURES / item.name.replace("/", "_") / str(number)
            guest.keep(target)
            report.sections.append(("the guest", f"journal, consoles and units are in {target}"))
    return report
