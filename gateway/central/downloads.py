"""Snapshot files as gateways get them: when a new one is made, and how the present one is served.

A large one is built by a child process at a lower priority: a million records keep a Python busy for seconds,
and the polls must not wait for that. One is built when the server starts, and when somebody asks and the
newest does not do, or not for much longer.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from sqlalchemy.exc import SQLAlchemyError

from gateway.central.facts import SnapshotFile
from gateway.central.faults import CentralError
from gateway.central.store import Store
from gateway.central.web import Refusal
from gateway.model import HOUR, SECOND
from gateway.sync import protocol

_OLD = 6 * HOUR
"""A file of this age is made anew when somebody asks, and serves until that is done."""
_TOO_OLD = 24 * HOUR
"""A file of this age is not served any more: the changes since may not be kept for much longer."""
_CHANGED = 10
"""Likewise made anew when one record in so many has changed."""
_FAR = 10_000
"""Changes beyond the number of its records after which a file is worth nothing: a file made before the first
load, and then a million cards as changes, would be thousands of answers."""
_YOUNG = 10 * SECOND
"""A file of this age is served all the same: where the log grows faster than files are made, the next one is
as far behind."""
_SMALL = 20_000
"""Places in the log. To build so few records takes a twentieth of a second, to start a process longer."""
_LONGEST_RETRY_S = 60
_AFTER_FAILURE_S = 30


class Downloads:
    """The files of all venues. ``db`` runs something in the store's thread."""

    def __init__(
        self,
        store: Store,
        database: str | None,
        db: Callable[..., Awaitable[Any]],
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._store = store
        self._database = database
        self._db = db
        self._log = log
        self._builds: dict[str, asyncio.Task[None]] = {}
        self._began: dict[str, float] = {}
        self._took: dict[str, float] = {}
        self._failed: dict[str, float] = {}

    async def find(self, venue: str, at_least: str) -> SnapshotFile:
        """The file to serve; ``at_least`` is a cursor or empty. Raises Refusal while it is being made."""
        file, wanted = await self._db(self._look, venue, at_least)
        if wanted:
            self.build(venue)
        if file is None:
            raise Refusal(
                503, "not_ready", "the snapshot is being made; ask again", retry_after=self._retry(venue)
            )
        found: SnapshotFile = file
        return found

    def _look(self, venue: str, at_least: str) -> tuple[SnapshotFile | None, bool]:
        """(the newest file that does, whether a newer one is to be made)."""
        position = self._store.position_of(venue, at_least) if at_least else None
        file = self._store.snapshot(venue, position)
        if file is None:
            return None, True
        _, end = self._store.log(venue)
        age, behind = self._store.clock() - file.published, end - file.position
        wanted = age > _OLD or behind * _CHANGED > file.count
        worthless = age > _TOO_OLD or (age > _YOUNG and behind > file.count + _FAR)
        return (None if worthless else file), wanted

    def build(self, venue: str) -> None:
        """Begin to make a file, unless that is going on, or has just failed."""
        failed = self._failed.get(venue)
        if venue in self._builds or (failed and time.monotonic() - failed < _AFTER_FAILURE_S):
            return
        self._began[venue] = time.monotonic()
        self._builds[venue] = asyncio.create_task(self._build(venue))

    async def _build(self, venue: str) -> None:
        began = self._began[venue]
        try:
            _, position = await self._db(self._store.log, venue)
            if position <= _SMALL:
                await asyncio.to_thread(self._store.build_snapshot, venue)
            else:
                await self._in_child(venue)
        except (OSError, SQLAlchemyError, CentralError) as error:
            self._failed[venue] = time.monotonic()
            self._log.error("a snapshot could not be made", venue=venue, reason=str(error)[:300])
        else:
            self._failed.pop(venue, None)
            self._took[venue] = took = time.monotonic() - began
            self._log.info("snapshot made", venue=venue, seconds=round(took, 2))
        finally:
            del self._builds[venue]

    async def _in_child(self, venue: str) -> None:
        """Raises OSError with the last that the child said, where it failed."""
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway.central.downloads", str(self._store.directory), venue),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        try:
            # The URL of a database may have a password in it, which a command line would show.
            _, said = await child.communicate((self._database or "").encode())
        except asyncio.CancelledError:
            child.kill()
            await child.wait()
            raise
        if child.returncode:
            raise OSError(said.decode(errors="replace").strip().rpartition("\n")[2])

    def _retry(self, venue: str) -> int:
        """Seconds until it may be there, as the last one took."""
        if venue not in self._builds:
            return _AFTER_FAILURE_S
        left = self._took.get(venue, 2.0) - (time.monotonic() - self._began[venue])
        return max(1, min(_LONGEST_RETRY_S, round(left)))

    async def stop(self) -> None:
        builds = list(self._builds.values())
        for task in builds:
            task.cancel()
        await asyncio.gather(*builds, return_exceptions=True)


class Served(web.FileResponse):
    """A file of which a client may ask for the rest, if it is still the same: aiohttp's answer, which knows
    ranges and ETags but takes If-Range as a date only (RFC 9110, 13.1.5 has both)."""

    def __init__(self, file: SnapshotFile, headers: Mapping[str, str]) -> None:
        super().__init__(
            file.path,
            chunk_size=1 << 18,
            headers={"Content-Type": protocol.SNAPSHOT, "Cache-Control": "no-cache", **headers},
        )
        self._file = file.path

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        condition = request.headers.get("If-Range", "")
        if "Range" in request.headers and condition.startswith(('"', "W/")):
            stat = await asyncio.to_thread(self._file.stat)
            if condition != f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"':
                others = request.headers.copy()
                del others["Range"]
                request = request.clone(headers=others)
        return await super().prepare(request)


def build(directory: str, venue: str, url: str | None) -> None:
    """What the child process does."""
    os.nice(10)
    store = Store.open(Path(directory), url, serve=False)
    try:
        store.build_snapshot(venue)
    finally:
        store.db.close()


if __name__ == "__main__":
    build(sys.argv[1], sys.argv[2], sys.stdin.read() or None)
