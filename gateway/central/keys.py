"""The central's signing keys: Ed25519, the private halves as files of mode 0600 in ``keys/``.

A key is ``announced`` (gates learn of it), then ``present`` (it signs), then ``old`` (it signs for gates that
know no newer one), then ``retired`` (it signs nothing, and gates forget it).
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Collection
from pathlib import Path

import orjson
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import bindparam, func, insert, select, update

from gateway.central import feed, files, schema
from gateway.central.facts import KeyRow
from gateway.central.faults import NotFound, Refused, StoreUnusable
from gateway.central.log import Log, Turn
from gateway.sync.protocol import MAX_KEYS

_key = schema.key.c
_STATE = update(schema.key).where(_key.id == bindparam("i")).values(state=bindparam("state"))


class Keys:
    """The keys of one central. Read once; every change is made through here."""

    def __init__(self, folder: Path, log: Log) -> None:
        self._folder = folder
        self._log = log
        self._private: dict[str, Ed25519PrivateKey] = {}
        self._rows: list[KeyRow] = []

    def load(self) -> None:
        """Draws the first key where there is none. Raises StoreUnusable."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._read()
        if not self._rows:
            self._draw("present")

    def all(self) -> list[KeyRow]:
        """Every key there ever was, the oldest first."""
        return list(self._rows)

    def public(self) -> list[dict[str, str]]:
        """``{"id", "public"}`` of the keys that a gateway learns when it enrols."""
        return [{"id": row.id, "public": row.public} for row in self._rows if row.state != "retired"]

    def signing(self, known: Collection[str] = ()) -> dict[str, Ed25519PrivateKey]:
        """The key to sign with for a gateway that knows these: the present one if it is among them, else the
        newest older one that is; the present one if none is."""
        usable = {row.id: row.state for row in self._rows if row.state in ("present", "old")}
        present = next(id_ for id_, state in usable.items() if state == "present")
        id_ = present
        if present not in known:
            id_ = next((each for each in reversed(usable) if each in known), present)
        return {id_: self._private[id_]}

    def announce(self) -> str:
        """Draws a key and tells every gate of it; it signs nothing yet. Raises Refused."""
        if len(self.public()) >= MAX_KEYS:
            raise Refused(f"gateways take {MAX_KEYS} keys at a time; retire an old one first")
        return self._draw("announced")

    def use(self, id_: str) -> None:
        """Signs with an announced or old key from now on. Raises NotFound and Refused."""
        row = self._row(id_)
        if row.state == "retired":
            raise Refused(f"the key {id_} is retired; announce a new one")
        with self._log.turn() as turn:
            turn.conn.execute(update(schema.key).where(_key.state == "present").values(state="old"))
            turn.conn.execute(_STATE, {"i": id_, "state": "present"})
        self._read()

    def retire(self, id_: str) -> None:
        """Gives a key up: every gate is told to forget it. Raises NotFound and Refused."""
        row = self._row(id_)
        if row.state == "present":
            raise Refused(f"the key {id_} signs at present; announce another and use that first")
        if row.state == "retired":
            return
        with self._log.turn() as turn:
            turn.conn.execute(_STATE, {"i": id_, "state": "retired"})
            for venue in turn.positions:
                feed.own_rows(turn, venue, {("key", id_): {"deleted": True}})
        self._read()
        self._path(id_).unlink(missing_ok=True)

    def _draw(self, state: str) -> str:
        private = Ed25519PrivateKey.generate()
        with self._log.turn() as turn:
            number = (turn.conn.execute(select(func.max(_key.number))).scalar() or 0) + 1
            # The random part: a central restored from a backup must not give another key a known id.
            id_ = f"k{number}-{secrets.token_hex(3)}"
            files.write(
                self._path(id_),
                private.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                ),
            )
            public = base64.b64encode(
                private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
            ).decode()
            turn.conn.execute(
                insert(schema.key),
                [{"id": id_, "public": public, "state": state, "number": number, "created_at": turn.now}],
            )
            if state == "announced":
                self._tell(turn, id_, public)
        self._read()
        return id_

    def _tell(self, turn: Turn, id_: str, public: str) -> None:
        body = orjson.dumps({"kind": "key", "id": id_, "public": public}).decode()
        for venue in turn.positions:
            feed.own_rows(turn, venue, {("key", id_): {"body": body}})

    def _row(self, id_: str) -> KeyRow:
        for row in self._rows:
            if row.id == id_:
                return row
        raise NotFound(f"there is no key {id_}")

    def _path(self, id_: str) -> Path:
        return self._folder / f"{id_}.pem"

    def _read(self) -> None:
        with self._log.db.read() as conn:
            rows = conn.execute(select(schema.key).order_by(_key.number)).all()
        self._rows = [KeyRow(row.id, row.public, row.state, row.created_at) for row in rows]
        self._private = {row.id: self._read_private(row) for row in self._rows if row.state != "retired"}

    def _read_private(self, row: KeyRow) -> Ed25519PrivateKey:
        path = self._path(row.id)
        try:
            private = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise StoreUnusable(
                f"{path} cannot be read as a private key: put it back from a backup of the data directory"
            ) from error
        if not isinstance(private, Ed25519PrivateKey):
            raise StoreUnusable(f"{path} is not an Ed25519 key: put the file back from a backup")
        public = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        if base64.b64encode(public).decode() != row.public:
            raise StoreUnusable(f"{path} is not the key that the gates know: put the file back from a backup")
        return private
