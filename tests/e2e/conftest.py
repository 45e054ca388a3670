"""The prepared process that gates are forked from, and sites that are closed after their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.rig import Site, Zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """One for all tests."""
    prepared = Zygote()
    yield prepared
    prepared.close()


@pytest.fixture
def site(tmp_path: Path, zygote: Zygote) -> Iterator[Callable[..., Site]]:
    """Makes sites; a gate that had an accident fails the test."""
    made: list[Site] = []

    def make(*tables: Any, **gateway: Any) -> Site:
        folder = tmp_path / f"{len(made)}"
        folder.mkdir()
        made.append(Site(folder, gateway.pop("zygote", zygote), *tables, **gateway))
        return made[-1]

    yield make
    for each in made:
        each.close()
