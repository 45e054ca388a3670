"""A venue's log: places in it, cursors, and the transactions that write to it.

A place (position) is given under the lock of the venue's row in the transaction that commits it, so that
nothing ever becomes visible behind a cursor. Every such transaction locks all venues, in the order of their
ids: a record may be seen by several, and two transactions can never wait for each other.

A cursor is ``HISTORY.RUN.POSITION.MAC``. A run is a stretch of the log that one process wrote over one
connection; it begins anew with each start. A central that was restored from a backup knows neither the runs
that began after the backup nor the places that the last run gave after it, whatever it has written since:
so a cursor from the lost time is recognised also when the log has long grown past its position.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from gateway.central import schema
from gateway.central.database import Database
from gateway.central.facts import VenueRow
from gateway.central.faults import NotFound

_venue, _run = schema.venue.c, schema.run.c
_LOCK = select(_venue.id, _venue.position).order_by(_venue.id).with_for_update()
_MOVE = (
    update(schema.venue).where(_venue.id == bindparam("venue")).values(position=bindparam("to"))
)  # fmt: skip
_VENUE = select(schema.venue).where(_venue.id == bindparam("venue"))


class Turn:
    """One write transaction, with the venues' logs locked."""

    def __init__(self, conn: Connection, now: int) -> None:
        self.conn = conn
        self.now = now
        self.before: dict[str, int] = {row.id: row.position for row in conn.execute(_LOCK)}
        self.positions = dict(self.before)
        self.told: set[tuple[str, str | None]] = set()

    def place(self, venue: str, gateway: str | None = None) -> int:
        """The next place in a venue's log. ``gateway``: it concerns nobody else."""
        position = self.positions[venue] = self.positions[venue] + 1
        self.told.add((venue, gateway))
        return position

    def tell(self, venue: str, gateway: str | None = None) -> None:
        """Those who wait for this venue's log are to look again, though it has not moved."""
        self.told.add((venue, gateway))

    def moved(self) -> list[str]:
        return [venue for venue, position in self.positions.items() if position != self.before.get(venue)]


class Log:
    """The venues' logs."""

    def __init__(self, db: Database, secret: bytes, clock: Callable[[], int]) -> None:
        self.db = db
        self.clock = clock
        self.on_change: Callable[[str, str | None], None] = _deaf
        self._secret = secret
        self._run = secrets.token_hex(6)
        self._begun: set[str] = set()
        db.on_connect = self._new_run

    def _new_run(self) -> None:
        """A database may have been restored while there was no connection to it."""
        self._run = secrets.token_hex(6)
        self._begun = set()

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        """A transaction that may write to the logs; afterwards those who wait are told."""
        with self.db.write() as conn:
            turn = Turn(conn, self.clock())
            yield turn
            moved = turn.moved()
            if moved:
                conn.execute(_MOVE, [{"venue": venue, "to": turn.positions[venue]} for venue in moved])
            runs: list[dict[str, Any]] = [
                {"venue": venue, "start": turn.before[venue], "id": self._run}
                for venue in moved
                if venue not in self._begun
            ]
            if runs:
                conn.execute(insert(schema.run), runs)
        self._begun.update(run["venue"] for run in runs)
        for venue, gateway in sorted(turn.told, key=str):
            self.on_change(venue, gateway)

    def venue(self, conn: Connection, id_: str) -> VenueRow:
        """Raises NotFound."""
        row = conn.execute(_VENUE, {"venue": id_}).one_or_none()
        if row is None:
            raise NotFound(f"there is no venue {id_}")
        return VenueRow(row.id, row.names, row.history, row.position)

    # --- cursors -----------------------------------------------------------------------------------------

    def cursor(self, conn: Connection, venue: str, position: int) -> str:
        """The cursor of a place."""
        at = self.venue(conn, venue)
        run = conn.execute(
            select(_run.id)
            .where(_run.venue == venue, _run.start < position)
            .order_by(_run.start.desc())
            .limit(1)
        ).scalar()
        text = f"{at.history}.{run or '-'}.{position}"
        return f"{text}.{self._mac(venue, text)}"

    def position_of(self, venue: str, cursor: str) -> int | None:
        """The place that a cursor names; None where the gateway needs a snapshot.

        If the cursor proves that this central was restored from a backup, a new history begins.
        """
        text, _, mac = cursor.rpartition(".")
        if not hmac.compare_digest(mac.encode(errors="replace"), self._mac(venue, text).encode()):
            return None
        history, run, digits = text.split(".")
        position = int(digits)
        with self.db.read() as conn:
            row = conn.execute(_VENUE, {"venue": venue}).one_or_none()
            if row is None or row.history != history:
                return None
            if self._is_past(conn, venue, row.position, run, position):
                return position if position >= row.oldest else None
        with self.turn() as turn:
            turn.conn.execute(
                update(schema.venue)
                .where(_venue.id == venue, _venue.history == history)
                .values(history=new_history())
            )
            turn.tell(venue)
        return None

    def _is_past(self, conn: Connection, venue: str, end: int, run: str, position: int) -> bool:
        """Whether this log has had that run at that place."""
        if run == "-":
            return position == 0
        runs = conn.execute(select(_run.id, _run.start).where(_run.venue == venue).order_by(_run.start)).all()
        for place, each in enumerate(runs):
            if each.id == run:
                last = runs[place + 1].start if place + 1 < len(runs) else end
                if each.start < position <= last:
                    return True
        return False

    def _mac(self, venue: str, text: str) -> str:
        digest = hmac.digest(self._secret, f"cursor\n{venue}\n{text}".encode(), "sha256")
        return base64.urlsafe_b64encode(digest[:16]).decode().rstrip("=")


def new_history() -> str:
    return secrets.token_hex(8)


def _deaf(_venue: str, _gateway: str | None) -> None:
    """Nobody waits."""
