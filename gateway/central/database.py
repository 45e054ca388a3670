"""The central's database: opened, brought up to the present schema, and its transactions.

SQLite is the embedded default; any other URL that SQLAlchemy knows works in the same way. What only SQLite
needs (when a transaction begins, how durable it is) is in this module and nowhere else.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, UpdateBase, create_engine, event
from sqlalchemy.engine import Dialect, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.sql.compiler import SQLCompiler

from gateway.central.faults import StoreUnusable

_PRAGMAS = (
    "PRAGMA busy_timeout = 30000",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA secure_delete = FAST",  # what a forgotten holder's row held is overwritten
    "PRAGMA cache_size = -65536",  # loading a million cards goes all over the tables' trees
    "PRAGMA temp_store = MEMORY",
    "PRAGMA journal_size_limit = 67108864",  # what a large load made of the log is given back
)


class Database:
    """An engine with two kinds of transactions."""

    def __init__(self, url: str) -> None:
        try:
            self.url = make_url(url)
            self._engine = create_engine(self.url, hide_parameters=True)
        except (ArgumentError, ImportError) as error:
            raise StoreUnusable(f"the database URL cannot be used: {error}") from error
        except ValueError:  # its words may be a part of the password
            raise StoreUnusable(
                "the database URL cannot be used: its port is no number; what is special in a password is "
                "percent-encoded"
            ) from None
        self.on_connect: Callable[[], None] = _nothing
        event.listen(self._engine, "connect", self._connected)
        if self.url.get_backend_name() == "sqlite":
            event.listen(self._engine, "begin", _begin)
            self._reading: Engine = self._engine
            self._writing: Engine = self._engine.execution_options(immediate=True)
        else:
            self._reading = self._engine.execution_options(isolation_level="REPEATABLE READ")
            self._writing = self._engine

    def _connected(self, dbapi: Any, _record: object) -> None:
        if isinstance(dbapi, sqlite3.Connection):
            dbapi.isolation_level = None  # transactions begin where we say, not at the first change
            for pragma in _PRAGMAS:
                dbapi.execute(pragma)
        self.on_connect()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state and changes nothing."""
        with self._reading.connect() as conn:
            yield conn

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is durable when the block ends, or leaves nothing behind."""
        with self._writing.begin() as conn:
            yield conn

    def migrate(self) -> None:
        """Creates the tables, or brings older ones up. Raises StoreUnusable."""
        config = Config()
        config.set_main_option(
            "script_location", str(Path(__file__).parent / "migrations").replace("%", "%%")
        )
        scripts = ScriptDirectory.from_config(config)
        try:
            with self.write() as conn:
                present = MigrationContext.configure(conn).get_current_revision()
                if present == scripts.get_current_head():
                    return
                known = {script.revision for script in scripts.walk_revisions()}
                if present is not None and present not in known:
                    raise StoreUnusable(
                        f"{self.where} was written by a newer version of the gateway package (schema "
                        f"{present}): install that version, or restore a backup of this one"
                    )
                config.attributes["connection"] = conn
                command.upgrade(config, "head")
        except SQLAlchemyError as error:
            reason = getattr(error, "orig", None) or error  # SQLAlchemy's own text has the statement in it
            raise StoreUnusable(
                f"{self.where} cannot be opened: {reason}; see to its rights and its disk, and if it is "
                "damaged restore a backup"
            ) from error

    @property
    def where(self) -> str:
        """The database as a message names it, without a password."""
        if self.url.get_backend_name() == "sqlite" and self.url.database:
            return self.url.database
        return self.url.render_as_string(hide_password=True)

    def close(self) -> None:
        self._engine.dispose()


def write_many(conn: Connection, statement: UpdateBase, rows: Sequence[Mapping[str, Any]]) -> None:
    """Execute a statement, all of whose values come by name from each of the rows, which have the same names.

    The same as ``conn.execute``, which walks through every value of every row a second time: that was a
    fifth of what it takes to store an event.
    """
    text, order = _compiled(conn.dialect, statement, tuple(rows[0]))
    if order is None:
        conn.exec_driver_sql(text, list(rows))
    else:
        conn.exec_driver_sql(text, [order(row) for row in rows])


@lru_cache(maxsize=64)
def _compiled(
    dialect: Dialect, statement: UpdateBase, names: tuple[str, ...]
) -> tuple[str, Callable[[Mapping[str, Any]], tuple[Any, ...]] | None]:
    """The statement as the database's driver has it, and what makes its values of a row where it takes them
    by place."""
    compiled = statement.compile(dialect=dialect, column_keys=list(names), for_executemany=True)
    assert isinstance(compiled, SQLCompiler)
    places = compiled.positiontup
    return str(compiled), None if places is None else itemgetter(*places)


def _begin(conn: Connection) -> None:
    # A transaction that will write takes the lock at once: one that began by reading could not get it later.
    write = conn.get_execution_options().get("immediate", False)
    conn.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _nothing() -> None:
    """Nobody needs to know of a new connection."""
