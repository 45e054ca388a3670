"""How the snapshot lies in LMDB: the names of its tables, and records as msgpack rows. Pure.

========================  =====================================  ==========================================
table                     key                                    value
========================  =====================================  ==========================================
meta                      ``meta``                               :class:`Meta` as a map
credentials               digest of the code                     [id, state, [keys of the entitlements]]
credential_ids            key of the id                          digest of the code that it came with
entitlements              key of the id                          the fields of Entitlement, without blocked
holders                   key of the id                          the fields of Holder
blocked                   the holder's id (:func:`blocked_key`)  empty
tables                    kind, 0, key of the id                 the record as JSON (compiled in memory)
usage_ids                 key of the source                      at, key of the person, of the entitlement
usage_time                at, key of the source                  a Movement's fields, without seq and closed
usage_person              key of the person, at, of the source   the same
usage_entitlement         key of the entitlement, at, source     the same
========================  =====================================  ==========================================

A key of an id is a keyed digest of 16 bytes (``codekey``); ``at`` is 8 bytes that sort by time. A movement
lies three times so that each way of asking for many of them reads neighbouring pages: on a card, every page
apart is a read apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import msgpack  # type: ignore[import-untyped]

from gateway.model import CredentialState, EntitlementState, Movement, Passage

FORMAT = 1
TABLES = (
    "meta",
    "credentials",
    "credential_ids",
    "entitlements",
    "holders",
    "blocked",
    "tables",
    "usage_ids",
    "usage_time",
    "usage_person",
    "usage_entitlement",
)
META_KEY = b"meta"
KEY = 16
AT = 8
NOBODY = bytes(KEY)
"""Stands for the key of a person or an entitlement that a usage does not name."""

pack: Callable[[object], bytes] = msgpack.Packer().pack
unpack: Callable[[bytes], Any] = msgpack.unpackb
UnpackException: type[Exception] = msgpack.UnpackException

_BLOCKED_LAST = 0xC3
"""How msgpack writes ``true``, the last field of a blocked holder's row."""
_AT_BIAS = 1 << 63
_LONGEST_ID = 255
BLOCKED_DIGEST = hashlib.blake2b().digest_size
"""A key among the blocked of this length may be a digest."""


class TooNew(ValueError):
    """A newer program wrote this; the message says the formats and what to do."""


@dataclass(slots=True)
class Meta:
    """What a generation says about itself."""

    generation: int
    key_check: bytes
    cursor: str | None
    published: int | None
    """When the central published it, as it signed it; None for an imported file."""
    built: int
    """When it was built here, by this device's clock."""
    source: str
    """Where its records came from: a file's name, or the central's."""
    format: int = FORMAT
    history: str | None = None
    """The id of the history of the central's log; None for an imported file."""
    position: int | None = None
    """How far the log is in it, as a number that can be compared."""
    base: int | None = None
    """The log's position when it was built: what was deleted after that may still lie in free pages."""

    def row(self) -> bytes:
        return pack(asdict(self))


def meta_of(row: bytes) -> Meta:
    """Raises TooNew where it is one of a newer format, and ValueError, TypeError or KeyError where it is none
    of this format. Fields that only a newer program knows are passed over."""
    found: dict[str, Any] = unpack(row)
    if found["format"] > FORMAT:
        raise TooNew(
            f"has format {found['format']}, this program knows {FORMAT}: install the newer version again, or"
            " move the file away and import the cards anew (a gate that has a central fetches them by itself)"
        )
    if found["format"] != FORMAT:
        raise ValueError(f"format {found['format']} instead of {FORMAT}")
    return Meta(**{field.name: found[field.name] for field in fields(Meta) if field.name in found})


def table_key(kind: str, key: bytes) -> bytes:
    return kind.encode() + b"\0" + key


def holder_blocked(row: bytes) -> bool:
    return row[-1] == _BLOCKED_LAST


def blocked_key(holder: str) -> bytes:
    """The id itself: it is asked for on the scan's way, and a digest takes 0.5 µs. LMDB's keys are short."""
    raw = holder.encode()
    return raw if len(raw) <= _LONGEST_ID else hashlib.blake2b(raw).digest()


def inactive_credential(row: bytes) -> bytes:
    """The same credential, revoked: what a bad newer version makes of it (DESIGN.md section 7, Faults)."""
    id_, state, keys = unpack(row)
    return pack((id_, state or int(CredentialState.REVOKED), keys))


def inactive_entitlement(row: bytes) -> bytes:
    """The same entitlement, suspended: what a bad newer version makes of it."""
    fields = unpack(row)
    fields[5] = fields[5] or int(EntitlementState.SUSPENDED)
    return pack(fields)


def at_key(at: int) -> bytes:
    """8 bytes that sort as the instants do, also before 1970."""
    return (at + _AT_BIAS).to_bytes(AT, "big")


def usage_keys(move: Movement, key_of: Callable[[str], bytes]) -> tuple[bytes, bytes, bytes, bytes]:
    """What a usage is found under: ``at``, and the keys of its source, its person and its entitlement."""
    assert move.source is not None
    return (
        at_key(move.at),
        key_of(move.source),
        NOBODY if move.person is None else key_of(move.person),
        NOBODY if move.entitlement is None else key_of(move.entitlement),
    )


def movement_row(move: Movement) -> bytes:
    return pack(
        (
            move.at,
            move.from_,
            move.to,
            move.person,
            move.point,
            move.holder,
            move.credential,
            move.entitlement,
            move.guest,
            move.entries,
            str(move.passage),
            move.source,
        )
    )


def movement_of(row: bytes) -> Movement:
    at, from_, to, person, point, holder, credential, entitlement, guest, entries, passage, source = unpack(
        row
    )
    return Movement(
        at=at,
        from_=from_,
        to=to,
        person=person,
        point=point,
        holder=holder,
        credential=credential,
        entitlement=entitlement,
        guest=guest,
        entries=entries,
        passage=Passage(passage),
        source=source,
    )
