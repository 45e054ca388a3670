"""The importer's first step: every line parsed, checked and spooled as a row, in the order of its key.

A spooled row is the key (16 bytes), the number of the line (4 bytes), then the value: what goes into the
table, nothing for a deletion, or ``BAD``. So bytes sort by key, and those of one key by line.
"""

from __future__ import annotations

import codecs
import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from gateway.cache import records, rows
from gateway.cache.codekey import CodeKey
from gateway.cache.spool import Pacer, Spool
from gateway.cache.values import JsonObject, RecordError
from gateway.model import Movement, Passage

FAULTS_KEPT = 20
LINE = 4
HEAD = rows.KEY + LINE
BAD = b"\xc1"
"""Stands for a bad newer version. No msgpack value begins with it."""
SPOOL_BYTES = 12 << 20
"""Flush the spools after so many bytes of feed; as rows in memory they are about twice that."""
_LOOK_UP = 4096
"""Lines between two looks at how much is spooled and at the progress."""


class Fault(NamedTuple):
    """One record that breaks the rules."""

    line: int
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.line}: {self.field}: {self.message}" if self.field else f"{self.line}: {self.message}"


class Intake:
    """What was read: spools by key for what comes by the million, and the rest in ``tables``."""

    def __init__(self, folder: Path, stack: ExitStack, key: CodeKey, pacer: Pacer) -> None:
        def spool() -> Spool:
            return stack.enter_context(Spool(folder, pacer))

        self.key = key
        self.codes = spool()
        self.ids = spool()
        self.entitlements = spool()
        self.holders = spool()
        self.usages = spool()
        self.tables: dict[tuple[str, str], bytes] = {}
        """Venue, areas, events and products as JSON, by kind and id."""
        self.lines = 0
        self.records = 0
        self.bad = 0
        self.faults: list[Fault] = []
        """The first of the bad ones."""
        self.unknown_kinds: Counter[str] = Counter()
        self._by_kind = {
            "credential": self.ids,
            "entitlement": self.entitlements,
            "holder": self.holders,
            "usage": self.usages,
        }
        """The spool that says what became of an id."""

    def spools(self) -> tuple[Spool, ...]:
        return self.codes, self.ids, self.entitlements, self.holders, self.usages

    def read(self, lines: Iterable[bytes], progress: Callable[[int, int], None] | None) -> None:
        """Parses and spools every line. Bad ones are noted and counted, all of them."""
        loads, pack, id_key = orjson.loads, rows.pack, self.key.id
        code_state, id_state = self.key.code_state.copy, self.key.id_state.copy
        credential_fields, entitlement_fields = records.credential_fields, records.entitlement_fields
        holder_fields = records.holder_fields
        codes, ids = self.codes.rows, self.ids.rows
        entitlements, holders = self.entitlements.rows, self.holders.rows
        number = good = size = flushed = 0
        lines = iter(lines)
        first = [line.removeprefix(codecs.BOM_UTF8) for line in itertools.islice(lines, 1)]

        for number, line in enumerate(itertools.chain(first, lines), 1):
            size += len(line)
            try:
                obj = loads(line)
                # What comes by the million is kept flat, without calls that can be saved: a third of the
                # time of the whole import.
                kind = obj["kind"] if type(obj) is dict and "kind" in obj else records.kind_of(obj)
                gone = "deleted" in obj and obj["deleted"] is not False and obj["deleted"] is not None
                if kind == "entitlement" and not gone:
                    entitlement = entitlement_fields(obj)
                    digest = id_state()
                    digest.update(entitlement[0].encode())
                    key = digest.digest()
                    entitlements[key[0]].append(key + number.to_bytes(LINE, "big") + pack(entitlement))
                elif kind == "credential" and not gone:
                    id_, code, state, listed = credential_fields(obj)
                    place = number.to_bytes(LINE, "big")
                    digest = code_state()
                    digest.update(code)
                    code_key = digest.digest()
                    if len(listed) == 1:  # as nearly all have
                        digest = id_state()
                        digest.update(listed[0].encode())
                        row = pack((id_, state, (digest.digest(),)))
                    else:
                        row = pack((id_, state, [id_key(item) for item in listed]))
                    codes[code_key[0]].append(code_key + place + row)
                    digest = id_state()
                    digest.update(id_.encode())
                    key = digest.digest()
                    ids[key[0]].append(key + place + code_key)
                elif kind == "holder" and not gone:
                    holder = holder_fields(obj)
                    digest = id_state()
                    digest.update(holder[0].encode())
                    key = digest.digest()
                    holders[key[0]].append(key + number.to_bytes(LINE, "big") + pack(holder))
                elif not self._read_other(obj, number):
                    self.unknown_kinds[kind] += 1
                    continue
                good += 1
            except RecordError as error:
                self._note(Fault(number, error.field, error.message))
                self._read_bad(obj, number)
            except orjson.JSONDecodeError as error:
                if line.strip():
                    self._note(Fault(number, "", f"is not JSON: {error}"))
            if not number % _LOOK_UP:
                if size - flushed > SPOOL_BYTES:
                    flushed = size
                    for spool in self.spools():
                        spool.flush()
                if progress is not None:
                    progress(good, size)

        if progress is not None:
            progress(good, size)
        self.lines = number
        self.records = good

    def _note(self, fault: Fault) -> None:
        self.bad += 1
        if len(self.faults) < FAULTS_KEPT:
            self.faults.append(fault)

    def _read_other(self, obj: JsonObject, number: int) -> bool:
        """Everything that does not come by the million. False: the kind is unknown."""
        record = records.parse(obj)
        if record is None:
            return False
        kind = obj["kind"]
        if isinstance(record, Movement):
            key = self.key.id(records.usage_source(obj))
            row = b"" if record.passage is Passage.NOT_TAKEN else rows.movement_row(record)
            self.usages.add(key + number.to_bytes(LINE, "big") + row)
        elif isinstance(record, records.Deleted):
            spool = self._by_kind.get(kind)
            if spool is not None:
                spool.add(self.key.id(record.id) + number.to_bytes(LINE, "big"))
            else:
                self.tables.pop((kind, record.id), None)
        else:
            self.tables[kind, "" if kind == "venue" else obj["id"]] = orjson.dumps(obj)
        return True

    def _read_bad(self, obj: Any, number: int) -> None:
        """A bad newer version of a credential or an entitlement makes the older one inactive: it may well
        have been the revocation."""
        if type(obj) is not dict or type(obj.get("id")) is not str:
            return
        kind = obj.get("kind")
        if kind == "credential" or kind == "entitlement":
            self._by_kind[kind].add(self.key.id(obj["id"]) + number.to_bytes(LINE, "big") + BAD)
