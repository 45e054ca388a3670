"""The central's hand in tests: writes and signs what a gate is to believe, and can be made to lie.

It speaks straight to a gate's sync socket, in the place of a courier; no HTTP is between.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.host import wall
from gateway.sync import protocol

Json = dict[str, Any]


class Hand:
    """One central, one venue. ``position`` and ``cursor`` are where its log is."""

    def __init__(self, gateway: str = "north", venue: str = "main", history: str = "h1") -> None:
        self.gateway, self.venue, self.history = gateway, venue, history
        self.keys = {"k1": Ed25519PrivateKey.generate()}
        self.position = 0
        self.have: dict[str, int] = {}

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

    def sealed(self, purpose: str, body: Mapping[str, Any], *, signer: Hand | None = None) -> Json:
        """A body as it comes over HTTP, signed."""
        raw = orjson.dumps(body)
        signature = protocol.sign((signer or self).keys, purpose, raw)
        return {"type": protocol.JSON, "body": base64.b64encode(raw).decode(), "signature": signature}

    def said(self, nonce: str, **other: Any) -> Json:
        """What every signed answer says."""
        head = {"gateway": self.gateway, "venue": self.venue, "history": self.history, "nonce": nonce}
        return {**head, "time": protocol.rfc3339(wall()), "have": self.have, **other}

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
        path = folder / f"snapshot-{self.position}.gz"
        path.write_bytes(packed)
        manifest = {
            "venue": self.venue,
            "history": self.history,
            "cursor": self.cursor,
            "position": self.position,
            "published": protocol.rfc3339(wall()),
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
