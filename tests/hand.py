"""The central's hand in tests: writes and signs what a gate is to believe, and can be made to lie.

It speaks straight to a gate's sync socket, in the place of a courier; no HTTP is between.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.control import Client
from gateway.host import wall
from gateway.model import SECOND
from gateway.sync import protocol

Json = dict[str, Any]


class Hand:
    """One central, one venue. ``position`` and ``cursor`` are where its log is."""

    def __init__(self, gateway: str = "north", venue: str = "main", history: str = "h1") -> None:
        self.gateway, self.venue, self.history = gateway, venue, history
        self.keys = {"k1": Ed25519PrivateKey.generate()}
        self.position = 0
        self.have: dict[str, int] = {}
        self.ahead = 0
        """Microseconds by which the central's clock is ahead of this machine's."""
        self._made = 0

    @property
    def now(self) -> int:
        """The central's clock."""
        return wall() + self.ahead

    @property
    def cursor(self) -> str:
        return f"{self.history}.{self.position}"

    def public(self, key: str = "k1") -> str:
        return base64.b64encode(self.keys[key].public_key().public_bytes_raw()).decode()

    def enrolment(self, **other: Any) -> Json:
        """The arguments of the call ``enrolled``."""
        keys = [{"id": id_, "public": self.public(id_)} for id_ in self.keys]
        said = {"url": "https://central.example", "gateway": self.gateway, "venue": self.venue}
        return {**said, "history": self.history, "keys": keys, **other}

    def sealed(
        self, purpose: str, body: Mapping[str, Any], *, signer: Hand | None = None, type_: str = protocol.JSON
    ) -> Json:
        """A body as it comes over HTTP, signed."""
        raw = protocol.encode(body, type_)
        signature = protocol.sign((signer or self).keys, purpose, raw)
        return {"type": type_, "body": base64.b64encode(raw).decode(), "signature": signature}

    def command(self, do: str, id_: str | None = None, *, ago: int = 0, ttl_s: int = 30, **what: Any) -> Json:
        """A command, given so many seconds ago."""
        self._made += 1
        at = protocol.rfc3339(self.now - ago * SECOND)
        known = {"kind": "command", "id": id_ or f"command-{self._made}", "gateway": self.gateway, "do": do}
        return {**known, "at": at, "ttl_s": ttl_s, **what}

    def said(self, nonce: str, **other: Any) -> Json:
        """What every signed answer says."""
        head = {"gateway": self.gateway, "venue": self.venue, "history": self.history, "nonce": nonce}
        return {**head, "time": protocol.rfc3339(self.now), "have": self.have, **other}

    def changes(
        self,
        poll: Mapping[str, Any],
        records: Iterable[Any] = (),
        *,
        signer: Hand | None = None,
        **other: Any,
    ) -> Json:
        """The arguments of ``answer``: what changed since the cursor that was asked with. The log goes on by
        as many positions as there are records."""
        records = list(records)
        self.position += len(records)
        body = self.said(
            poll["nonce"],
            cursor=poll["cursor"],
            next=self.cursor,
            position=self.position,
            more=False,
            forget=None,
            records=records,
        )
        return self.sealed(protocol.CHANGES, {**body, **other}, signer=signer)

    def gone(self, poll: Mapping[str, Any], **other: Any) -> Json:
        return self.sealed(protocol.CHANGES, self.said(poll["nonce"], gone=True, **other))

    def revoked(self, poll: Mapping[str, Any], **other: Any) -> Json:
        return self.sealed(protocol.CHANGES, self.said(poll["nonce"], revoked=True, **other))

    def snapshot(self, folder: Path, records: Iterable[Any], **other: Any) -> tuple[Path, Json]:
        """A snapshot file at the log's present position, and the arguments of ``generation``."""
        plain = b"".join(orjson.dumps(record) + b"\n" for record in records)
        packed = gzip.compress(plain, mtime=0)
        self._made += 1
        path = folder / f"snapshot-{self._made}.gz"
        path.write_bytes(packed)
        manifest = {
            "venue": self.venue,
            "history": self.history,
            "cursor": self.cursor,
            "position": self.position,
            "published": protocol.rfc3339(self.now),
            "count": plain.count(b"\n"),
            "bytes": len(plain),
            "size": len(packed),
            "sha256": hashlib.sha256(packed).hexdigest(),
            **other,
        }
        raw = orjson.dumps(manifest)
        signature = protocol.sign(self.keys, protocol.SNAPSHOT_FILE, raw)
        return path, {"manifest": base64.b64encode(raw).decode(), "signature": signature}

    def took(self, outbox: Mapping[str, Any], **other: Any) -> Json:
        """The arguments of ``uploaded``: everything in the outbox is taken."""
        rows = outbox["rows"]
        ranges: list[list[int]] = []
        for epoch, _, seq, *_ in rows:
            if ranges and ranges[-1][0] == epoch and ranges[-1][2] == seq - 1:
                ranges[-1][2] = seq
            else:
                ranges.append([epoch, seq, seq])
            self.have[str(epoch)] = max(seq, self.have.get(str(epoch), 0))
        body = self.said(outbox["nonce"], acknowledged=ranges, refused=[], conflict=None)
        return self.sealed(protocol.EVENTS, {**body, **other})


class Courier:
    """The honest one: asks the gate what to ask, has the hand answer, and passes that on."""

    def __init__(self, client: Client, hand: Hand, folder: Path) -> None:
        self.client, self.hand, self.folder = client, hand, folder

    def poll(self) -> Json:
        found: Json = self.client.call("poll")
        return found

    def tell(self, *records: Any, **other: Any) -> Json:
        """What changed; the answer of the gate."""
        done: Json = self.client.call("answer", **self.hand.changes(self.poll(), records, **other))
        return done

    def gone(self) -> Json:
        done: Json = self.client.call("answer", **self.hand.gone(self.poll()))
        return done

    def revoked(self) -> Json:
        done: Json = self.client.call("answer", **self.hand.revoked(self.poll()))
        return done

    def hand_over(self, path: Path, arguments: Mapping[str, Any]) -> Json:
        """A file and the arguments of ``generation``."""
        fd = os.open(path, os.O_RDONLY)
        try:
            done: Json = self.client.call_with_fd("generation", fd, **arguments)
        finally:
            os.close(fd)
        return done

    def snapshot(self, records: Iterable[Any], **other: Any) -> Json:
        """All records, at the log's present position."""
        return self.hand_over(*self.hand.snapshot(self.folder, records, **other))

    def first(self, records: Iterable[Any]) -> Json:
        """Everything that comes after an enrolment."""
        assert self.gone()["gone"]
        assert self.poll()["snapshot"] is not None
        return self.snapshot(records)

    def outbox(self, **arguments: Any) -> Json:
        found: Json = self.client.call("outbox", **arguments)
        return found

    def upload(self, **other: Any) -> Json:
        """Everything that there is to send, taken by the central."""
        done: Json = self.client.call("uploaded", **self.hand.took(self.outbox(), **other))
        return done
