"""Changes of single records in the generation in use (DESIGN.md 4.1, 4.4 and section 7, Faults)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import lmdb
import orjson

from gateway.cache import records, rows
from gateway.cache.codekey import CodeKey
from gateway.cache.records import CredentialRecord, Deleted, Record
from gateway.cache.values import JsonObject, RecordError
from gateway.model import Entitlement, Holder, Movement, Passage, Venue

_INACTIVE = ("credential", "entitlement")
_PAGES_A_RECORD = 64 * 4096
"""Far more than the pages that one record takes into use in every table."""
_PAGES_A_BATCH = 4 << 20


class BadRecord(NamedTuple):
    """A record that was set aside. ``kind`` and ``id`` where they could be read."""

    position: int
    """Its place in the batch, from 0."""
    kind: str | None
    id: str | None
    field: str
    message: str


@dataclass(slots=True)
class Applied:
    """What came of a batch."""

    changed: tuple[Record, ...] = ()
    """The good records, typed, in order: what is compiled or held in memory follows them."""
    bad: tuple[BadRecord, ...] = ()
    unknown_kinds: dict[str, int] = field(default_factory=dict)
    new_usage: tuple[Movement, ...] = ()
    """The usages that were not there before: each adds to who is where."""
    replaced_usage: bool = False
    """One that was there is another now, or is gone: who is where has to be reckoned anew."""


class _Put(NamedTuple):
    record: Record
    kind: str
    key: bytes
    row: bytes
    """Empty: the record is to go."""
    extra: Any = None
    """credential: the digest of its code. usage: its keys of time, person and entitlement."""


class _Inactivate(NamedTuple):
    kind: str
    id: str
    key: bytes


@dataclass(slots=True)
class Prepared:
    """A batch that was checked and packed, before any transaction is open."""

    steps: list[_Put | _Inactivate] = field(default_factory=list)
    bad: list[BadRecord] = field(default_factory=list)
    unknown_kinds: Counter[str] = field(default_factory=Counter)
    blocks: list[str] = field(default_factory=list)
    """The holders who become blocked."""
    uses: bool = False


def prepare(batch: Sequence[JsonObject], key: CodeKey) -> Prepared:
    """Checks every record; never raises for what is in one.

    Commands and keys are not for the snapshot: the caller takes them out before.
    """
    prepared = Prepared()
    for index, obj in enumerate(batch):
        try:
            record = records.parse(obj)
            if record is None:
                prepared.unknown_kinds[obj["kind"]] += 1
                continue
            step = _packed(record, obj, key)
        except (RecordError, UnicodeEncodeError) as error:
            _set_aside(prepared, index, obj, error, key)
            continue
        prepared.steps.append(step)
        if isinstance(record, Holder) and record.blocked:
            prepared.blocks.append(record.id)
        prepared.uses |= isinstance(record, Movement)
    return prepared


def _packed(record: Record, obj: JsonObject, key: CodeKey) -> _Put:
    kind: str = obj["kind"]
    if isinstance(record, Deleted):
        return _Put(record, kind, key.id(record.id), b"")
    if isinstance(record, CredentialRecord):
        keys = [key.id(item) for item in record.entitlements]
        row = rows.pack((record.id, record.state, keys))
        return _Put(record, kind, key.id(record.id), row, key.code(record.code))
    if isinstance(record, Entitlement):
        return _Put(record, kind, key.id(record.id), rows.pack(records.entitlement_fields(obj)))
    if isinstance(record, Holder):
        return _Put(record, kind, key.id(record.id), rows.pack(records.holder_fields(obj)))
    if isinstance(record, Movement):
        at, source, person, entitlement = rows.usage_keys(record, key.id)
        row = b"" if record.passage is Passage.NOT_TAKEN else rows.movement_row(record)
        return _Put(record, kind, source, row, at + person + entitlement)
    return _Put(record, kind, key.id("" if isinstance(record, Venue) else record.id), orjson.dumps(obj))


def _set_aside(
    prepared: Prepared, index: int, obj: object, error: RecordError | UnicodeEncodeError, key: CodeKey
) -> None:
    where, message = "", "holds text that is not Unicode"
    if isinstance(error, RecordError):
        where, message = error.field, error.message
    kind = obj.get("kind") if isinstance(obj, dict) else None
    id_ = obj.get("id") if isinstance(obj, dict) else None
    kind = kind if type(kind) is str else None
    id_ = id_ if type(id_) is str else None
    prepared.bad.append(BadRecord(index, kind, id_, where, message))
    if (
        kind is not None
        and kind in _INACTIVE
        and id_ is not None
        and not isinstance(error, UnicodeEncodeError)
    ):
        prepared.steps.append(_Inactivate(kind, id_, key.id(id_)))


def room(prepared: Prepared) -> int:
    """Bytes by which the file may grow when this batch is written; generous."""
    return _PAGES_A_BATCH + _PAGES_A_RECORD * len(prepared.steps)


def write(txn: lmdb.Transaction, tables: Mapping[str, Any], prepared: Prepared) -> Applied:
    """Writes a prepared batch within a transaction of the caller."""
    changed: list[Record] = []
    new_usage: list[Movement] = []
    replaced_usage = False
    for step in prepared.steps:
        if isinstance(step, _Inactivate):
            _inactivate(txn, tables, step)
            continue
        if step.kind == "credential":
            _put_credential(txn, tables, step)
        elif step.kind == "usage":
            before = _put_usage(txn, tables, step)
            replaced_usage |= before is _Before.OTHER
            if before is _Before.NONE and step.row:
                assert isinstance(step.record, Movement)
                new_usage.append(step.record)
        elif step.kind == "entitlement":
            _set(txn, tables["entitlements"], step.key, step.row)
        elif step.kind == "holder":
            _set(txn, tables["holders"], step.key, step.row)
            assert isinstance(step.record, Holder | Deleted)
            blocked = rows.blocked_key(step.record.id)
            if step.row and rows.holder_blocked(step.row):
                txn.put(blocked, b"", db=tables["blocked"])
            else:
                txn.delete(blocked, db=tables["blocked"])
        else:
            _set(txn, tables["tables"], rows.table_key(step.kind, step.key), step.row)
        changed.append(step.record)
    return Applied(
        tuple(changed),
        tuple(prepared.bad),
        dict(prepared.unknown_kinds),
        tuple(new_usage),
        replaced_usage,
    )


def _set(txn: lmdb.Transaction, table: Any, key: bytes, row: bytes) -> None:
    if row:
        txn.put(key, row, db=table)
    else:
        txn.delete(key, db=table)


def _get(txn: lmdb.Transaction, table: Any, key: bytes) -> bytes | None:
    row: bytes | None = txn.get(key, None, table)  # type: ignore[assignment]  # memoryviews only if asked for
    return row


def _own_code(txn: lmdb.Transaction, tables: Mapping[str, Any], id_: str, key: bytes) -> bytes | None:
    """The digest of the code that a credential has, unless another has taken it since."""
    digest = _get(txn, tables["credential_ids"], key)
    row = None if digest is None else _get(txn, tables["credentials"], digest)
    return digest if row is not None and rows.unpack(row)[0] == id_ else None


def _put_credential(txn: lmdb.Transaction, tables: Mapping[str, Any], step: _Put) -> None:
    """The code that it had goes; then it takes the code that it has now, whoever had that."""
    assert isinstance(step.record, CredentialRecord | Deleted)
    before = _own_code(txn, tables, step.record.id, step.key)
    if before is not None:
        txn.delete(before, db=tables["credentials"])
    if step.row:
        txn.put(step.extra, step.row, db=tables["credentials"])
    _set(txn, tables["credential_ids"], step.key, step.extra if step.row else b"")


class _Before(Enum):
    """What was there of a usage."""

    NONE = 0
    SAME = 1
    OTHER = 2


def _put_usage(txn: lmdb.Transaction, tables: Mapping[str, Any], step: _Put) -> _Before:
    before = _get(txn, tables["usage_ids"], step.key)
    if before is not None:
        there = _get(txn, tables["usage_time"], before[: rows.AT] + step.key)
        if step.row and there == step.row and before == step.extra:
            return _Before.SAME
        for name, key in _usage_places(step.key, before):
            txn.delete(key, db=tables[name])
    _set(txn, tables["usage_ids"], step.key, step.extra if step.row else b"")
    if step.row:
        for name, key in _usage_places(step.key, step.extra):
            txn.put(key, step.row, db=tables[name])
    return _Before.NONE if before is None else _Before.OTHER


def _usage_places(source: bytes, found: bytes) -> list[tuple[str, bytes]]:
    """Where a usage lies, from its row in usage_ids."""
    at, person, entitlement = found[:8], found[8:24], found[24:]
    places = [("usage_time", at + source)]
    if person != rows.NOBODY:
        places.append(("usage_person", person + at + source))
    if entitlement != rows.NOBODY:
        places.append(("usage_entitlement", entitlement + at + source))
    return places


def _inactivate(txn: lmdb.Transaction, tables: Mapping[str, Any], step: _Inactivate) -> None:
    if step.kind == "entitlement":
        row = _get(txn, tables["entitlements"], step.key)
        if row is not None:
            txn.put(step.key, rows.inactive_entitlement(row), db=tables["entitlements"])
        return
    digest = _own_code(txn, tables, step.id, step.key)
    if digest is not None:
        row = _get(txn, tables["credentials"], digest)
        assert row is not None
        txn.put(digest, rows.inactive_credential(row), db=tables["credentials"])
