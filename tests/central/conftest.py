"""A central's store in a directory of its own, with a clock that stands until it is moved.

``GATEWAY_TEST_DATABASE`` names an empty database of another kind (postgresql+psycopg://…) to run the tests of
the store against; its contents are thrown away.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy

from gateway.central.store import Store

START = 1_795_000_000_000_000
DAY = 86_400_000_000


class Clock:
    """Microseconds; every look at it is one later."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        self.now += 1
        return self.now

    def wait(self, days: float) -> None:
        self.now += int(days * DAY)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def new_central(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A central at its first start; copying it is ten times as fast as making one for every test."""
    directory = tmp_path_factory.mktemp("new") / "central"
    Store.open(directory, clock=Clock()).close()
    return directory


@pytest.fixture
def open_store(tmp_path: Path, clock: Clock, new_central: Path) -> Iterator[Callable[..., Store]]:
    """Opens (again) the central in a directory below tmp_path."""
    url = os.environ.get("GATEWAY_TEST_DATABASE")
    if url is not None:
        engine = sqlalchemy.create_engine(url)
        with engine.begin() as conn:
            conn.execute(sqlalchemy.text("DROP SCHEMA public CASCADE"))
            conn.execute(sqlalchemy.text("CREATE SCHEMA public"))
        engine.dispose()
    opened = []

    def open_(name: str = "central") -> Store:
        if url is None and not (tmp_path / name).exists():
            shutil.copytree(new_central, tmp_path / name)
        opened.append(Store.open(tmp_path / name, url, clock=clock))
        return opened[-1]

    yield open_
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[..., Store]) -> Store:
    return open_store()


@pytest.fixture
def own_file() -> None:
    """For tests that copy the database, or open it twice from one process: SQLite alone."""
    if "GATEWAY_TEST_DATABASE" in os.environ:
        pytest.fail("run these against SQLite: deselect what asks for own_file")
