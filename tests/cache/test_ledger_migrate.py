"""A ledger of an earlier version is brought to this one's format: whole, or left as it was."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cache.ledger_migrate import STEPS, Step, migrate
from gateway.cache.ledger_repair import FORMAT
from gateway.cache.ledger_rows import event_digest, event_row
from gateway.cache.ledger_store import Store
from tests.cache.ledger_rig import DAY, Rig, grant
from tests.cache.starting import refusal

FULL = 200_000
WRITTEN = Path(__file__).with_name("ledger-format-1.db.gz")
"""Seven events, four of them acknowledged, as the program before format 2 wrote them."""


@contextlib.contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    """A plain connection, closed at the end."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        yield conn


def content(path: Path) -> str:
    """A digest of every row that visitors left, and of what the central has."""
    digest = hashlib.blake2b()
    with connected(path) as conn:
        for table in ("event", "movement", "epoch", "refused", "clear"):
            for row in conn.execute(f"SELECT * FROM {table} ORDER BY 1"):
                digest.update(repr(row).encode())
        digest.update(
            repr(conn.execute("SELECT value FROM meta WHERE key = 'acknowledged'").fetchone()).encode()
        )
    return digest.hexdigest()


def formats(path: Path) -> tuple[int, int]:
    """The number of the format as the file says it twice."""
    with connected(path) as conn:
        [version] = conn.execute("PRAGMA user_version").fetchone()
        [said] = conn.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()
        return version, said


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The ledger that the earlier program left."""
    path = tmp_path / "ledger.db"
    path.write_bytes(gzip.decompress(WRITTEN.read_bytes()))
    assert formats(path) == (1, 1)
    return path


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with 200,000 events."""
    path = tmp_path_factory.mktemp("full") / "ledger.db"
    path.write_bytes(gzip.decompress(WRITTEN.read_bytes()))
    with connected(path) as conn:
        conn.execute("BEGIN")
        for seq in range(8, FULL + 1):
            row = (seq, *event_row(grant(seq, at=1_760_000_000_000_000 + seq)), None)
            conn.execute(f"INSERT INTO event VALUES ({', '.join('?' * 21)})", (*row, event_digest(row)))
        conn.execute("COMMIT")
    return path


def test_a_ledger_of_the_format_before_goes_on(earlier: Path) -> None:
    """Numbers, epoch, events, movements and what the central has are those of before; new events follow, and
    the time from which retain_days count is noted."""
    before = content(earlier)
    store = Store.open(earlier, "north")
    assert (store.last_seq, store.acknowledged, store.set_aside) == (7, 4, None)
    [had] = store.conn.execute("SELECT key, value FROM meta WHERE key GLOB 'had:*'").fetchall()
    store.close()
    assert had[1] == 4
    assert abs(int(had[0].removeprefix("had:")) - time.time_ns() // 1000 // DAY) <= 1
    assert content(earlier) == before
    assert formats(earlier) == (FORMAT, FORMAT)

    async def goes_on() -> None:
        with Rig(earlier.parent) as rig:
            rig.grants(8, 9)
            await rig.on_disk()
            assert [event["seq"] for event in rig.ledger.events(0, 100)] == list(range(1, 9))

    asyncio.run(goes_on())


def _killed(path: Path, moment: float | None) -> None:
    """A process begins to migrate, with a step that also rewrites every event, and is killed: so many seconds
    after it began, or right before the commit."""
    child = os.fork()
    if child == 0:
        try:
            with connected(path) as conn:

                def rewrite(conn: sqlite3.Connection) -> None:
                    STEPS[1].do(conn)
                    conn.execute("UPDATE event SET detail = 'half done'")
                    os.kill(os.getpid(), signal.SIGKILL)

                conn.execute("PRAGMA cache_size = 10")  # so that it reaches the disk before the commit
                migrate(path, conn, {1: Step(rewrite, 1.0)})
        finally:
            os._exit(1)
    if moment is not None:
        time.sleep(moment)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


def test_a_migration_that_is_killed_begins_again(full: Path) -> None:
    """kill -9 in the middle, at several moments and at the worst one, with 200,000 events half rewritten:
    each time the ledger is the one of before, and in the end it is migrated with every event."""
    before = content(full)
    for moment in (0.02, 0.1, 0.3, None):
        _killed(full, moment)
        assert formats(full) == (1, 1)
        assert content(full) == before
    store = Store.open(full, "north")
    assert (store.last_seq, store.acknowledged, store.set_aside) == (FULL, 4, None)
    store.close()
    assert formats(full) == (FORMAT, FORMAT)
    assert content(full) == before


def test_without_room_nothing_is_begun(earlier: Path) -> None:
    """A step that needs more than the disk has is not begun: a message says how much, the file stays."""
    whole = earlier.read_bytes()
    with connected(earlier) as conn:
        with pytest.raises(
            OSError, match=r"from format 1 to 2 the disk has \d+ MiB free, and \d+ are needed"
        ):
            migrate(earlier, conn, {1: Step(lambda conn: None, 1e15)})
        assert conn.execute("PRAGMA user_version").fetchone() == (1,)
    assert earlier.read_bytes() == whole


def test_a_step_that_fails_leaves_the_ledger(earlier: Path) -> None:
    """After an error in a step nothing of it is left, and the next attempt begins anew."""
    before = content(earlier)

    def broken(conn: sqlite3.Connection) -> None:
        conn.execute("DELETE FROM event")
        conn.execute("SELECT * FROM nowhere")

    with connected(earlier) as conn, pytest.raises(sqlite3.OperationalError):
        migrate(earlier, conn, {1: Step(broken, 0.0)})
    assert (formats(earlier), content(earlier)) == ((1, 1), before)
    with connected(earlier) as conn:
        assert migrate(earlier, conn) == 1
        assert migrate(earlier, conn) is None


def test_every_format_has_its_step() -> None:
    """From each earlier format there is a way to this one."""
    assert sorted(STEPS) == list(range(1, FORMAT))


def test_a_gate_of_an_earlier_version_refuses(earlier: Path, tmp_path: Path) -> None:
    """A ledger that a newer program wrote: the gate ends with 2 and a line that names file, formats and what
    to do, and not a byte of the ledger changes."""
    with connected(earlier) as conn:
        conn.execute("UPDATE meta SET value = ? WHERE key = 'format'", (FORMAT + 1,))
        conn.execute(f"PRAGMA user_version = {FORMAT + 1}")
    whole = earlier.read_bytes()
    tmp_path.chmod(0o700)
    said = refusal(tmp_path)
    assert f"{earlier} has format {FORMAT + 1}, this program knows {FORMAT}: install the newer" in said
    assert earlier.read_bytes() == whole
