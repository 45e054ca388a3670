"""The reference central's store: everything that the server does with the database and its directory.

Plain synchronous calls, each one transaction, for one thread. ``build_snapshot`` and ``compact`` may run
beside the others, in a thread or (``Store.open`` with ``serve=False``) in a process of its own. Instants
are microseconds since 1970. See docs/protocol.md for what gateways see of it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.exc import SQLAlchemyError

from gateway.central import (
    admins,
    conflicts,
    events,
    feed,
    files,
    records,
    removal,
    schema,
    snapshots,
    writing,
)
from gateway.central.database import Database
from gateway.central.facts import (
    Conflict,
    Enrolled,
    GatewayRow,
    Page,
    Put,
    SnapshotFile,
    StoredEvent,
    Taken,
    TokenRow,
    VenueRow,
    Version,
)
from gateway.central.faults import NotFound, Refused, StoreUnusable
from gateway.central.gateways import Gateways, check_name
from gateway.central.keys import Keys
from gateway.central.log import Log, new_history
from gateway.central.secret import TokenMaker
from gateway.sync.protocol import MAX_RECORDS

DATABASE, SECRET, ADMIN_TOKEN = "central.db", "secret", "admin.token"
PAGE_BYTES = 196_608
"""Of records in one answer, so that the answer with all that stands around them is within its bound."""


def _now() -> int:
    return time.time_ns() // 1000


class Store:
    """One central. ``on_change`` is called after each commit that moved a venue's log, or that concerns one
    gateway, with the venue and that gateway (None: all)."""

    def __init__(self, directory: Path, db: Database, secret: bytes, clock: Callable[[], int]) -> None:
        self.directory = directory
        self.db = db
        self.clock = clock
        self._log = Log(db, secret, clock)
        self.keys = Keys(directory / "keys", self._log)
        self._gateways = Gateways(self._log, TokenMaker(secret))

    @classmethod
    def open(
        cls, directory: Path, url: str | None = None, *, clock: Callable[[], int] = _now, serve: bool = True
    ) -> Store:
        """Opens or creates a central: the database (``url``, else SQLite in the directory), the first key,
        the venue ``main`` and the first admin token. ``serve=False``: one that is there already.

        Raises StoreUnusable.
        """
        db = None
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
            db = Database(url or f"sqlite:///{directory / DATABASE}")
            store = cls(directory, db, _secret(directory / SECRET), clock)
            if serve:
                db.migrate()
                store._begin()
            store.keys.load()
        except (OSError, SQLAlchemyError, StoreUnusable) as error:
            if db is not None:
                db.close()
            if isinstance(error, StoreUnusable):
                raise
            if isinstance(error, OSError):
                raise StoreUnusable(
                    f"{error.filename or directory}: {error.strerror}; check that the directory exists, and "
                    "that it and all that is in it belongs to the user that the central runs as"
                ) from error
            raise StoreUnusable(f"{db.where if db else url} cannot be used: {error}") from error
        return store

    def _begin(self) -> None:
        with self.db.write() as conn:
            there = set(conn.execute(select(schema.counter.c.name)).scalars())
            new = [{"name": name, "value": 0} for name in ("event", "conflict") if name not in there]
            if new:
                conn.execute(insert(schema.counter), new)
        if not self.venues():
            self.create_venue("main")
        if not self.tokens():
            token = self.create_token("admin", "admin")
            files.write(self.directory / ADMIN_TOKEN, token.encode() + b"\n")

    def close(self) -> None:
        """Writes what is in memory, and lets go of the database."""
        self._gateways.write_seen()
        self.db.close()

    @property
    def on_change(self) -> Callable[[str, str | None], None]:
        return self._log.on_change

    @on_change.setter
    def on_change(self, listener: Callable[[str, str | None], None]) -> None:
        self._log.on_change = listener

    # --- venues ------------------------------------------------------------------------------------------

    def create_venue(self, id_: str, *, names: bool = False) -> None:
        """``names``: whether holders' names are sent to its gates. Raises Refused."""
        check_name(id_, "venue")
        with self._log.turn() as turn:
            if id_ in turn.positions:
                raise Refused(f"there is a venue {id_} already")
            turn.conn.execute(
                insert(schema.venue),
                [{"id": id_, "names": names, "history": new_history(), "position": 0, "oldest": 0}],
            )

    def venues(self) -> list[VenueRow]:
        with self.db.read() as conn:
            rows = conn.execute(select(schema.venue).order_by(schema.venue.c.id))
            return [VenueRow(row.id, row.names, row.history, row.position) for row in rows]

    # --- records -----------------------------------------------------------------------------------------

    def put(
        self,
        venue: str,
        given: Iterable[Mapping[str, Any] | bytes],
        by: str,
        *,
        skip_bad: bool = False,
    ) -> Put:
        """Puts records (or lines of NDJSON) in order, in one transaction: all, or none where one is bad,
        unless ``skip_bad``. One that is already as given makes no change. Raises NotFound."""
        return writing.put(self._log, venue, given, by, skip_bad=skip_bad)

    def delete(self, venue: str, kind: str, id_: str, by: str) -> None:
        """Takes a record out of a venue's view, out of the last one: for good. With a holder go its
        entitlements, and the credentials left without any. Raises NotFound and Refused."""
        if kind == "venue":
            raise Refused("the venue's own record cannot be deleted; put one that replaces it")
        with self._log.turn() as turn:
            self._log.venue(turn.conn, venue)
            if kind not in records.KINDS or not records.is_seen(turn.conn, venue, kind, id_):
                raise NotFound(f"the venue {venue} has no {kind} {id_}")
            removal.remove(turn, venue, kind, id_, by)

    def get(self, kind: str, id_: str) -> dict[str, Any]:
        """A record as it is. The id of a venue's own record is the venue's. Raises NotFound."""
        with self.db.read() as conn:
            return records.body_of(conn, kind, id_)

    def sees(self, venue: str, kind: str, id_: str) -> bool:
        """Whether a venue sees a record."""
        with self.db.read() as conn:
            return records.is_seen(conn, venue, kind, id_)

    def history(self, kind: str, id_: str) -> list[Version]:
        """Every version of a record, the oldest first. Raises NotFound."""
        with self.db.read() as conn:
            return records.versions(conn, kind, id_)

    def export(self, venue: str) -> Iterator[bytes]:
        """Every record that the venue sees, names included, as JSON, by kind and id. Raises NotFound."""
        with self.db.read() as conn:
            self._log.venue(conn, venue)
            yield from records.export(conn, venue, names=True)

    def find_code(self, code: str) -> str | None:
        """The credential that has this code."""
        with self.db.read() as conn:
            return records.credential_of(conn, code)

    # --- acts on memberships -----------------------------------------------------------------------------

    def _edit(self, kind: str, id_: str, by: str, **fields: Any) -> None:
        with self._log.turn() as turn:
            writing.edit(turn, kind, id_, fields, by)

    def revoke(self, credential: str, state: str, by: str) -> None:
        """``lost``, ``revoked``, ``replaced``, or ``active`` again. Raises NotFound and Refused."""
        self._edit("credential", credential, by, state=state)

    def replace(self, credential: str, new_id: str, new_code: str, by: str) -> None:
        """A new card for the same entitlements; the old one is refused. Raises NotFound and Refused."""
        with self._log.turn() as turn:
            writing.replace(turn, credential, new_id, new_code, by)

    def renew(self, entitlement: str, valid_until: str | None, by: str) -> None:
        """A date or an instant; None: without an end. Raises NotFound and Refused."""
        self._edit("entitlement", entitlement, by, valid_until=valid_until)

    def suspend(self, entitlement: str, by: str) -> None:
        self._edit("entitlement", entitlement, by, state="suspended")

    def resume(self, entitlement: str, by: str) -> None:
        self._edit("entitlement", entitlement, by, state="active")

    def block(self, holder: str, by: str) -> None:
        self._edit("holder", holder, by, state="blocked")

    def unblock(self, holder: str, by: str) -> None:
        self._edit("holder", holder, by, state="active")

    def change_product(self, entitlement: str, product: str, by: str) -> None:
        """Raises NotFound, also where there is no such product."""
        with self._log.turn() as turn:
            records.body_of(turn.conn, "product", product)
            writing.edit(turn, "entitlement", entitlement, {"product": product}, by)

    # --- the log -----------------------------------------------------------------------------------------

    def log(self, venue: str) -> tuple[str, int]:
        """(history, position). Raises NotFound."""
        with self.db.read() as conn:
            row = self._log.venue(conn, venue)
            return row.history, row.position

    def cursor(self, venue: str, position: int) -> str:
        with self.db.read() as conn:
            return self._log.cursor(conn, venue, position)

    def position_of(self, venue: str, cursor: str) -> int | None:
        """None: answer 410. A cursor that proves a restored backup begins a new history."""
        return self._log.position_of(venue, cursor)

    def changes(
        self,
        venue: str,
        gateway: str,
        position: int,
        limit: int = MAX_RECORDS,
        size: int = PAGE_BYTES,
        *,
        known: Collection[str] | None = None,
    ) -> Page:
        """What a gateway is told after a position. ``known``: the keys that it names in its request; with
        them it is also told of those whose announcement it may have missed."""
        with self.db.read() as conn:
            return feed.changes(
                conn, self.clock(), venue, gateway, position, limit=limit, size=size, known=known
            )

    def forget(self, venue: str) -> tuple[int, int] | None:
        """(position, at) of the newest deletion of a holder."""
        with self.db.read() as conn:
            row = conn.execute(select(schema.venue).where(schema.venue.c.id == venue)).one_or_none()
        return None if row is None or row.forget_position is None else (row.forget_position, row.forget_at)

    def compact(self) -> None:
        """Removes what is kept for a time and no longer. Call it about once a day; it may take seconds, most
        of them reading, and may run beside the others in a thread of its own."""
        feed.compact(self._log)
        self._gateways.forget_old_tokens()

    def command(
        self,
        gateway: str,
        do: str,
        *,
        lane: str | None = None,
        area: str | None = None,
        seq: int | None = None,
        ttl_s: int = 30,
        by: str,
    ) -> str:
        """Puts a command for one gateway into the log and gives its id. Raises NotFound and Refused."""
        with self._log.turn() as turn:
            row = self._gateways.get(turn.conn, gateway)
            if row.revoked:
                raise Refused(f"the gateway {gateway} is revoked")
            return feed.command(
                turn, row.venue, gateway, do, lane=lane, area=area, seq=seq, ttl_s=ttl_s, by=by
            )

    # --- snapshots ---------------------------------------------------------------------------------------

    def snapshot(self, venue: str, at_least: int | None = None) -> SnapshotFile | None:
        """The newest file not before this position, nor before the newest deletion of a holder; None: have
        one built."""
        forget = self.forget(venue)
        needed = max(at_least or 0, 0 if forget is None else forget[0])
        return snapshots.newest(self._log, self.directory / "snapshots", venue, needed)

    def build_snapshot(self, venue: str) -> SnapshotFile:
        """Slow: about a minute for a million cards. Safe beside everything else. Raises NotFound, OSError."""
        forget = self.forget(venue)
        return snapshots.build(
            self._log, self.directory / "snapshots", venue, 0 if forget is None else forget[0]
        )

    # --- gateways ----------------------------------------------------------------------------------------

    def enrolment_code(self, gateway: str, venue: str, *, ttl_s: int, by: str) -> str:
        """Raises NotFound and Refused."""
        return self._gateways.enrolment_code(gateway, venue, ttl_s=ttl_s, by=by)

    def enrol(self, code: str, machine: str, hostname: str, version: str) -> Enrolled:
        """Raises EnrolError."""
        return self._gateways.enrol(code, machine, hostname, version)

    def authenticate(self, token: str, machine: str) -> GatewayRow:
        """Raises TokenError; a revoked gateway's row says so."""
        return self._gateways.authenticate(token, machine)

    def renew_token(self, gateway: str) -> str | None:
        """A new token where the one in use is a day old."""
        return self._gateways.renew_token(gateway)

    def hasten_renewal(self, gateway: str) -> None:
        """The next answer to this gateway carries a new token. Raises NotFound and Refused."""
        self._gateways.hasten_renewal(gateway)

    def rotate_token(self, gateway: str) -> str:
        """Raises NotFound and Refused."""
        return self._gateways.rotate_token(gateway)

    def revoke_gateway(self, gateway: str) -> None:
        """Raises NotFound."""
        self._gateways.revoke(gateway)

    def seen(self, gateway: str, condition: dict[str, Any] | None) -> None:
        """It has called, and says that it is so."""
        self._gateways.seen(gateway, condition)

    def gateways(self) -> list[GatewayRow]:
        return self._gateways.all()

    # --- events ------------------------------------------------------------------------------------------

    def take(self, gateway: str, batch: list[Any]) -> Taken:
        """Stores what is new of a batch, and tells the venue's gates. Raises NotFound."""
        with self._log.turn() as turn:
            return events.take(turn, gateway, batch)

    def have(self, gateway: str) -> dict[int, int]:
        """The highest number of each epoch."""
        with self.db.read() as conn:
            return events.have(conn, gateway)

    def events(
        self,
        *,
        since: int = 0,
        gateway: str | None = None,
        kind: str | None = None,
        verdict: str | None = None,
        point: str | None = None,
        credential: str | None = None,
        holder: str | None = None,
        after: int | None = None,
        before: int | None = None,
        limit: int = 1000,
    ) -> list[StoredEvent]:
        """Events above a number, in the order of arrival; ``after`` (inclusive), ``before``: their time."""
        with self.db.read() as conn:
            return events.listed(
                conn,
                since=since,
                gateway=gateway,
                kind=kind,
                verdict=verdict,
                point=point,
                credential=credential,
                holder=holder,
                after=after,
                before=before,
                limit=limit,
            )

    def conflicts(self, since: int = 0, limit: int = 1000) -> list[Conflict]:
        with self.db.read() as conn:
            return conflicts.listed(conn, since, limit)

    # --- admin tokens, keys ------------------------------------------------------------------------------

    def create_token(self, name: str, role: str) -> str:
        """``role``: read, operate or admin. Raises Refused."""
        return admins.create(self.db, name, role, self.clock())

    def who(self, token: str) -> tuple[str, str] | None:
        """(name, role) of an admin token."""
        return admins.role_of(self.db, token)

    def tokens(self) -> list[TokenRow]:
        return admins.all_(self.db)

    def revoke_token(self, name: str) -> None:
        """Raises NotFound and Refused."""
        admins.revoke(self.db, name)

    def announce_key(self) -> str:
        """Draws a key, tells the gates, and gives its id; it signs from ``use_key`` on. Raises Refused."""
        return self.keys.announce()

    def use_key(self, id_: str) -> None:
        """Raises NotFound and Refused."""
        self.keys.use(id_)

    def retire_key(self, id_: str) -> None:
        """Raises NotFound and Refused."""
        self.keys.retire(id_)


def _secret(path: Path) -> bytes:
    """What cursors and gateways' tokens are authenticated by."""
    try:
        secret = path.read_bytes()
    except FileNotFoundError:
        secret = secrets.token_bytes(32)
        files.write(path, secret)
    if len(secret) != 32:
        raise StoreUnusable(f"{path} is not the central's secret: put it back from a backup")
    return secret
