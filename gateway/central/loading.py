"""A load of any size, in parts, so that a revocation never waits for millions of records.

Unless the bad ones are to be skipped, all is looked through before the first record is put: what is bad is
bad whatever is stored already. Each part is a transaction; between two of them others have their turn at
the store. A load that breaks off half-way (the central is stopped) is done by loading again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import IO, Any

import orjson

from gateway.cache.records import RecordError
from gateway.cache.values import flag
from gateway.central import records
from gateway.central.facts import Fault, Put
from gateway.central.store import Store
from gateway.central.writing import FAULTS_KEPT
from gateway.sync.protocol import MAX_RECORD

PART = 4000
"""Lines: about an eighth of a second."""
_MAX_LINE = 2 * MAX_RECORD


async def load(
    db: Callable[..., Awaitable[Any]],
    store: Store,
    file: IO[bytes],
    venue: str,
    by: str,
    *,
    skip_bad: bool,
) -> Put:
    """Puts the lines of a file into a venue; ``db`` runs something in the store's thread. Raises NotFound."""
    total = Put(0, (await db(store.log, venue))[1], [])
    if not skip_bad:
        lines, first = _lines(file), 1
        while part := await db(list, islice(lines, PART)):
            total = _sum(total, await db(_check, part), first)
            first += len(part)
        if total.bad:
            return total
    file.seek(0)
    lines, first = _lines(file), 1
    while part := await db(list, islice(lines, PART)):
        total = _sum(total, await db(_put, store, venue, part, by), first)
        first += len(part)
    return total


def _put(store: Store, venue: str, part: list[bytes], by: str) -> Put:
    return store.put(venue, part, by, skip_bad=True)


def _check(part: list[bytes]) -> Put:
    """What is bad of these lines, without putting any."""
    found = []
    for line, raw in enumerate(part, 1):
        obj: Any = None
        try:
            if raw.strip():
                obj = orjson.loads(raw)
                if records.identify(obj) is not None and not flag(obj, "deleted"):
                    records.encoded(obj)
        except orjson.JSONDecodeError as error:
            found.append(Fault(line, "", "", "", f"is not JSON: {error}"))
        except RecordError as error:
            kind, id_ = (obj.get("kind"), obj.get("id")) if isinstance(obj, dict) else ("", "")
            found.append(
                Fault(
                    line,
                    kind if isinstance(kind, str) else "",
                    id_ if isinstance(id_, str) else "",
                    error.field,
                    error.message,
                )
            )
    return Put(0, 0, found[:FAULTS_KEPT], len(found))


def _sum(total: Put, part: Put, first: int) -> Put:
    """``first``: the number of the part's first line."""
    faults = total.faults + [replace(fault, line=fault.line + first - 1) for fault in part.faults]
    unknown = {
        kind: total.unknown.get(kind, 0) + part.unknown.get(kind, 0)
        for kind in [*total.unknown, *(kind for kind in part.unknown if kind not in total.unknown)]
    }
    return Put(
        total.count + part.count,
        max(total.position, part.position),
        faults[:FAULTS_KEPT],
        total.bad + part.bad,
        unknown,
    )


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines; of one that is far too long for a record only the beginning, which is none."""
    while line := file.readline(_MAX_LINE):
        yield line
        while len(line) == _MAX_LINE and not line.endswith(b"\n"):
            line = file.readline(_MAX_LINE)
